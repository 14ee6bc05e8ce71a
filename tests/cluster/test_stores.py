"""The commands on a pack in a store, as real processes: what goes through when the store is away for 20 seconds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.training.small_runs import RECIPE
from tests.pipelines.footage import write_video
from tests.pipelines.stores import BUCKET, KEYS, S3, environment
from vidssl.marks import MARK

pytestmark = [pytest.mark.usefixtures("usual_signals"), pytest.mark.ray, pytest.mark.slow]

AWAY_S = 20.0
ADDRESS = f"s3://{BUCKET}/packed"


def command(s3: S3, folder: Path, *words: str, hear: Callable[[str], None] = lambda line: None) -> str:
    """One of our commands, that has to end well; `hear` is told every line as it comes. Returns all of them."""
    env = environment(**s3.environment, XDG_CACHE_HOME=str(folder / "cache"), OMP_NUM_THREADS="1")
    line = [sys.executable, "-m", "cluster", *words]
    lines: list[str] = []
    with subprocess.Popen(
        line, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as done:
        assert done.stdout is not None
        for said in done.stdout:
            lines.append(said)
            hear(said)
    assert done.returncode == 0, "".join(lines)
    return "".join(lines)


def away_when(s3: S3, pattern: str) -> Callable[[str], None]:
    """Closes the store's door for 20 seconds, once, when a line matches."""
    left = [pattern]

    def hear(line: str) -> None:
        if left and re.search(left[0], line):
            left.clear()
            s3.go_away()
            threading.Timer(AWAY_S, s3.come_back).start()

    return hear


def waited(said: str) -> bool:
    back = re.search(r"is back after (\d+) s: going on", said)
    return "cannot be reached (connection refused): waiting for it" in said and back is not None and int(back[1]) >= 15


def losses(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def test_a_store_that_is_away_for_20_seconds_costs_packing_and_training_nothing_but_time(s3, tmp_path):
    for number in range(48):
        write_video(tmp_path / "videos" / "ab"[number % 2] / f"{number:02d}.mp4", frames=24, width=128, height=128)
    (tmp_path / "small.yaml").write_text(RECIPE)
    words = ("trainer.steps=24", "trainer.workers=1", "loader.prefetch=1")

    command(s3, tmp_path, "pack", "folder", "videos", "packed", "shard_mb=0.05")
    said = command(
        s3, tmp_path, "pack", "folder", "videos", ADDRESS, "shard_mb=0.05", hear=away_when(s3, "packing 48/48")
    )
    assert waited(said)
    near = {path.name: path.read_bytes() for path in (tmp_path / "packed").iterdir() if not path.name.startswith(".")}
    assert {name: data for name, data in s3.objects("packed").items() if name != MARK} == near

    command(s3, tmp_path, "train", "small.yaml", "data=packed", "trainer.storage=near", *words)
    far = ("trainer.storage=far", "loader.cache=cached", "loader.cache_gb=0.0005")
    told = command(
        s3, tmp_path, "train", "small.yaml", f"data={ADDRESS}", *words, *far, hear=away_when(s3, r"step +6/")
    )
    assert waited(told)
    assert "begin again" not in told
    assert losses(tmp_path / "far/small") == losses(tmp_path / "near/small")
    assert (tmp_path / "far/small/skipped.jsonl").exists() is (tmp_path / "near/small/skipped.jsonl").exists()
    kept = [path for path in (tmp_path / "cached").rglob("*") if path.is_file() and path.parent != tmp_path / "cached"]
    assert 0 < sum(path.stat().st_size for path in kept) <= 500_000

    assert "is whole: 48 samples" in command(s3, tmp_path, "verify", ADDRESS)
    command(s3, tmp_path, "evaluate", "far/small")
    command(s3, tmp_path, "embed", "far/small")
    command(s3, tmp_path, "report", "far/small")
    written = b"".join(path.read_bytes() for path in (tmp_path / "far").rglob("*") if path.is_file())
    assert not any(secret.encode() in written or secret in said + told for secret in KEYS.values())
