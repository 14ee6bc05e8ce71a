"""A run that has ended and has its copy in a store, and words to type others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import cluster.copies.claim
import cluster.copies.keep
from cluster.training.verb import TrainWords, run_train
from tests.cluster.copies.copied_runs import ALONE
from tests.cluster.training.small_runs import RECIPE
from tests.pipelines.stores import BUCKET


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """What takes seconds among machines takes parts of one here."""
    monkeypatch.setattr(cluster.copies.keep, "EVERY_S", 0.1)
    monkeypatch.setattr(cluster.copies.claim, "BEAT_S", 0.2)
    monkeypatch.setattr(cluster.copies.claim, "_LOOK_S", 0.1)
    monkeypatch.setattr(cluster.copies.claim, "STALE_S", 1.0)


@pytest.fixture
def typed(packed, tmp_path):
    """The words of a run of 24 steps; `home` is its storage, which stands for a machine."""

    def typed(home: str, *words: str, to: str = "runs", text: str = RECIPE, **options: object) -> TrainWords:
        (tmp_path / "small.yaml").write_text(text)
        own = [f"data={packed}", f"trainer.storage={tmp_path / home}", f"trainer.copy_to=s3://{BUCKET}/{to}"]
        return TrainWords(str(tmp_path / "small.yaml"), [*own, *ALONE, *words], **options)  # type: ignore[arg-type]

    return typed


@pytest.fixture(scope="module")
def ended(packed, s3_server, tmp_path_factory) -> Path:
    """The storage of a run that has ended, and has its copy below `ended`."""
    home = tmp_path_factory.mktemp("ended")
    (home / "small.yaml").write_text(RECIPE)
    words = [f"data={packed}", f"trainer.storage={home}", f"trainer.copy_to=s3://{BUCKET}/ended", *ALONE]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.copies.keep, "EVERY_S", 0.1)
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        assert run_train(TrainWords(str(home / "small.yaml"), words), print, None) == 0
    return home


@pytest.fixture
def again(ended, s3, tmp_path):
    """That run in a storage of its own, with a copy of its own."""

    def again(home: str | None, to: str | None) -> None:
        if home is not None:
            shutil.copytree(ended / "small", tmp_path / home / "small")
        if to is not None:
            s3.copy("ended/small", f"{to}/small")

    return again
