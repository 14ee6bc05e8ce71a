"""The driver of one training run: check → bank → Ray Train → evaluation → report.

The driver's main thread only watches: it prints the live lines out of log.jsonl and turns Ctrl-C and SIGTERM into a stop
flag in the run folder, which the workers answer with a checkpoint. Ray Train itself runs on a second thread, because on
the main thread it would take the signals for itself and abort without one.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from cluster.bank.spec import BankSpec
from cluster.launch import check_resources, in_ray_job, ray_session, resolve_device
from cluster.training.checks import check_recipe, steps_of
from cluster.training.runlog import live_line
from vidssl import errors
from vidssl.errors import CheckpointError, DataError, VidsslError
from vidssl.methods import bank_views_of, mining_of
from vidssl.mining.plan import plan_from
from vidssl.recipe import Recipe
from vidssl.saved.checkpoint import latest_step, read_checkpoint
from vidssl.saved.run_folder import RunFolder, open_run

__all__ = ["Outcome", "prepare", "resume", "run_folder_of", "train"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How a training run ended."""

    folder: RunFolder
    steps: int
    total_steps: int
    seconds: float
    stopped: bool


def run_folder_of(recipe: Recipe) -> RunFolder:
    """The folder of a new run; inside a submitted job a relative one lies under the home directory, which outlives the job."""
    storage = Path(recipe.trainer.storage).expanduser()
    if not storage.is_absolute() and in_ray_job():
        storage = Path.home() / "vidssl" / storage
    return RunFolder((storage / recipe.name).resolve())


def prepare(recipe: Recipe, fresh: bool = False, argv: Sequence[str] = ()) -> RunFolder:
    """Check a new run as far as that can be done without a cluster, and make its folder with the resolved recipe.

    Raises:
        VidsslError: anything that would stop it later.
    """
    manifest = check_recipe(recipe)
    recipe = _with_absolute_paths(recipe, manifest.root)
    folder = run_folder_of(recipe)
    if folder.recipe.is_file() and not fresh:
        hint = f"--resume {folder.path}" if latest_step(folder) or recipe.phases else "--fresh"
        raise CheckpointError(
            f"{folder.path} already holds a run; type {hint} to go on, name=OTHER for another run, or --fresh to begin again"
        )
    try:
        if fresh:
            shutil.rmtree(folder.path, ignore_errors=True)
        folder.path.mkdir(parents=True, exist_ok=True)
        for path in () if recipe.phases else (folder.checkpoints, folder.bank, folder.evaluation):
            path.mkdir(exist_ok=True)
        folder.recipe.write_text(recipe.to_yaml())
        folder.facts.write_text(json.dumps(_facts(manifest.hash, argv), indent=1))
    except OSError as error:
        raise DataError(
            f"the run folder {folder.path} cannot be written ({error.strerror}); type trainer.storage=FOLDER"
        ) from error
    return folder


def _with_absolute_paths(recipe: Recipe, data: Path) -> Recipe:
    """A run, and its workers on other machines, must find their files from any folder."""
    given = {"first_from": recipe.method.first_from, "second_from": recipe.method.second_from}
    found = {key: str(Path(path).expanduser().resolve()) for key, path in given.items() if path is not None}
    return recipe.model_copy(update={"data": str(data), "method": recipe.method.model_copy(update=found)})


def resume(path: str | Path, overrides: Sequence[str] = ()) -> tuple[RunFolder, Recipe]:
    """The folder and recipe of a run that goes on.

    Raises:
        CheckpointError: no run there, nothing to resume, or words that would change it.
    """
    folder = open_run(path)
    if overrides:
        raise CheckpointError(
            f"a resumed run keeps its recipe, so '{overrides[0]}' cannot be set; type only: vidssl train --resume {path}"
        )
    recipe = folder.read_recipe()
    if recipe.phases:  # each phase looks at its own checkpoints
        return folder, recipe
    step = latest_step(folder)
    if step is None:
        raise CheckpointError(f"{path} has no checkpoint to go on from; begin again with --fresh")
    meta, _, _ = read_checkpoint(folder, step)
    manifest = check_recipe(recipe)
    if meta.data != manifest.hash:
        raise CheckpointError(
            f"{recipe.data} holds other data (hash {manifest.hash}) than this run was trained on ({meta.data}); restore it, or begin again with --fresh"
        )
    return folder, recipe


def train(recipe: Recipe, folder: RunFolder, say: Say = lambda line: None) -> Outcome:
    """Train `recipe` in `folder` from its last checkpoint, or from the start.

    Raises:
        VidsslError: a mistake of the user, found here or by a worker.
    """
    began = time.monotonic()
    total = steps_of(recipe)
    folder.stop_flag.unlink(missing_ok=True)
    folder.failure.unlink(missing_ok=True)
    trainer = recipe.trainer
    with ray_session(max(os.cpu_count() or 1, 1)):
        use_gpu = resolve_device(trainer)
        check_resources(trainer, use_gpu)
        say(_opening(recipe, folder, total, use_gpu))
        summary = _watch(lambda: _fit(recipe, folder, total, use_gpu), folder, total, say)
    if folder.failure.is_file():
        _raise_failure(folder)
    folder.stop_flag.unlink(missing_ok=True)
    return Outcome(folder, summary["step"], total, time.monotonic() - began, summary["stopped"])


