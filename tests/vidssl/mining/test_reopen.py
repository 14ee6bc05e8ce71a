"""A run that goes on has the newest whole bank, and a sentence wherever that is not its step's own."""

from __future__ import annotations

import numpy as np
import pytest

from tests.vidssl.mining.test_snapshots import make_bank, same
from vidssl.errors import BankError
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.reopen import choose, newest_whole, source_of
from vidssl.mining.snapshots import save_snapshot


def empty():
    return EmbeddingBank(50, 6, ("rgb", "residual"), np.arange(50) // 2)


@pytest.fixture
def saved(tmp_path):
    """Snapshots of the steps 10 and 20, of other rows each."""
    for step in (10, 20):
        save_snapshot(make_bank(seed=step), tmp_path, step, extra={"data_hash": "abc"})
    return tmp_path


def tear(path):
    chunk = next(iter(sorted(found for found in (path / "view-rgb" / "c").rglob("*") if found.is_file())))
    chunk.write_bytes(chunk.read_bytes()[:-3])


def flip(path):
    chunk = next(iter(sorted(found for found in (path / "view-residual" / "c").rglob("*") if found.is_file())))
    content = bytearray(chunk.read_bytes())
    content[9] ^= 4
    chunk.write_bytes(content)


def test_the_step_s_own_snapshot_is_taken_without_a_word(saved):
    assert same(choose(saved, 20, pytest.fail, empty(), "abc"), make_bank(seed=20))
    assert same(choose(saved, 10, pytest.fail, empty(), "abc"), make_bank(seed=10))


@pytest.mark.parametrize("spoil", [tear, flip, lambda path: (path / "zarr.json").write_text("{")])
def test_a_damaged_snapshot_is_passed_over_for_the_next_older_whole_one_with_a_sentence(saved, spoil):
    spoil(saved / "snap-20")
    said = []
    assert same(choose(saved, 20, said.append, empty(), "abc"), make_bank(seed=10))
    assert len(said) == 1
    assert "snap-20" in said[0]
    assert said[0].endswith("the older bank snapshot snap-10 is taken instead")


def test_a_snapshot_that_is_missing_is_said(saved):
    said = []
    assert same(choose(saved, 30, said.append, empty(), "abc"), make_bank(seed=20))
    assert said == ["the bank snapshot of step 30 is missing: the older one snap-20 is taken instead"]
    assert same(choose(saved, 15, said.append, empty(), "abc"), make_bank(seed=10))  # snap-20 is of a later step


def test_without_any_snapshot_the_bank_is_empty_and_that_is_said(tmp_path):
    said = []
    assert choose(tmp_path / "none", 30, said.append, empty()).filled == 0
    assert "the bank starts empty and fills again" in said[0]
    assert choose(tmp_path / "none", 0, pytest.fail, empty()).filled == 0


def test_where_none_can_be_used_each_is_named_with_the_words_that_go_on(saved):
    tear(saved / "snap-10")
    flip(saved / "snap-20")
    said = r"snap-20 is damaged .*snap-10 is damaged .*type bank=SNAPSHOT .*or bank=empty"
    with pytest.raises(BankError, match=said):
        choose(saved, 20, pytest.fail, empty(), "abc")
    with pytest.raises(BankError, match="belongs to data abc, this run has xyz"):
        choose(saved, 20, pytest.fail, empty(), "xyz")


def test_the_newest_of_several_folders_is_found(saved):
    save_snapshot(make_bank(seed=15), saved / "live", 15)
    said = []
    tear(saved / "snap-20")
    found = newest_whole([saved, saved / "live"], said.append)
    assert found is not None
    assert found[0] == saved / "live" / "snap-15"
    assert same(found[1], make_bank(seed=15))
    assert newest_whole([saved / "none"], pytest.fail) is None


def test_the_words_of_a_resume(saved, tmp_path):
    assert source_of(None, saved) == str(saved)
    assert source_of("empty", saved) is None
    assert source_of("snap-10", saved) == str(saved / "snap-10")
    assert source_of(str(saved / "snap-20"), tmp_path / "other") == str(saved / "snap-20")
    with pytest.raises(BankError, match="is no readable bank snapshot; name a folder snap-STEP"):
        source_of("snap-11", saved)
