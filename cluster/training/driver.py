"""The driver of one training: lock → resources → folder → bank → Ray Train. What may begin was settled by its plan."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from cluster.bank.placed import beside_words, refuse_without_memory
from cluster.bank.spec import BankSpec
from cluster.capacity import demand_of, sizes_of
from cluster.nodes import Newcomers
from cluster.quiet import end_at_once
from cluster.training.attempts import Crew, train_through
from cluster.training.checks import Checked
from cluster.training.entry import job_words, worker_loop
from cluster.training.failure import after_all_retries, read_failure
from cluster.training.folder import enter, keep_words, ray_files
from cluster.training.ground import stand_on
from cluster.training.job import Job, Summary
from cluster.training.limit import limit_of_run
from cluster.training.plan import Plan
from cluster.training.watch import Say, watch
from vidssl.lock import held, token_of
from vidssl.methods import bank_views_of, mining_of
from vidssl.mining.plan import plan_from
from vidssl.recipe import Recipe
from vidssl.saved.checkpoint import latest_step
from vidssl.saved.run_folder import RunFolder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cluster.bank.link import Link
    from pipelines.dataset.manifest import Manifest

__all__ = ["Outcome", "train"]


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    folder: RunFolder
    steps: int
    total_steps: int
    seconds: float
    stopped: bool


def train(plan: Plan, say: Say = lambda line: None, argv: Sequence[str] = ()) -> Outcome:
    """Do what `plan` says: a new run from the start, or one that goes on.

    Args:
        plan: Of one training.
        say: Prints a line.
        argv: The command, for the run's facts.

    Raises:
        BusyError: another process works in the run's folder.
        DeviceError: more than this cluster has. Nothing was made or removed by then.
        VidsslError: a mistake of the user that a worker found, or what no retry could mend.
    """
    began = time.monotonic()
    folder, total = plan.folder, plan.checked.total_steps
    with ExitStack() as open_things:
        idle = plan.finished and plan.recipe.trainer.copy_to is None  # then nothing is written
        if folder.path.exists() and not idle:  # who works there is known before a cluster is started
            open_things.enter_context(held(folder.path, "train", say))
        for note in plan.notes:
            say(note)
        if plan.finished:
            if not idle:
                keep_words(plan)
            return Outcome(folder, total, total, 0.0, False)
        [use_gpu] = stand_on([plan.recipe], folder.path, plan.checked.manifest, open_things, say)
        if (spec := _bank_spec(plan.checked, folder)) is not None:
            refuse_without_memory(spec, plan.recipe.trainer)
        open_things.enter_context(held(folder.path, "train", say))
        for note in enter(plan, argv, "cuda" if use_gpu else "cpu"):
            say(note)
        say(_opening(plan, use_gpu))
        if spec is not None and not plan.recipe.trainer.in_process:
            say(beside_words(spec))
        summary = _fitted(plan, use_gpu, say)
        if told := limit_of_run(folder, plan.recipe):
            say(told)
    return Outcome(folder, summary.step, total, time.monotonic() - began, summary.stopped)


def _fitted(plan: Plan, use_gpu: bool, say: Say) -> Summary:
    folder = plan.folder
    try:
        folder.stop_flag.unlink(missing_ok=True)
        folder.failure.unlink(missing_ok=True)
        mining = plan.recipe.mining if plan.recipe.mines else None
        crew = Crew(plan.recipe, demand_of(plan.recipe.trainer, use_gpu, mining))
        if plan.recipe.trainer.in_process:
            attempts = partial(_fit_here, plan, use_gpu)
        else:
            newcomers = crew.newcomers = Newcomers(folder.path, plan.checked.manifest.root)
            attempts = partial(
                train_through, crew, folder, lambda recipe: _fit(plan, recipe, use_gpu, newcomers.selector)
            )
        summary = watch(attempts, folder, plan.checked.total_steps, say, lambda: crew.workers)
    except Exception as error:
        failure = read_failure(folder)
        if failure is not None:
            raise failure.error() from error
        told = after_all_retries(error, folder, plan.recipe.trainer.max_failures, latest_step(folder))
        if told is error:
            raise
        raise told from error
    finally:
        with suppress(OSError):  # a disk that cannot be written has its sentence already
            folder.stop_flag.unlink(missing_ok=True)
            folder.resize_flag.unlink(missing_ok=True)
        shutil.rmtree(ray_files(folder), ignore_errors=True)
    failure = summary.failure or read_failure(folder)
    if failure is not None:
        raise failure.error()
    return summary


def _fit(plan: Plan, recipe: Recipe, use_gpu: bool, where: dict[str, str] | None) -> Summary:
    """One attempt of Ray Train, with the workers of `recipe`, on nodes whose labels are `where`."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    end_at_once()
    trainer = recipe.trainer
    job = _job(plan, recipe, _bank_actor)  # the bank lives as long as its handle here
    result = TorchTrainer(
        worker_loop,
        train_loop_config=job_words(job),
        # All ranks wait for one that waits for a disk.
        torch_config=TorchConfig(timeout_s=int(max(300, recipe.loader.patience + 60))),
        scaling_config=ScalingConfig(
            num_workers=trainer.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": trainer.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
            label_selector=where,
        ),
        run_config=RunConfig(
            name=recipe.name,
            storage_path=str(ray_files(plan.folder)),
            failure_config=FailureConfig(max_failures=trainer.max_failures, controller_failure_limit=0),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    ).fit()
    return result.return_value or Summary(0)


def _fit_here(plan: Plan, use_gpu: bool) -> Summary:
    """The one attempt of a run without Ray: one worker in this process, and the bank too."""
    from cluster.training.seat import alone
    from cluster.training.worker import run

    with ExitStack() as open_things:
        return run(_job(plan, plan.recipe, partial(_bank_here, open_things)), alone(use_gpu))


def _job(plan: Plan, recipe: Recipe, start: Callable[[BankSpec, Manifest], Link]) -> Job:
    """What the workers are handed, with the bank started where the run mines in one."""
    checked, folder = plan.checked, plan.folder
    spec = _bank_spec(replace(checked, recipe=recipe), folder)
    bank = None if spec is None else start(spec, checked.manifest)
    root, lock = checked.manifest.root, token_of(folder.path)
    return Job(plan.recipe, folder.path, root, bank, spec, plan.bank, plan.kept, plan.until, lock)


def _bank_actor(spec: BankSpec, manifest: Manifest) -> Link:
    from cluster.bank.actor import start_bank
    from cluster.bank.link import RayLink

    return RayLink(start_bank(spec, *_groups_and_labels(spec, manifest)))


def _bank_here(open_things: ExitStack, spec: BankSpec, manifest: Manifest) -> Link:
    from cluster.bank.link import LocalLink
    from cluster.bank.server import BankServer

    server = BankServer(spec, *_groups_and_labels(spec, manifest))
    open_things.callback(server.close)
    return LocalLink(server)


def _groups_and_labels(spec: BankSpec, manifest: Manifest) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    samples = manifest.samples
    return samples.group.astype("int64"), samples.label.astype("int64") if spec.labelled else None


def _bank_spec(checked: Checked, folder: RunFolder) -> BankSpec | None:
    recipe, manifest = checked.recipe, checked.manifest
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
        epoch_steps=len(manifest.training_rows()) // (trainer.batch * trainer.workers),
        max_staleness_steps=mining.max_staleness_steps,
        backend=mining.backend,
        threads=trainer.cpus_per_worker,
        miners=mining.miners,
        cpus_per_miner=mining.cpus_per_miner,
        gpus_per_miner=mining.gpus_per_miner,
        miner_dtype=mining.dtype or mining.bank_dtype,
        miner_node=mining.miner_node or "",
        shards=mining.shards,
        cpus_per_shard=mining.cpus_per_shard,
        shard_node=mining.shard_node or "",
        node=mining.bank_node or "",
        dtype=mining.bank_dtype,
        snapshot_every_steps=mining.snapshot_every_steps,
        keep=trainer.keep,
        pool_slots=mining.pool_slots,
        pool_of=mining.pool_of,
        labelled=bool((manifest.samples.label >= 0).any()),
        space=mining.space,
        refit_steps=mining.refit_steps,
        seed=recipe.seed,
    )


def _opening(plan: Plan, use_gpu: bool) -> str:
    recipe, trainer = plan.recipe, plan.recipe.trainer
    where = "GPU" if use_gpu else f"{trainer.cpus_per_worker} core(s)"
    here = " in this process" if trainer.in_process else ""
    again = f", resumed at step {plan.start}" if plan.start else ""
    fewer = "".join(f" or {number}" for number in sizes_of(trainer)[1:])
    return f"{recipe.name}: {recipe.method.name} on {recipe.model.backbone}, {trainer.workers}{fewer} worker(s){here} with {where} each, {plan.checked.total_steps} steps of {trainer.batch * trainer.workers} videos{again} → {plan.folder.path}"