def _fit(recipe: Recipe, folder: RunFolder, total: int, use_gpu: bool) -> dict[str, Any]:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from cluster.training.worker import Job, worker_loop

    trainer, manifest = recipe.trainer, check_recipe(recipe)
    spec = _bank_spec(recipe, folder, manifest)
    bank = None
    if spec is not None:
        from cluster.bank.actor import start_bank

        samples = manifest.samples
        label = samples.label.astype("int64") if spec.labelled else None
        bank = start_bank(spec, samples.group.astype("int64"), label)
    job = Job(recipe, folder.path, manifest.root, total, bank, spec)
    ray_files = folder.path / ".ray"
    shutil.rmtree(ray_files, ignore_errors=True)  # ours are the checkpoints; a stale folder of Train's would be resumed
    result = TorchTrainer(
        worker_loop,
        train_loop_config={"job": job},
        torch_config=TorchConfig(timeout_s=300),
        scaling_config=ScalingConfig(
            num_workers=trainer.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": trainer.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            name=recipe.name,
            storage_path=str(ray_files),
            failure_config=FailureConfig(max_failures=trainer.max_failures, controller_failure_limit=3),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    ).fit()
    shutil.rmtree(ray_files, ignore_errors=True)
    return result.return_value or {"step": 0, "stopped": False}


def _bank_spec(recipe: Recipe, folder: RunFolder, manifest: Any) -> BankSpec | None:
    if not recipe.mines or recipe.mining.where != "actor":
        return None
    mining, trainer = recipe.mining, recipe.trainer
    main, aux = bank_views_of(recipe)
    return BankSpec(
        n_slots=len(manifest),
        dim=recipe.model.dim,
        main=main,
        aux=aux,
        plan=plan_from(mining_of(recipe), len(manifest.training_rows())),  # only these slots are ever filled
        root=str(folder.bank),
        data_hash=manifest.hash,
        world=trainer.workers,
        deterministic=trainer.deterministic,
        lookahead=mining.lookahead,
        max_staleness_steps=mining.max_staleness_steps,
        backend=mining.backend,
        threads=trainer.cpus_per_worker,
        snapshot_every_steps=mining.snapshot_every_steps,
        keep=trainer.keep,
        labelled=bool((manifest.samples.label >= 0).any()),
    )


def _watch(fit: Callable[[], dict[str, Any]], folder: RunFolder, total: int, say: Say) -> dict[str, Any]:
    """Run `fit` on a thread; meanwhile say the new log rows and pass on stop requests."""
    box: dict[str, Any] = {}

    def run() -> None:
        try:
            box["summary"] = fit()
        except BaseException as error:  # handed to the main thread, which raises it
            box["error"] = error

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    with _stop_on_signal(folder, say):
        thread.start()
        for row in _new_rows(folder, thread, say):
            say(live_line(row, total))
    if "error" in box and not folder.failure.is_file():
        raise box["error"]
    return box.get("summary", {"step": 0, "stopped": False})


def _new_rows(folder: RunFolder, thread: threading.Thread, say: Say) -> Iterator[dict[str, float]]:
    """Rows as rank 0 logs them; a restarted attempt rewrites the file, its repeated steps are not said again."""
    seen, offset, inode, alive = (latest_step(folder) or 0) - 1, 0, 0, True
    while alive:
        alive = thread.is_alive()
        if folder.log.is_file():
            now = folder.log.stat()
            if now.st_ino != inode or now.st_size < offset:
                if inode and offset:
                    say(f"a worker was lost; all go on from step {latest_step(folder) or 0}")
                inode, offset = now.st_ino, 0
            with folder.log.open() as file:
                file.seek(offset)
                whole, _, _ = file.read().rpartition("\n")
            offset += len(whole) + 1 if whole else 0
            for row in map(json.loads, whole.splitlines()):
                if row["step"] > seen:
                    seen = row["step"]
                    yield row
        thread.join(0.3)


@contextmanager
def _stop_on_signal(folder: RunFolder, say: Say) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if folder.stop_flag.exists():
            say("stopped at once; the run can be resumed from its last checkpoint")
            os._exit(128 + number)
        folder.stop_flag.touch()
        say("stopping: a checkpoint is written first (again to stop at once)")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _facts(data_hash: str, argv: Sequence[str]) -> dict[str, Any]:
    packages = (
        "vidssl",
        "torch",
        "nvidia-dali-cuda130",
        "webdataset",
        "ray",
        "faiss-gpu",
        "zarr",
        "tensorboard",
        "numpy",
        "av",
    )
    return {
        "data_hash": data_hash,
        "command": "vidssl " + " ".join(argv),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in packages},
    }


def _opening(recipe: Recipe, folder: RunFolder, total: int, use_gpu: bool) -> str:
    trainer = recipe.trainer
    where = "GPU" if use_gpu else f"{trainer.cpus_per_worker} core(s)"
    start = latest_step(folder) or 0
    again = f", resumed at step {start}" if start else ""
    return f"{recipe.name}: {recipe.method.name} on {recipe.model.backbone}, {trainer.workers} worker(s) with {where} each, {total} steps of {trainer.batch * trainer.workers} videos{again} → {folder.path}"


def _raise_failure(folder: RunFolder) -> None:
    said = json.loads(folder.failure.read_text())
    kind = getattr(errors, said["kind"], VidsslError)
    raise kind(said["sentence"])
