"""Real trainings on disks that fail and on videos that are damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.training.driver import train
from cluster.training.plan import plan_resume, plan_run
from cluster.training.skipped import SkippedVideos
from pipelines.dataset.manifest import Manifest, load_manifest
from pipelines.loader import LoaderSpec, TrainLoader
from pipelines.loading.stream import BadSample
from tests.pipelines.faults import failing_disk, faults
from tests.pipelines.small_packs import damaged_copy, make_pack
from vidssl.recipe import Recipe, load_recipe
from vidssl.saved.run_folder import RunFolder

RECIPE = """\
name: small
clips: {frames: 4, stride: 2, size: 32}
model: {backbone: tiny, dim: 16, width: 4}
method: {name: infonce, view: rgb, queue: 24, momentum: 0.9}
trainer: {workers: 1, batch: 4, steps: 8, checkpoint_every_steps: 4, log_every_steps: 1}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_pack(tmp_path_factory.mktemp("whole") / "pack", "h264")


def recipe(folder: Path, data: Path, *words: str) -> Recipe:
    (folder / "small.yaml").write_text(RECIPE)
    return load_recipe(str(folder / "small.yaml"), [f"data={data}", f"trainer.storage={folder}", *words])


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def windows_seen(manifest: Manifest, wanted: Recipe, steps: int) -> Iterator[int]:
    """What `data/seen` must be where no video is skipped: from a loader of this process, on a disk that is well."""
    spec = LoaderSpec(wanted.clips, wanted.augment, wanted.loader, wanted.views, wanted.trainer.batch, wanted.seed)
    loader = TrainLoader(manifest, spec, rank=0, world=1, device=torch.device("cpu"))
    for _ in range(steps):
        batch = loader.next()
        yield zlib.crc32(np.stack([batch.instance.numpy(), batch.start[:, 0].numpy()]).tobytes()) & 0xFFFFFF
    loader.close()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data's own settings, read inside Ray Train
@pytest.mark.slow  # two trainings
def test_each_skipped_video_is_named_in_the_run_folder_and_tried_again_by_a_resumed_run(whole, tmp_path, ray_cluster):
    bad = damaged_copy(whole, tmp_path / "bad", [1, 6], "body")
    said: list[str] = []
    plan = plan_run(recipe(tmp_path, bad.root))
    assert train(plan, said.append).steps == 8
    lines = [json.loads(line) for line in plan.folder.skipped.read_text().splitlines()]
    assert sorted((line["instance"], line["key"], line["shard"]) for line in lines) == [
        (1, "00000001", "shard-00000.tar"),
        (6, "00000006", "shard-00001.tar"),
    ]
    for line in lines:
        assert line["reason"].startswith(f"videos/{line['instance']}.mp4: bytes ")
        assert line["reason"].endswith(f" of {line['shard']} are not what was packed (crc32)")
        assert (line["rank"], line["step"]) in [(0, 0), (0, 1)]
    assert rows(plan.folder.path)[-1]["data/skipped"] == 2
    assert [line for line in said if line.startswith("skipped 0000000")] == [
        f"skipped {lines[0]['key']}: {lines[0]['reason']}; this one and all others are named in {plan.folder.skipped}"
    ]
    assert "skipped 2" in said[-1]

    shutil.rmtree(plan.folder.checkpoints / "step-00000008")
    for shard in range(2):  # the user copied the shards again
        shutil.copy(whole.shard_path(shard), bad.shard_path(shard))
    again = plan_resume(plan.folder.path)
    assert train(again, said.append).steps == 8
    assert len(plan.folder.skipped.read_text().splitlines()) == 2
    assert [row["data/skipped"] for row in rows(plan.folder.path)[4:]] == [0, 0, 0, 0]
    assert [row["data/seen"] for row in rows(plan.folder.path)[4:]] == list(
        windows_seen(load_manifest(whole.root), again.recipe, 8)
    )[4:]


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_of_three_epochs_loses_no_video_when_one_read_in_twenty_fails(tmp_path):
    from tests.pipelines.small_packs import encode, moving, write_pack

    videos = [encode(moving(number), 24, 128, 128, "h264") for number in range(48)]
    pack = write_pack(tmp_path / "pack", "h264", videos, [(128, 128)] * 48)
    wanted = recipe(tmp_path, pack.root, "trainer.steps=null", "trainer.epochs=3")
    words = ["train", str(tmp_path / "small.yaml"), f"data={pack.root}", f"trainer.storage={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "cluster", *words, "trainer.steps=null", "trainer.epochs=3", "--no-evaluation"],
        env=failing_disk(tmp_path, one_in=20), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logged = rows(tmp_path / "small")
    assert faults(tmp_path) >= 3
    assert [row["data/seen"] for row in logged] == list(windows_seen(pack, wanted, 36))
    assert {row["data/skipped"] for row in logged} == {0}
    assert 0 < logged[-1]["data/retries"] <= faults(tmp_path)
    assert not RunFolder(tmp_path / "small").skipped.exists()
    assert "could not be read (Input/output error) and is tried again" in done.stdout
    assert f"retries {logged[-1]['data/retries']:.0f}" in done.stdout


def test_a_disk_that_does_not_take_the_line_costs_the_line_and_is_said(tmp_path):
    said: list[str] = []
    skipped = SkippedVideos(RunFolder(tmp_path / "not there"), 3, said.append)
    for key in ("00000001", "00000002"):
        skipped(BadSample(1, key, "a.mp4: broken", "shard-00000.tar", 7))
    assert len(said) == 3
    assert said[2].endswith("skipped.jsonl cannot be written (No such file or directory)")
