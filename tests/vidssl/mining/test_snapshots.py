"""A snapshot is whole or absent, comes back bit for bit, and is refused where it does not belong."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
import time
from itertools import pairwise

import numpy as np
import pytest

from vidssl.batch import Embeddings
from vidssl.errors import BankError, StorageError
from vidssl.mining.bank import EmbeddingBank
from vidssl.mining.parts import write_part
from vidssl.mining.rows import DTYPES, stored
from vidssl.mining.snapshots import (
    latest_snapshot,
    load_rows,
    load_snapshot,
    read_info,
    save_snapshot,
    snapshot_at,
    sweep,
)


def make_bank(n=50, dtype="float32", views=("rgb", "residual"), seed=0, dim=6):
    rng = np.random.default_rng(seed)
    bank = EmbeddingBank(n, dim, views, np.arange(n) // 2, dtype)
    rows = rng.standard_normal((n - 5, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    bank.push(Embeddings(dict.fromkeys(views, rows), np.arange(n - 5), 7, 0))
    return bank


def same(one, other):
    return all(np.array_equal(values, other.state()[name]) for name, values in one.state().items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bank_comes_back_bit_for_bit(tmp_path, dtype):
    bank = make_bank(dtype=dtype)
    path = save_snapshot(bank, tmp_path, 9, extra={"data_hash": "abc", "stages": 3})
    back = load_snapshot(path, bank, "abc")
    assert same(back, bank)
    assert (back.step, back.dtype) == (7, dtype)
    info = read_info(path)
    assert (info.step, info.bank_step, info.views, info.extra["stages"]) == (9, 7, ("rgb", "residual"), 3)


class Parted:
    """A moment of a bank of which every range between two cuts is written by somebody else."""

    def __init__(self, bank, cuts):
        self.bank, self.cuts = bank, cuts
        with bank.moment() as moment:
            self.facts = moment.facts

    def write(self, path, step):
        parts = []
        for number, (start, stop) in enumerate(pairwise(self.cuts)):
            own = EmbeddingBank(stop - start, self.bank.dim, tuple(self.bank.views), dtype=self.bank.dtype)
            rows = {view: kept[start:stop] for view, kept in self.bank.views.items()}
            own.fill(rows, self.bank.version[start:stop], self.bank.step)
            with own.moment() as moment:
                parts.append(write_part(moment, path / f"part-{number}", start, step))
        return parts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cuts", [[0, 50], [0, 17, 33, 50], [0, 1, 49, 50]])
def test_a_snapshot_in_parts_is_the_bank_and_gives_every_range_of_it(tmp_path, cuts, dtype):
    bank = make_bank(dtype=dtype)
    path = save_snapshot(Parted(bank, cuts), tmp_path, 9, extra={"data_hash": "abc"})
    back = load_snapshot(path, bank, "abc")
    assert same(back, bank)
    assert back.step == 7
    whole = save_snapshot(bank, tmp_path, 10)
    for start, stop in ((0, 50), (0, 20), (16, 18), (33, 50), (49, 50)):
        for place in (path, whole):  # shards are cut anew, or begin with what one process wrote
            some = load_rows(place, read_info(place), start, stop, dtype)
            np.testing.assert_array_equal(some.version, bank.version[start:stop])
            for view, kept in bank.views.items():
                np.testing.assert_array_equal(some.views[view], kept[start:stop])


def spoil_chunk(part):
    chunk = next(found for found in sorted((part / "view-rgb" / "c").rglob("*")) if found.is_file())
    content = bytearray(chunk.read_bytes())
    content[9] ^= 4
    chunk.write_bytes(content)


@pytest.mark.parametrize("spoil", [shutil.rmtree, spoil_chunk, lambda part: shutil.rmtree(part / "version")])
def test_a_snapshot_that_lacks_or_spoils_a_part_is_none(tmp_path, spoil):
    path = save_snapshot(Parted(make_bank(), [0, 17, 33, 50]), tmp_path, 9)
    spoil(path / "part-1")
    with pytest.raises(BankError, match="snap-9 is damaged"):
        load_snapshot(path)
    with pytest.raises(BankError, match="snap-9 is damaged"):
        load_rows(path, read_info(path), 30, 40, "float32")
    assert load_rows(path, read_info(path), 33, 50, "float32").filled == 12  # it does not look at the others' parts


def test_a_bad_row_of_a_part_is_named_by_its_slot_of_the_whole_bank(tmp_path):
    bank = make_bank()
    bank.views["rgb"][20] = 3.0
    with pytest.raises(BankError, match=r"rgb row of slot 20 has length 7\.35; older snapshots stay"):
        save_snapshot(Parted(bank, [0, 17, 33, 50]), tmp_path, 9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", DTYPES)
@pytest.mark.parametrize("written", DTYPES)
def test_a_snapshot_of_another_dtype_is_taken_over_and_said(tmp_path, written, kept):
    bank, said = make_bank(dtype=written), []
    path = save_snapshot(bank, tmp_path, 9)
    back = load_snapshot(path, make_bank(dtype=kept), say=said.append)
    every = np.arange(50)
    for view in bank.views:
        np.testing.assert_array_equal(back.views[view], stored(bank.vectors(every, view), kept))
    np.testing.assert_array_equal(back.version, bank.version)
    how = "exactly" if kept == "float32" else "rounded"
    sentence = f"snap-9 holds {written} rows: this bank keeps them as {kept}, {how} (mining.bank_dtype)"
    assert said == ([] if written == kept else [sentence])
    again = load_snapshot(save_snapshot(back, tmp_path, 10), bank)
    assert same(again, bank) or kept not in (written, "float32")  # what was widened comes back
    assert load_snapshot(tmp_path / "snap-9").dtype == written  # nobody asked for another one


def test_a_mirror_of_a_bank_that_was_read_hears_of_all_its_rows(tmp_path):
    back = load_snapshot(save_snapshot(make_bank(), tmp_path, 9))
    mirror = EmbeddingBank(50, 6, ("rgb", "residual"), np.arange(50) // 2)
    mirror.apply(back.changed_since(None))
    assert same(mirror, make_bank())


def test_a_snapshot_of_a_dtype_that_is_not_known_is_refused(tmp_path):
    path = save_snapshot(make_bank(), tmp_path, 1)
    rewritten(path, lambda rows: None, dtype="int8")
    with pytest.raises(BankError, match="holds rows of dtype int8, this version reads float32, float16, bfloat16"):
        load_snapshot(path)


def test_the_last_two_are_kept_and_found(tmp_path):
    for step in (1, 2, 10):
        save_snapshot(make_bank(), tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snap-10", "snap-2"]
    assert latest_snapshot(tmp_path) == tmp_path / "snap-10"
    assert snapshot_at(tmp_path, 2) == tmp_path / "snap-2"
    assert snapshot_at(tmp_path, 1) is None
    assert latest_snapshot(tmp_path / "nowhere") is None


def test_a_run_that_goes_back_replaces_what_an_attempt_left_and_keeps_its_own(tmp_path):
    for step, seed in ((100, 1), (200, 2), (50, 3), (100, 4)):
        save_snapshot(make_bank(seed=seed), tmp_path, step)
    assert same(load_snapshot(tmp_path / "snap-100"), make_bank(seed=4))
    assert {path.name for path in tmp_path.iterdir()} == {"snap-50", "snap-100", "snap-200"}


def test_chunks_are_uncompressed_and_hold_whole_rows(tmp_path):
    import zarr

    group = zarr.open_group(str(save_snapshot(make_bank(), tmp_path, 1)), mode="r")
    array = group["view-rgb"]
    assert isinstance(array, zarr.Array)
    assert (array.chunks, array.compressors) == ((50, 6), ())


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (lambda: make_bank(52), "has slots 50, this run needs 52; start with an empty bank"),
        (lambda: make_bank(dim=7), "has width 6, this run needs 7"),
        (lambda: make_bank(views=("rgb", "flow")), "has views .*residual.* this run needs .*flow"),
        (lambda: EmbeddingBank(50, 6, ("rgb", "residual")), "other groups of videos"),
    ],
)
def test_another_run_s_snapshot_is_refused(tmp_path, other, sentence):
    path = save_snapshot(make_bank(), tmp_path, 1)
    with pytest.raises(BankError, match=sentence):
        load_snapshot(path, other())


def test_a_snapshot_of_other_data_is_refused(tmp_path):
    path = save_snapshot(make_bank(), tmp_path, 1, extra={"data_hash": "abc"})
    with pytest.raises(BankError, match="belongs to data abc, this run has xyz"):
        load_snapshot(path, data_hash="xyz")


def test_a_damaged_or_missing_snapshot_is_refused(tmp_path):
    path = save_snapshot(make_bank(), tmp_path, 1)
    with pytest.raises(BankError, match="is no readable bank snapshot"):
        load_snapshot(tmp_path / "snap-3")
    shutil.rmtree(path / "view-rgb" / "c")
    with pytest.raises(BankError, match=r"is damaged \(view-rgb is not what was written\)"):
        load_snapshot(path)
    shutil.rmtree(path / "view-rgb")
    with pytest.raises(BankError, match="is damaged"):
        load_snapshot(path)


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        save_snapshot(make_bank(), tmp_path / "file", 1)


def test_a_full_disk_keeps_the_snapshot_before_and_leaves_nothing_aside(small_disk):
    disk = small_disk(1)
    save_snapshot(make_bank(), disk, 1)
    said = r"snap-2 cannot be written: the disk .* is full \(\d\.\d MB needed, \d\.\d MB free\); older .* stay"
    with pytest.raises(StorageError, match=said):
        save_snapshot(make_bank(20_000, dim=16), disk, 2)
    assert [path.name for path in disk.iterdir()] == ["snap-1"]
    assert same(load_snapshot(disk / "snap-1"), make_bank())


def test_rows_that_are_not_finite_are_never_written(tmp_path):
    save_snapshot(make_bank(), tmp_path, 1)
    bank = make_bank()
    bank.views["rgb"][3, 2] = np.nan
    with pytest.raises(BankError, match=r"of step 2 is not written: rgb row of slot 3 has length nan"):
        save_snapshot(bank, tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["snap-1"]


def files_of(path):
    return sorted(found for found in path.rglob("*") if found.is_file())


def test_every_flipped_bit_is_named(tmp_path):
    path, rng = save_snapshot(make_bank(), tmp_path, 1), np.random.default_rng(0)
    silent = []
    for trial in range(80):
        file = files_of(path)[trial % len(files_of(path))]
        before = file.read_bytes()
        spoilt, bit = bytearray(before), int(rng.integers(8 * len(before)))
        spoilt[bit // 8] ^= 1 << (bit % 8)
        file.write_bytes(spoilt)
        try:
            if not same(load_snapshot(path), make_bank()):
                silent.append((file.name, bit))
        except BankError as error:
            assert "\n" not in str(error)  # noqa: PT017
        file.write_bytes(before)
    assert silent == []
    assert same(load_snapshot(path), make_bank())


def rewritten(path, change, **attrs):
    """A snapshot of the format before hashes, whose rows were changed by `change`."""
    import zarr

    group = zarr.open_group(str(path), mode="a")
    kept = {key: value for key, value in group.attrs.items() if key not in ("sums", "seal")}
    group.attrs.put(kept | {"format": 1} | attrs)
    rows = group["view-rgb"][:]
    change(rows)
    group["view-rgb"][:] = rows


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
def test_a_snapshot_without_hashes_is_read_and_its_rows_are_looked_at(tmp_path, value):
    path = save_snapshot(make_bank(), tmp_path, 1)
    rewritten(path, lambda rows: None)
    assert same(load_snapshot(path), make_bank())
    rewritten(path, lambda rows: rows[4].fill(value))
    with pytest.raises(BankError, match=r"snap-1 is damaged \(rgb row of slot 4 has length"):
        load_snapshot(path)


WRITER = """
import pathlib, numpy as np
from vidssl.mining.bank import EmbeddingBank
from vidssl.batch import Embeddings
from vidssl.mining.snapshots import save_snapshot
bank, root = EmbeddingBank(20000, 16, ("a", "b")), pathlib.Path(ROOT)
for step in range(FIRST, 10**6):
    rows = np.zeros((20000, 16)); rows[:, step % 16] = 1
    bank.push(Embeddings({"a": rows, "b": rows}, np.arange(20000), step, 0))
    save_snapshot(bank, root, step)
