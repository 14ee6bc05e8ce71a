"""Rows are kept in three dtypes: rounded to nearest on the way in, exact on the way out, never copied for an engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidssl.batch import Embeddings
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.rows import DTYPES, floats, storage, stored, table

FINITE = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20)


@settings(max_examples=200, deadline=None)
@given(values=FINITE, dtype=st.sampled_from(DTYPES))
def test_a_kept_row_is_what_torch_rounds_it_to_and_comes_back_exactly(values, dtype):
    rows = np.array(values, np.float32)[None]
    kept = stored(rows, dtype)
    assert kept.dtype == storage(dtype)
    rounded = torch.tensor(rows).to(getattr(torch, dtype)).float().numpy()
    np.testing.assert_array_equal(floats(kept), rounded)
    np.testing.assert_array_equal(stored(floats(kept), dtype), kept)
    np.testing.assert_array_equal(torch.as_tensor(table(kept)).float().numpy(), rounded)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_and_is_found(value):
    kept = stored(np.array([[value, 0.0]], np.float32), "bfloat16")
    np.testing.assert_array_equal(floats(kept), [[value, 0.0]])
    bank = EmbeddingBank(1, 2, ("rgb",), dtype="bfloat16")
    assert bank.push(Embeddings({"rgb": kept}, np.array([0]), 0, 0)).bad == 1


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), sent=st.sampled_from(DTYPES), kept=st.sampled_from(DTYPES))
def test_a_bank_takes_rows_of_any_dtype_bits_of_bfloat16_too(seed, sent, kept):
    rows = np.random.default_rng(seed).standard_normal((4, 8))
    rows = stored((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), sent)
    bank = EmbeddingBank(4, 8, ("rgb",), dtype=kept)
    assert bank.push(Embeddings({"rgb": rows}, np.arange(4), 0, 0)).written == 4
    np.testing.assert_array_equal(bank.views["rgb"], stored(floats(rows), kept))


def test_an_engine_reads_the_bank_s_own_memory():
    for dtype in DTYPES:
        bank = EmbeddingBank(3, 4, ("rgb",), dtype=dtype)
        before = bank.table("rgb")
        bank.push(Embeddings({"rgb": np.eye(3, 4)}, np.arange(3), 0, 0))
        np.testing.assert_array_equal(torch.as_tensor(before).float().numpy(), np.eye(3, 4))
    assert isinstance(before, torch.Tensor)
    assert before.dtype == torch.bfloat16
