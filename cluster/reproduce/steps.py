"""What is done, in which order? A reproduction as steps: packs, the training, what is measured on every split."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Final

from cluster.reproduce.estimates import SIZES, TWIN, Size, packing, phase_seconds, shown, size_of, supervised
from cluster.reproduce.ledger import Part, Say, Step, digest, files_hash
from cluster.reproduce.names import Measured, Reproduction, Role
from cluster.reproduce.sources import Source
from vidssl.evaluation.tables import NAMES
from vidssl.recipe import Recipe, phase_recipe
from vidssl.saved.checkpoint import latest_step, weights_hash
from vidssl.saved.phases import phase_folder, state_of
from vidssl.saved.run_folder import RunFolder

__all__ = [
    "LEFT",
    "RUN",
    "SCORES",
    "Task",
    "features_name",
    "measured_name",
    "packed_name",
    "results_folder",
    "run_of",
    "steps_of",
    "view_of",
]

RUN: Final = "run"
SCORES: Final = "scores.npz"
LEFT: Final = {
    "retrieval": "retrieval.json",
    "linear": "linear.json",
    "finetune": "finetune.json",
    "fused": "fused.json",
}
"""What a step leaves in its folder of results, by kind."""
_GROUPS, _CLIPS, _FRAMES = 9, 2, 32


@dataclass(frozen=True)
class Task:
    """A reproduction with everything that was typed.

    Attributes:
        entry: What is made again.
        home: Its folder.
        recipe: With the words of the entry and the user's, its data and place.
        words: Those words.
        sources: Data sets, that of the pre-training first.
        rate: Clips per second of the training.
    """

    entry: Reproduction
    home: Path
    recipe: Recipe
    words: tuple[str, ...]
    sources: tuple[Source, ...]
    rate: float

    @property
    def run(self) -> Path:
        """The folder of the training."""
        return self.home / RUN

    @property
    def evaluated(self) -> tuple[Source, ...]:
        """Data sets that the papers measure on."""
        return tuple(source for source in self.sources if source.data != "k400")

    def size(self, source: Source) -> Size:
        """How much a data set is."""
        return size_of(TWIN if self.entry.twin else SIZES[source.data], source.packed)


def results_folder(home: Path, step: str) -> Path:
    """Where a step leaves its results."""
    return home / "results" / step


def view_of(recipe: Recipe, role: Role) -> str:
    """The stream of a role."""
    return recipe.method.second_view if role == "second" else recipe.method.view


def run_of(task: Task, role: Role, initial: bool = False) -> tuple[Path, str | None]:
    """The run that holds the encoder of a role, and the `view=` that it takes there; None: the trained one."""
    recipe = task.recipe
    both = "joint" if role == "both" else None
    if not recipe.phases:
        return task.run, both or (view_of(recipe, role) if role == "second" else None)
    if both:
        return task.run / recipe.phases[-1].name, both
    named = [one.name for one in recipe.phases if phase_recipe(recipe, one).method.view == view_of(recipe, role)]
    if not named:  # the stream is never trained itself: the last phase holds it frozen
        return task.run / recipe.phases[-1].name, view_of(recipe, role)
    return task.run / named[0 if initial else -1], None


def features_name(role: Role, initial: bool, data: str, fold: int) -> str:
    """The step that reads features."""
    return f"features-{role}{'-initial' if initial else ''}-{data}-{fold}"


def measured_name(one: Measured, data: str, fold: int) -> str:
    """The step that leaves a number."""
    if one.task == "retrieval" or not (one.clips or one.task == "finetune"):
        return features_name(one.role, one.initial, data, fold)
    return f"{one.task}-{one.role}-{data}-{fold}"


def steps_of(task: Task) -> list[Step]:
    """All steps, each behind those that it comes from."""
    found = [_videos(task)] if task.entry.twin else []
    for source in task.sources:
        found += [_pack(task, source), *(_fold(source, fold) for fold in source.folds if fold > 1)]
    found.append(_train(task))
    for source in task.evaluated:
        for fold in source.folds:
            found += _features(task, source, fold)
            found += _supervised(task, source, fold)
    return found


def _videos(task: Task) -> Step:
    def make(say: Say) -> None:
        from pipelines.synthetic import make_official_set

        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
            each = partial(pool.map, chunksize=8)
            make_official_set(task.home / "videos", groups=_GROUPS, clips=_CLIPS, frames=_FRAMES, each=each)

    def output() -> str | None:
        lists = task.home / "videos" / "ucfTrainTestlist"
        there = sorted(path.name for path in (task.home / "videos" / "videos").glob("*/*.mp4"))
        names = ("classInd.txt", "trainlist01.txt", "testlist01.txt", "trainlist02.txt", "testlist02.txt")
        found = files_hash(lists, names)
        return (
            None if found is None or len(there) != TWIN.videos else digest({"lists": found, "videos": " ".join(there)})
        )

    facts = {"videos": f"{_GROUPS} groups of {_CLIPS} clips of {_FRAMES} frames"}
    return Step(
        "videos", f"make {TWIN.videos} motion videos in the layout of UCF101", (), facts, make, output, 20.0, 2e7
    )


def _pack(task: Task, source: Source) -> Step:
    def make(say: Say) -> None:
        from cluster.pack import run_pack

        manifest = run_pack(source.format, source.videos or "", source.packed, source.words)
        say(f"{source.packed}: {len(manifest)} videos, {manifest.rejected} rejected")

    seconds, size = packing(task.size(source), source.options)
    words = [word for word in source.words if not word.startswith("splits=")]
    after = ("videos",) if task.entry.twin else ()
    told = f"pack {'them' if task.entry.twin else NAMES[source.data]}: {' '.join(words) or 'as usual'}"
    facts = {"format": source.format, "words": " ".join(words)}
    return Step(packed_name(source, 1), told, after, facts, make, partial(_packed, source, 1), seconds, size)


def _fold(source: Source, fold: int) -> Step:
    """Another official split of a pack: links, and who is in it."""

    def make(say: Say) -> None:
        from cluster.pack import run_pack

        run_pack(source.format, source.videos or "", source.packed, [*source.words, "fold=all"])

    told = f"split {fold} of the same shards (fold=all)"
    return Step(packed_name(source, fold), told, (packed_name(source, 1),), {}, make, partial(_packed, source, fold))


def packed_name(source: Source, fold: int) -> str:
    """The step that makes the pack of a split."""
    return f"pack-{source.data}" + ("" if fold == 1 else f"-fold{fold}")


def _packed(source: Source, fold: int) -> str | None:
    """Hash of the pack of a split."""
    from pipelines.dataset.manifest import load_manifest
    from vidssl.errors import DataError

    try:
        return load_manifest(source.place(fold)).hash
    except DataError:
        return None


def _train(task: Task) -> Step:
    def make(say: Say) -> None:
        from cluster.training.verb import STOPPED, TrainWords, run_train

        typed = TrainWords(task.entry.recipe, task.words, argv=["reproduce", task.entry.name, *task.words])
        if run_train(typed, say, None) == STOPPED:
            raise KeyboardInterrupt

    def output() -> str | None:
        recipe = task.recipe
        done = all(state_of(phase, task.run) == "done" for phase in recipe.phases)
        folders = [phase_folder(task.run, phase.name) for phase in recipe.phases] or [RunFolder(task.run)]
        last = [latest_step(folder) for folder in folders]
        if not done or None in last:
            return None
        return digest(
            {f.path.name: weights_hash(f, step) for f, step in zip(folders, last, strict=True) if step is not None}
        )

    source = task.sources[0]
    state = {phase.name: state_of(phase, task.run) for phase in task.recipe.phases}
    spent = phase_seconds(task.recipe, task.size(source).train, task.rate)
    parts = tuple(Part(name, seconds, state[name]) for name, seconds in spent) if task.recipe.phases else ()
    facts = {"recipe": task.recipe.model_copy(update={"data": None}).fingerprint(), "name": task.entry.recipe}
    told = f"train {task.entry.recipe} on {NAMES[source.data] if not task.entry.twin else 'them'}"
    return Step(RUN, told, (packed_name(source, 1),), facts, make, output, sum(one for _, one in spent), 0.0, parts)


def _chosen(task: Task) -> str:
    """What of the recipe changes how a trained network is measured, and is not in its fingerprint."""
    kept = {key: getattr(task.recipe, key).model_dump(mode="json") for key in ("evaluation", "finetune")}
    return json.dumps(kept, sort_keys=True)


def _features(task: Task, source: Source, fold: int) -> Iterator[Step]:
    wanted = [one for one in task.entry.measured if one.task == "retrieval" or (one.task == "linear" and not one.clips)]
    asked: dict[tuple[Role, bool], None] = {(one.role, one.initial): None for one in wanted}
    for role, initial in asked:
        if initial and (source.data != task.entry.trains or not task.recipe.phases):
            continue
        kinds = [
            one.task
            for one in wanted
            if (one.role, one.initial) == (role, initial) and (one.task == "linear" or fold == 1)
        ]
        if kinds:
            yield _features_step(task, source, fold, role, initial, tuple(dict.fromkeys(kinds)))


def _features_step(task: Task, source: Source, fold: int, role: Role, initial: bool, kinds: tuple[str, ...]) -> Step:
    name = features_name(role, initial, source.data, fold)
    run, view = run_of(task, role, initial)
    words = [
        f"what={','.join(kinds)}",
        *([f"view={view}"] if view else []),
        f"baseline={'untrained' if fold == 1 else 'off'}",
    ]

    def make(say: Say) -> None:
        from cluster.evaluation.evaluate import evaluate_run
        from vidssl.records import write_record

        for kind, result in evaluate_run(run, [f"data={source.place(fold)}", *words], say).items():
            write_record(results_folder(task.home, name) / LEFT[kind], result)

    size = task.size(source)
    networks = (2 if fold == 1 else 1) * (2 if role == "both" else 1)
    facts = {"run": run.name, "words": " ".join(words), "chosen": _chosen(task)}
    told = f"{' and '.join(_SAID[kind] for kind in kinds)}, {_shown(task, role)}{', before the streams meet' if initial else ''}"
    return Step(
        name,
        f"{told}, {_where(source, fold)}",
        (RUN, packed_name(source, fold)),
        facts,
        make,
        partial(files_hash, results_folder(task.home, name), tuple(LEFT[kind] for kind in kinds)),
        shown(task.recipe, size.videos, size, task.rate, networks=networks),
    )


_SAID: Final = {"retrieval": "retrieval", "linear": "linear probe", "finetune": "fine-tuning"}


def _shown(task: Task, role: Role) -> str:
    return (
        " + ".join(view_of(task.recipe, one) for one in ("first", "second"))
        if role == "both"
        else view_of(task.recipe, role)
    )


def _where(source: Source, fold: int) -> str:
    return f"{'' if source.twin else NAMES[source.data] + ' '}split {fold}"


def _supervised(task: Task, source: Source, fold: int) -> Iterator[Step]:
    for one in task.entry.measured:
        if one.task == "finetune" or one.clips:
            name = measured_name(one, source.data, fold)
            make = _fused if one.role == "both" else _trained
            yield make(task, source, fold, one, name)


def _trained(task: Task, source: Source, fold: int, one: Measured, name: str) -> Step:
    run, view = run_of(task, one.role)
    words = [*([f"view={view}"] if view else []), *one.words]

    def make(say: Say) -> None:
        from cluster.finetune.run import finetune_run
        from vidssl.files import write_whole
        from vidssl.records import write_record

        result = finetune_run(run, [f"data={source.place(fold)}", *words], say)
        told = ("-linear" if one.clips else "") + (f"-{view}" if view else "")
        folder = results_folder(task.home, name)
        write_record(folder / LEFT["finetune"], result)
        write_whole(folder / SCORES, (run / "eval" / f"finetune{told}.npz").read_bytes())

    epochs = next((int(word.partition("=")[2]) for word in one.words if word.startswith("finetune.epochs=")), None)
    return Step(
        name,
        f"{_SAID[one.task]}{' on clips' if one.clips else ''}, {_shown(task, one.role)}, {_where(source, fold)}",
        (RUN, packed_name(source, fold)),
        {"run": run.name, "words": " ".join(words), "chosen": _chosen(task)},
        make,
        partial(files_hash, results_folder(task.home, name), (LEFT["finetune"], SCORES)),
        supervised(task.recipe, epochs or task.recipe.finetune.epochs, task.size(source), task.rate),
    )


def _fused(task: Task, source: Source, fold: int, one: Measured, name: str) -> Step:
    """Two streams' answers together: arithmetic on what both fine-tunings left."""
    alone = [name.replace("-both-", f"-{role}-") for role in ("first", "second")]

    def make(say: Say) -> None:
        from cluster.finetune.results import Together
        from vidssl.evaluation.class_scores import fuse
        from vidssl.records import write_record

        paths = [results_folder(task.home, step) / SCORES for step in alone]
        write_record(results_folder(task.home, name) / LEFT["fused"], Together.of(fuse(*paths), alone[1]))

    output: Callable[[], str | None] = partial(files_hash, results_folder(task.home, name), (LEFT["fused"],))
    told = f"{_SAID[one.task]}, {_shown(task, 'both')} together, {_where(source, fold)}"
    return Step(name, told, tuple(alone), {}, make, output)
