from __future__ import annotations

import io
from pathlib import Path

import pytest

from cluster import pack as cluster_pack
from cluster.pack import PackBar, in_ray, run_pack
from pipelines.dataset.shards import file_sha256
from pipelines.pack import PackOptions, pack
from pipelines.packing.verdict import Verdict
from pipelines.synthetic import make_motion_set
from vidssl.errors import RecipeError, StorageError

VIDEOS = 30


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_motion_set(tmp_path_factory.mktemp("videos"), videos=VIDEOS, frames=12, size=128, seed=0)


@pytest.fixture(scope="module")
def plain(table, tmp_path_factory) -> Path:
    return pack("csv", table, tmp_path_factory.mktemp("out") / "packed", PackOptions(), workers=2).root


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())}


def test_a_small_pack_needs_no_ray_and_says_size_progress_and_result(table, plain, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(cluster_pack, "in_ray", None)
    monkeypatch.setattr(cluster_pack, "_on_cluster", lambda: False)
    manifest = run_pack("csv", table, tmp_path / "out", [], workers=2)
    told = capfd.readouterr().err.splitlines()
    assert checksums(tmp_path / "out") == checksums(plain)
    assert told[0].startswith(f"{VIDEOS} videos of ")
    assert "of shards and" in told[0]
    assert told[-1].startswith(f"packing {VIDEOS}/{VIDEOS}, 0 rejected, ")
    run_pack("csv", table, tmp_path / "out", [])
    said = capfd.readouterr().err
    assert said == f"nothing to do: {VIDEOS} of {VIDEOS} packed in {tmp_path / 'out'} (data {manifest.hash})\n"


@pytest.mark.ray
@pytest.mark.slow
def test_ray_tasks_make_the_same_bytes(ray_cluster, table, plain, tmp_path):
    pack("csv", table, tmp_path / "out", workers=2, run=in_ray)
    assert checksums(tmp_path / "out") == checksums(plain)


@pytest.mark.ray
def test_an_error_in_a_task_comes_back_as_one_sentence(ray_cluster, table, tmp_path, monkeypatch):
    def full(jobs, work):
        return OSError(28, "No space left on device")

    monkeypatch.setattr(cluster_pack, "_batch", full)
    with pytest.raises(
        StorageError, match=r"the disk .* is full \(.* free\); make room and type the same command again"
    ):
        pack("csv", table, tmp_path / "out", workers=2, run=in_ray)


def test_a_cluster_is_used_whatever_the_number_of_videos(table, tmp_path, monkeypatch):
    used = []

    def noted(jobs, work, workers):
        used.append(workers)
        return cluster_pack_in_threads(jobs, work, 2)

    from contextlib import nullcontext

    from pipelines.pack import in_threads as cluster_pack_in_threads

    monkeypatch.setattr(cluster_pack, "_on_cluster", lambda: True)
    monkeypatch.setattr(cluster_pack, "cluster_cores", lambda: 7)
    monkeypatch.setattr(cluster_pack, "in_ray", noted)
    monkeypatch.setattr("cluster.launch.ray_session", lambda cores: nullcontext())
    run_pack("csv", table, tmp_path / "out", [])
    assert used == [7]


def test_a_word_that_is_no_option_is_refused_before_anything_is_made(table, tmp_path):
    with pytest.raises(RecipeError, match="unknown option 'codek'; did you mean 'codec'"):
        run_pack("csv", table, tmp_path / "out", ["codek=vp9"])
    assert not (tmp_path / "out").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "lines"), [(io.StringIO(), 1), (Terminal(), 1)], ids=["file", "terminal"])
def test_the_bar_ends_with_one_plain_line(stream, lines):
    bar = PackBar(stream)
    bar.begin(10, 4)
    for number in range(6):
        bar.tick(Verdict("a", "rejected" if number == 0 else "packed", ""))
    bar.end()
    text = stream.getvalue()
    assert text.count("\n") == lines
    assert "packing 10/10, 1 rejected, " in text.rsplit("\r", 1)[-1]
    assert ("\r" in text) == stream.isatty()


def test_batches_hold_every_job_once_and_are_small_enough_to_spread():
    jobs = list(range(1000))
    batches = cluster_pack._batches(jobs, 4)
    assert sorted(job for batch in batches for job in batch) == jobs
    assert max(map(len, batches)) <= 32
    assert len(cluster_pack._batches(jobs[:3], 4)) == 3
