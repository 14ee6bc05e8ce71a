from __future__ import annotations

import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from pipelines.dataset.shards import COMPONENTS, FLOW, StoredSample, file_sha256, read_index, write_index, write_shard
from vidssl.errors import DataError


def samples(count: int = 5) -> list[StoredSample]:
    rng = np.random.default_rng(0)
    return [
        StoredSample(
            instance=i,
            mp4=rng.bytes(1 + 700 * i),
            gop=rng.integers(0, 99, 7 + i).astype(np.int32),
            idx=np.array([i, 2 * i, -1], np.int64),
            json=b'{"key":%d}' % i,
        )
        for i in range(count)
    ]


def test_the_index_is_byte_equal_to_that_of_dalis_own_tool(tmp_path):
    write_shard(tmp_path / "s.tar", samples())
    command = [sys.executable, "-m", "wds2idx", str(tmp_path / "s.tar"), str(tmp_path / "reference.idx")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "s.idx").read_bytes() == (tmp_path / "reference.idx").read_bytes()


def test_flow_comes_last_in_tar_and_index_and_a_shard_has_it_of_all_samples_or_of_none(tmp_path):
    both = [replace(one, flow_mp4=b"flow", flow_gop=np.arange(6, dtype=np.int32), flow_json=b"{}") for one in samples()]
    write_shard(tmp_path / "s.tar", both)
    command = [sys.executable, "-m", "wds2idx", str(tmp_path / "s.tar"), str(tmp_path / "reference.idx")]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "s.idx").read_bytes() == (tmp_path / "reference.idx").read_bytes()
    index, data = read_index(tmp_path / "s.tar"), (tmp_path / "s.tar").read_bytes()
    assert index.has_flow
    for row, one in enumerate(both):
        assert index.span(row)[1] < index.span(row, FLOW)[0]
        for name in FLOW.members:
            assert data[index.offset[name][row] :][: index.size[name][row]] == one.component(name)
    write_shard(tmp_path / "t.tar", [*both[:-1], samples()[-1]])
    assert not read_index(tmp_path / "t.tar").has_flow


def test_members_come_in_their_order_without_traces_of_time_or_owner(tmp_path):
    write_shard(tmp_path / "s.tar", samples(2))
    with tarfile.open(tmp_path / "s.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members] == [f"{i:08d}.{name}" for i in range(2) for name in COMPONENTS]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_equal_samples_make_equal_bytes_and_the_reported_checksum(tmp_path):
    first = write_shard(tmp_path / "a.tar", samples())
    assert first == write_shard(tmp_path / "b.tar", iter(samples()))
    assert first == ((tmp_path / "b.tar").stat().st_size, file_sha256(tmp_path / "b.tar"))


def test_offsets_of_the_index_lead_to_the_bytes(tmp_path):
    write_shard(tmp_path / "s.tar", samples())
    data, index = (tmp_path / "s.tar").read_bytes(), read_index(tmp_path / "s.tar")
    assert index.keys == tuple(f"{i:08d}" for i in range(5))
    for i, sample in enumerate(samples()):
        part = {name: data[index.offset[name][i] :][: index.size[name][i]] for name in COMPONENTS}
        assert part["mp4"] == sample.mp4
        assert np.array_equal(np.frombuffer(part["gop"], "<i4"), sample.gop)
        assert np.array_equal(np.frombuffer(part["idx"], "<i8"), sample.idx)


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield samples()[0]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_shard(tmp_path / "s.tar", broken())
    assert list(tmp_path.iterdir()) == []


def test_a_missing_index_is_named_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match=r"s\.idx is missing; pack again, or write it with `wds2idx s\.tar s\.idx`"):
        read_index(tmp_path / "s.tar")


def test_an_index_cut_short_is_refused(tmp_path):
    write_shard(tmp_path / "s.tar", samples())
    lines = (tmp_path / "s.idx").read_text().splitlines(keepends=True)
    (tmp_path / "s.idx").write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match=r"starts with 'v1\.2 5'; 'v1\.2 4' was expected"):
        read_index(tmp_path / "s.tar")


def test_a_tar_that_lacks_a_component_is_refused(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("00000000.mp4"))
    write_index(tmp_path / "s.tar")
    with pytest.raises(DataError, match=r"sample '00000000\.mp4' lacks gop, idx, json"):
        read_index(tmp_path / "s.tar")


def test_a_file_that_is_no_tar_is_refused(tmp_path):
    (tmp_path / "s.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match=r"s\.tar is no readable tar"):
        write_index(tmp_path / "s.tar")
