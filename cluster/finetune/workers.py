"""A fine-tuning on Ray Train workers: the driver needs no GPU, says the workers' lines and passes on who wants it to stop."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable

import torch

from cluster.finetune.fit import Fit, state_path
from cluster.finetune.task import Answers, FineTuning
from cluster.launch import cores_and_gpus, ray_session, refuse_gpus_without_cuda
from cluster.looking.who import Lookers
from cluster.nodes import refuse_blind_nodes
from cluster.quiet import end_at_once
from cluster.training.failure import after_all_retries, failure_of, read_failure, write_failure
from cluster.training.runlog import note_event
from cluster.training.watch import watch
from vidssl.errors import DeviceError, VidsslError
from vidssl.recipe import Recipe
from vidssl.saved.run_folder import RunFolder

__all__ = ["fit_on_workers", "worker_loop"]

Say = Callable[[str], None]


def fit_on_workers(task: FineTuning, say: Say) -> tuple[Answers | None, Lookers]:
    """Train and test on the cluster of RAY_ADDRESS, or on a Ray of this machine's own.

    Args:
        task: What is trained; its folder is held by the caller.
        say: Takes each line for the user.

    Returns:
        The answers (None: stopped by the user and saved), and on what devices.

    Raises:
        DeviceError: more workers than the cluster has, or than the batch can be shared among.
        VidsslError: what a worker met that no retry can mend.
    """
    recipe = task.recipe
    asked, cpus = recipe.finetune.workers, recipe.trainer.cpus_per_worker
    with ray_session(max(os.cpu_count() or 1, cpus * (asked or 1))):
        workers, use_gpu = _workers_of(recipe)
        refuse_gpus_without_cuda(use_gpu)
        refuse_blind_nodes(task.subject.home, task.subject.manifest.root, say)
        folder = RunFolder(state_path(task).parent)
        folder.path.mkdir(parents=True, exist_ok=True)
        where = "GPU" if use_gpu else f"{cpus} core(s)"
        say(
            f"fine-tuning with {workers} worker(s), {where} each, {recipe.finetune.batch // workers} videos of a step each"
        )
        return _watched(task, folder, workers, use_gpu, say), Lookers(torch.device("cuda" if use_gpu else "cpu"))


def _workers_of(recipe: Recipe) -> tuple[int, bool]:
    """How many, and whether each has a GPU."""
    (cores, gpus), cpus = cores_and_gpus(recipe.trainer.device), recipe.trainer.cpus_per_worker
    asked, batch = recipe.finetune.workers, recipe.finetune.batch
    use_gpu = gpus > 0
    most = min(gpus, cores // cpus) if use_gpu else cores // cpus
    fits = [number for number in range(1, most + 1) if batch % number == 0 and (batch // number > 1 or number == 1)]
    if asked is not None and asked not in fits:
        kind = f"{gpus} GPUs and {cores} cores" if use_gpu else f"{cores} cores"
        raise DeviceError(
            f"finetune.workers={asked} cannot share finetune.batch={batch} on this cluster of {kind}, "
            f"{cpus} core(s) each; type finetune.workers= one of {', '.join(map(str, fits)) or '0'}, or 0 for this process"
        )
    return asked or max(fits, default=1), use_gpu


def _watched(task: FineTuning, folder: RunFolder, workers: int, use_gpu: bool, say: Say) -> Answers | None:
    most = task.recipe.trainer.max_failures
    try:
        folder.stop_flag.unlink(missing_ok=True)
        folder.failure.unlink(missing_ok=True)
        return pickle.loads(watch(lambda: _fit(task, folder, workers, use_gpu), folder, 0, say))
    except Exception as error:
        failure = read_failure(folder)
        if failure is not None:
            raise failure.error() from error
        again = "; what was saved is kept, to go on type the same words again"
        told = after_all_retries(error, folder, most, None, again)
        if told is error:
            raise
        raise told from error
    finally:
        folder.stop_flag.unlink(missing_ok=True)
        shutil.rmtree(folder.path / "ray", ignore_errors=True)


def _fit(task: FineTuning, folder: RunFolder, workers: int, use_gpu: bool) -> bytes:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    end_at_once()
    trainer = task.recipe.trainer
    result = TorchTrainer(
        worker_loop,
        train_loop_config={"task": pickle.dumps(task)},
        torch_config=TorchConfig(timeout_s=int(max(300, task.recipe.loader.patience + 60))),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": trainer.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            name=task.name,
            storage_path=str(folder.path / "ray"),
            failure_config=FailureConfig(max_failures=trainer.max_failures, controller_failure_limit=3),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    ).fit()
    return result.return_value or pickle.dumps(None)


def worker_loop(config: dict[str, bytes]) -> bytes:
    """Entry of one worker: the answers, pickled, so that Ray's controller passes on bytes and imports nothing of training."""
    import ray.train
    import ray.train.torch

    task: FineTuning = pickle.loads(config["task"])
    folder = RunFolder(state_path(task).parent)
    torch.set_num_threads(task.recipe.trainer.cpus_per_worker)
    say = lambda line: note_event(folder, line)  # noqa: E731 - a line for the driver
    try:
        return pickle.dumps(Fit(task, ray.train.torch.get_device(), say, folder.stop_flag.exists).run())
    except (OSError, VidsslError) as error:
        failure = failure_of(error, folder)
        if failure.again:
            me = ray.train.get_context().get_world_rank()
            note_event(folder, f"rank {me}: {failure.sentence}; the workers begin again", restart=True)
        else:  # the others wait for this rank: only Ray can end them
            write_failure(folder, failure)
        raise
