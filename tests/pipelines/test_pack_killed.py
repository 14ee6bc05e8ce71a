"""Kill `vidssl pack` at any moment, damage what lies there as a power cut does: in the end the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.dataset.shards import file_sha256
from pipelines.pack import PackOptions, pack
from tests.pipelines.footage import write_video
from vidssl.marks import LOCK

KILLS = 24
SCRIPT = """
import sys
from pathlib import Path
from pipelines.pack import PackOptions, pack
print("go", flush=True)
pack("folder", sys.argv[1], sys.argv[2], PackOptions(shard_mb=0.01, fresh=sys.argv[3] == "fresh"), workers=1)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source")
    for number in range(16):
        write_video(root / "ab"[number % 2] / f"v{number:02d}.mp4", frames=10 + 2 * number, width=128, height=128)
    (root / "a" / "bad.mp4").write_bytes(b"no video")
    return root


@pytest.fixture(scope="module")
def plain(source, tmp_path_factory) -> Path:
    return pack("folder", source, tmp_path_factory.mktemp("out") / "plain", PackOptions(shard_mb=0.01)).root


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if not path.name.startswith(LOCK)}


def killed_after(seconds: float, source: Path, out: Path, word: str = "plain") -> bool:
    """Start a real pack, kill it with SIGKILL so long after it began; False when it was done before."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = [sys.executable, "-c", SCRIPT, str(source), str(out), word]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"go\n"
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


def damage(out: Path, draw: random.Random) -> list[str]:
    """Make one staged file empty and cut another one short, as a loss of power does."""
    staged = sorted(path for path in out.glob(".staging/done/*/*") if path.name.isdigit() and path.stat().st_size)
    if len(staged) < 2:
        return []
    empty, cut = draw.sample(staged, 2)
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[: draw.randrange(1, cut.stat().st_size)])
    return [empty.name, cut.name]


@pytest.mark.slow
@pytest.mark.parametrize("word", ["plain", "fresh"])
def test_killed_at_24_random_moments_and_damaged_twice_a_pack_ends_with_the_same_bytes(source, plain, tmp_path, word):
    """`fresh` begins over another pack each time, so that its removal is killed as well."""
    draw = random.Random(20)
    kills, folder, damaged = 0, 0, []
    began = time.monotonic()
    assert not killed_after(600, source, tmp_path / "whole")
    whole = time.monotonic() - began
    while kills < KILLS:
        out = tmp_path / f"out-{folder}"
        folder += 1
        if word == "fresh":
            pack("folder", source, out, PackOptions(crf=40))
        for _ in range(6):
            kills += (killed := killed_after(draw.uniform(0, 0.7 * whole), source, out, word))
            if not killed:
                break
            if len(damaged) < 4:
                damaged += damage(out, draw)
        pack("folder", source, out, PackOptions(shard_mb=0.01, fresh=word == "fresh"))
        assert checksums(out) == checksums(plain), f"folder {folder} after {kills} kills, damaged {damaged}"
    assert len(damaged) >= 2
