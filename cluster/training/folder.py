"""The folder of a run is made, taken up again and cleared here: only what we made is ever removed."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from cluster.training.plan import Plan
from vidssl.errors import BusyError, CheckpointError
from vidssl.files import remove_parts, storage_error, write_json, write_whole
from vidssl.marks import mark, mark_of, refuse_foreign, remove_marked
from vidssl.saved.run_folder import INSIDE, KIND, TOP, RunFolder

__all__ = ["clear", "enter", "keep_words", "ray_files"]

_PACKAGES = ("vidssl", "torch", "nvidia-dali-cuda130", "webdataset", "ray", "faiss-gpu", "zarr", "tensorboard", "numpy", "av")  # fmt: skip


def enter(plan: Plan, argv: Sequence[str], device: str) -> tuple[str, ...]:
    """Make the folder of a new run, or take up one that goes on; whoever calls this holds its lock.

    Args:
        plan: What is going to be done.
        argv: The command, for the run's facts.
        device: cpu or cuda, for the same.

    Returns:
        Sentences for the user.

    Raises:
        BusyError: another command began a run there since the plan was made.
        StorageError: the folder cannot be written.
    """
    folder = plan.folder
    if not plan.exists and not plan.fresh and folder.recipe.is_file():
        raise BusyError(f"{folder.path} was begun by another command just now; type the same again to go on with it")
    try:
        left = clear(folder) if plan.fresh else []
        if plan.exists:
            _take_up(plan)
        else:
            _make(plan, argv, device)
    except OSError as error:
        raise storage_error(error, folder.path, instead="type trainer.storage=FOLDER, or make room") from error
    return (f"left alone in {folder.path}, because no run made it: {', '.join(left)}",) if left else ()


def clear(folder: RunFolder) -> list[str]:
    """Remove what a run made, its phases included; returns the names of what it did not make.

    Raises:
        DataError: the folder does not carry a run's mark.
        OSError: something cannot be removed.
    """
    refuse_foreign(folder.path, KIND, "remove it yourself if it may go")
    if not folder.path.is_dir():
        return []
    for phase in (path for path in folder.path.iterdir() if path.is_dir() and not path.is_symlink()):
        found = mark_of(phase)
        if found is not None and found.kind == KIND:
            clear(RunFolder(phase))
    for name, patterns in INSIDE.items():
        for inner in (path for path in folder.path.glob(name) if path.is_dir() and not path.is_symlink()):
            _clear_inside(inner, patterns)
    return remove_marked(folder.path, KIND, TOP)


def keep_words(plan: Plan) -> None:
    """Write down words that were typed for a run that is there: where its copy is, with how many workers it goes on.

    Raises:
        OSError: the recipe cannot be written.
    """
    recipe = plan.folder.recipe
    if recipe.read_text() != plan.recipe.to_yaml():
        write_whole(recipe, plan.recipe.to_yaml())


def ray_files(folder: RunFolder) -> Path:
    """Where Ray Train keeps its own things while it runs; nothing of it outlives a training."""
    return folder.path / ".ray"


def _clear_inside(folder: Path, patterns: Sequence[str]) -> None:
    for path in {path for pattern in patterns for path in folder.glob(pattern)}:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with suppress(OSError):  # refused by the system where anything is in it
        folder.rmdir()


def _take_up(plan: Plan) -> None:
    """What a killed attempt left is removed; words that change no number may have been typed anew."""
    folder = plan.folder
    shutil.rmtree(ray_files(folder), ignore_errors=True)
    remove_parts(folder.path)
    keep_words(plan)
    facts: dict[str, object] = {}
    with suppress(CheckpointError):  # a damaged one stays as it is: nothing that trains needs it
        facts = folder.read_facts()
    if (
        facts and facts.get("steps") != plan.checked.total_steps
    ):  # other workers take other steps; `vidssl status` reads it
        write_json(folder.facts, {**facts, "steps": plan.checked.total_steps})


def _make(plan: Plan, argv: Sequence[str], device: str) -> None:
    folder = plan.folder
    made: list[Path] = []
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        mark(folder.path, KIND)
        made = [] if plan.recipe.phases else [folder.checkpoints, folder.bank, folder.evaluation]
        for path in made:
            path.mkdir(exist_ok=True)
        write_json(folder.facts, _facts(plan, argv, device))
        write_whole(folder.recipe, plan.recipe.to_yaml())  # the last: a folder with a recipe is a run
    except OSError:
        with suppress(OSError):
            clear(folder)
        raise


def _facts(plan: Plan, argv: Sequence[str], device: str) -> dict[str, object]:
    flow = plan.checked.manifest.flow
    told: dict[str, object] = {} if flow is None else {"flow": flow.encoding}
    return told | {
        "data_hash": plan.checked.manifest.hash,
        "command": "vidssl " + " ".join(argv),
        "steps": plan.checked.total_steps,
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": device,
        "versions": {name: version(name) for name in _PACKAGES},
    }
