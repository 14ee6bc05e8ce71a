"""Rows on a device are those of the bank at every moment, whatever was written, fitted or cleared between two batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vidssl.batch import Embeddings
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.device import DeviceCopy
from vidssl.mining.mapped import MappedRows
from vidssl.mining.plan import CascadePlan
from vidssl.mining.rows import floats

N, DIM = 40, 8


def push(bank, step, slots):
    rng = np.random.default_rng(step)
    rows = rng.standard_normal((2, len(slots), DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    bank.push(Embeddings({"main": rows[0], "aux": rows[1]}, slots, step, 0))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_copy_follows_every_write_and_sends_only_what_was_written(dtype):
    bank, copy = EmbeddingBank(N, DIM, ("main", "aux"), dtype=dtype), DeviceCopy("cpu:0")
    before = None
    for step in range(6):
        push(bank, step, np.arange(step * 5, step * 5 + 9))
        tables = copy.of(bank.views, bank.stamps)
        for view, kept in bank.views.items():
            np.testing.assert_array_equal(tables[view].float().numpy(), floats(kept))
            assert tables[view].data_ptr() != torch.from_numpy(kept).data_ptr()  # the bank's own rows stay here
        assert before is None or tables["main"] is before
        before = tables["main"]


@pytest.mark.parametrize("kind", ["raw", "white"])
def test_a_bank_mines_on_a_device_what_it_mines_here(kind, monkeypatch):
    asked = []
    plan = CascadePlan(N, 3, 0.5, 3)
    banks = [EmbeddingBank(N, DIM, ("main", "aux"), mapped=MappedRows(kind, 2)) for _ in range(2)]
    copy = banks[1].device = DeviceCopy("cpu:0")
    of = copy.of
    monkeypatch.setattr(copy, "of", lambda *words: asked.append(1) or of(*words))
    for step in range(6):
        found = []
        for bank in banks:
            push(bank, step, np.arange(N) if not step else np.arange(step, step + 9))
            found.append(bank.mine(np.arange(N), plan, "main", "aux"))
        np.testing.assert_array_equal(found[0].ids, found[1].ids)
    assert len(asked) == 6