"""


def test_kills_while_writing_leave_whole_snapshots_and_their_leftovers_are_swept(tmp_path):
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(["vidssl.mining.snapshots", "zarr"])  # the imports are paid once
    rng, first = np.random.default_rng(0), 1
    for _ in range(6):
        child = forked.Process(target=exec, args=(WRITER, {"ROOT": str(tmp_path), "FIRST": first}))
        child.start()
        before = first
        deadline = time.monotonic() + 60
        while first < before + 2 and time.monotonic() < deadline:  # at least two more were finished
            time.sleep(0.01)
            newest = latest_snapshot(tmp_path)
            first = int(newest.name.split("-")[1]) + 1 if newest else 1
        time.sleep(rng.uniform(0, 0.1))
        child.kill()
        child.join()
        child.close()
        found = [path for path in tmp_path.iterdir() if path.name.startswith("snap-")]
        assert found
        for path in found:
            bank = load_snapshot(path)
            step = int(path.name.split("-")[1])
            assert bank.step == step
            for table in bank.views.values():
                assert (table[:, step % 16] == 1).all()
        first = max(int(path.name.split("-")[1]) for path in found) + 1
    sweep(tmp_path)
    assert not [path for path in tmp_path.iterdir() if "." in path.name]


def test_a_sweep_leaves_a_living_writer_alone(tmp_path):
    (tmp_path / f".snap-3.{socket.gethostname()}-{os.getpid()}-1-1.part").mkdir()
    assert sweep(tmp_path) == 0
    assert sweep(tmp_path / "nowhere") == 0
