"""Tensors in files: hashed as written, finite, and read without running the file's code."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
import torch

from vidssl.errors import CheckpointError, StorageError
from vidssl.saved.tensors import FileSum, first_bad_number, plain, read_tensors, write_tensors


def test_the_sum_is_that_of_the_bytes_on_disk(tmp_path):
    tree = {"weight": torch.arange(70_000.0), "deep": {"list": [1, "two", None, 2.5]}}
    found = write_tensors(tree, tmp_path / "model.pt")
    written = (tmp_path / "model.pt").read_bytes()
    assert found == FileSum(len(written), hashlib.sha256(written).hexdigest())
    back = read_tensors(tmp_path / "model.pt", found)
    assert torch.equal(back["weight"], tree["weight"])
    assert back["deep"] == tree["deep"]


def test_a_full_disk_is_named_with_its_room_and_nothing_is_left(small_disk):
    disk = small_disk(1)
    wanted = r"model\.pt cannot be written: the disk .*disk-0 is full \(4\.0 MB needed, 1\.0 MB free\)"
    with pytest.raises(StorageError, match=wanted):
        write_tensors({"weight": torch.zeros(1_000_000)}, disk / "model.pt")
    assert not list(disk.iterdir())


def test_a_flipped_bit_anywhere_is_named(tmp_path):
    path = tmp_path / "model.pt"
    expected = write_tensors({"weight": torch.randn(500)}, path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(whole), 40):
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(spoilt)
        with pytest.raises(CheckpointError, match=r"model\.pt is damaged: its bytes are not those that were written"):
            read_tensors(path, expected)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda p: p.write_bytes(b""), r"model\.pt has 0 of \d+ bytes"),
        (lambda p: p.write_bytes(p.read_bytes()[:-5]), r"model\.pt has \d+ of \d+ bytes"),
        (lambda p: p.unlink(), r"model\.pt is missing"),
    ],
)
def test_an_empty_torn_or_missing_file_is_named(tmp_path, spoil, sentence):
    path = tmp_path / "model.pt"
    expected = write_tensors({"weight": torch.zeros(9)}, path)
    spoil(path)
    with pytest.raises(CheckpointError, match=sentence):
        read_tensors(path, expected)


class Harm:
    """A pickle that would make a file when it is read."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


@pytest.mark.parametrize("write", [lambda x, p: torch.save(x, p), lambda x, p: p.write_bytes(pickle.dumps(x))])
def test_code_in_a_file_is_refused_in_our_words(tmp_path, write):
    write({"weight": Harm(tmp_path / "done")}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError) as caught:
        read_tensors(tmp_path / "model.pt")
    assert str(caught.value) in (  # the module's name differs between Pythons
        f"model.pt asks for the code of {open.__module__}.open, which is not run: only tensors, numbers and text are read",
        "model.pt is no file of tensors",
    )
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("content", [b"rubbish", b"PK\x03\x04rubbish", b"\x80\x04N."])
def test_bytes_of_another_kind_are_refused_in_our_words(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^model\.pt (is no file of tensors|asks for the code)"):
        read_tensors(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"a": torch.ones(3), "b": [1.0, {"c": torch.tensor([1.0, float("inf")])}]}, "b.1.c (inf)"),
        ({"a": np.array([0.0, np.nan])}, "a (nan)"),
        ({"a": torch.tensor([1.0, float("nan")], dtype=torch.bfloat16)}, "a (nan)"),
        ({"a": (0, -float("inf"))}, "a.1 (-inf)"),
        ({"a": torch.tensor([2**62]), "b": "nan", "c": None, "d": True}, None),
        ({"deep": {"log_z": torch.tensor(float("nan"))}}, None),
    ],
)
def test_the_first_number_that_is_not_finite_is_named(tree, said):
    assert first_bad_number(tree, unset=("log_z",)) == said


def test_arrays_become_tensors_that_can_be_read_back(tmp_path):
    write_tensors(plain({"ids": np.arange(4), "one": np.float32(1.5), "pair": (1, 2)}), tmp_path / "x.pt")
    back = read_tensors(tmp_path / "x.pt")
    assert back["ids"].tolist() == [0, 1, 2, 3]
    assert (back["one"], back["pair"]) == (1.5, [1, 2])
