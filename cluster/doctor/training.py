"""What would this training need, and what would it wait for? Counted, and measured here for some seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from cluster.doctor.memory import ClipsWithGradient, memory_lines
from cluster.status import time_words
from cluster.training.checks import Checked, check
from vidssl.batch import ClipBatch, Positives
from vidssl.methods import Method, StepOutput, bank_views_of, build_method
from vidssl.recipe import Recipe, load_recipe, phase_recipe

__all__ = ["looked_at"]

SECONDS = 5.0
"""How long the loader and the step are measured."""
_FEW = 2
"""Videos of the step that is measured on a CPU, where a published batch takes minutes."""


def looked_at(name: str, words: Sequence[str]) -> Iterator[str]:
    """Lines about a training; each phase of a recipe that has some.

    Args:
        name: A recipe.
        words: `key=value`, data= among them.

    Raises:
        VidsslError: a recipe or data that cannot be used; what a training would refuse is refused here.
    """
    checked = check(load_recipe(name, words), sources=False)
    yield from _copy(checked.recipe)
    if not checked.recipe.phases:
        yield from _one(checked)
        return
    for phase in checked.recipe.phases:
        own = phase_recipe(checked.recipe, phase)
        yield from _one(check(own, phase.sources, sources=False))


def _one(checked: Checked) -> Iterator[str]:
    recipe, rows = checked.recipe, len(checked.manifest.training_rows())
    trainer, device = recipe.trainer, _device(recipe)
    logging.disable(
        logging.WARNING
    )  # of a second stream that has random weights here: a training gets them from its source
    method = build_method(recipe, recipe.seed, len(checked.manifest), checked.manifest.training_rows())
    logging.disable(logging.NOTSET)
    together = trainer.batch * trainer.workers
    yield (
        f"{recipe.name}: {recipe.method.name} on {recipe.model.backbone}, {checked.total_steps} steps of {together} videos "
        f"({checked.total_steps * together / rows:.1f} passes over {rows} training videos)"
    )
    cores = trainer.workers * trainer.cpus_per_worker
    yield f"  asks Ray for            {trainer.workers} worker(s), {cores} core(s), {trainer.workers if device.type == 'cuda' else 0} GPU(s)"
    weights = _bytes(method.state_dict()) + 2 * sum(4 * p.numel() for p in method.parameters() if p.requires_grad)
    yield f"  a checkpoint            {weights / 1e6:.1f} MB; {trainer.keep} kept: {trainer.keep * weights / 1e6:.1f} MB in {trainer.storage}"
    if recipe.mines and recipe.mining.where == "actor":
        views = len(set(bank_views_of(recipe)))
        bank = len(checked.manifest) * views * recipe.model.dim * (2 if recipe.mining.bank_dtype != "float32" else 4)
        yield f"  the bank                {bank / 1e6:.1f} MB: {len(checked.manifest)} videos × {views} views × {recipe.model.dim}"
    clips_s, batch = _loader_rate(checked, device)
    counted = ClipsWithGradient()
    counted.watch(method)
    step_s, few = _step_seconds(method.to(device), recipe, batch, device, counted)
    yield from memory_lines(recipe, method, batch, counted.clips / few, device)
    yield from _limits(checked, clips_s, step_s, few)


def _copy(recipe: Recipe) -> Iterator[str]:
    """Where the run's copy is kept: whether this machine may write there, and what is there already."""
    if recipe.trainer.copy_to is None:
        return
    from cluster.copies.claim import claimed
    from cluster.copies.fetch import step_there
    from cluster.copies.place import copy_place
    from pipelines.dataset.remote import RemoteStore

    store, waits = RemoteStore(copy_place(recipe.trainer.copy_to, recipe.name)), list[str]()
    with claimed(store, "doctor", waits.append):
        step = step_there(store, waits.append)
    yield from waits
    there = "no run is there yet" if step is None else f"a run up to step {step} is there"
    yield f"{store.address} can be written: {there}"


def _limits(checked: Checked, clips_s: float, step_s: float, few: int) -> Iterator[str]:
    trainer, per_video = checked.recipe.trainer, checked.recipe.clips.per_video
    clips = trainer.batch * per_video
    data_s, about = clips / clips_s, "" if few == trainer.batch else f", scaled from {few} videos"
    yield f"  the loader              {clips_s:.1f} clips/s of one worker (loader.threads={checked.recipe.loader.threads}): a batch in {time_words(data_s)}"
    yield f"  the step                {time_words(step_s)} for {clips} clips without mining{about}"
    slower, hours = max(data_s, step_s), max(data_s, step_s) * checked.total_steps / 3600
    if data_s > step_s:
        what = f"data is the limit: the step would wait {100 * (1 - step_s / data_s):.0f} % of the time; try more loader.threads"
    else:
        what = f"the step is the limit: the loader could be {step_s / data_s:.1f} times slower"
    yield f"  {what}; on workers like this one about {time_words(slower)} a step, {time_words(3600 * hours)} in all"


def _device(recipe: Recipe) -> torch.device:
    wanted = recipe.trainer.device
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _loader_rate(checked: Checked, device: torch.device) -> tuple[float, ClipBatch]:
    from pipelines.loader import LoaderSpec, TrainLoader

    recipe = checked.recipe
    spec = LoaderSpec(
        recipe.clips,
        recipe.augment,
        recipe.loader,
        recipe.views,
        recipe.trainer.batch,
        recipe.seed,
        recipe.model.flow_channels,
    )
    place: dict[str, Any] = {"rank": 0, "world": recipe.trainer.workers, "device": device}
    loader = TrainLoader(checked.manifest, spec, **place, split=checked.manifest.training_split)
    try:
        batch = next(loader)  # files are opened, buffers grow
        for _ in range(recipe.loader.prefetch):  # what was made meanwhile is not counted
            next(loader)
        began, made = time.perf_counter(), 0
        while made < 2 or time.perf_counter() - began < SECONDS:
            batch, made = next(loader), made + 1
        seconds = time.perf_counter() - began
    finally:
        loader.close()
    return made * recipe.trainer.batch * recipe.clips.per_video / seconds, batch


def _step_seconds(
    method: Method, recipe: Recipe, batch: ClipBatch, device: torch.device, counted: ClipsWithGradient
) -> tuple[float, int]:
    """Seconds of a worker's step, without its optimizer and without others, and of how many videos that was measured."""
    few = batch.taken(slice(recipe.trainer.batch if device.type == "cuda" else min(_FEW, recipe.trainer.batch)))
    mined = Positives.none(few.size, 1, recipe.model.dim, recipe.mining.stages)
    torch.set_num_threads(recipe.trainer.cpus_per_worker)
    method.train()
    seconds: list[float] = []
    while len(seconds) < 2 or (sum(seconds) < SECONDS and len(seconds) < 10):
        began, counted.clips = time.perf_counter(), 0
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.trainer.precision == "bf16"):
            out: StepOutput = method(few, mined if method.needs_positives(few.step) else None)
        out.loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds) * recipe.trainer.batch / few.size, few.size


def _bytes(state: dict[str, torch.Tensor]) -> int:
    return sum(rows.numel() * rows.element_size() for rows in state.values())
