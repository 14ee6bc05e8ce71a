"""The verbs: name → what it does, its words by place, its options, its keys. The one list of them.

A new verb is a line here, a function in `handlers.py`, and its test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cluster.commands import handlers
from cluster.commands.keys import Group, groups_of, only
from cluster.commands.words import Option, Place, Words
from cluster.keywords import (
    OF_A_FINETUNING,
    OF_A_TRAINED,
    OF_AN_IMPORT,
    SOURCES,
    EmbedWords,
    EvaluateWords,
    ExportWords,
    FinetuneWords,
    ImportWords,
    ReportWords,
    ReproduceWords,
)
from cluster.reproduce.names import REPRODUCTIONS
from pipelines.packing.catalog import FORMATS

__all__ = ["VERBS", "Verb"]

Keys = Callable[[], list[Group]]


def _none() -> list[Group]:
    return []


def _of_recipe() -> list[Group]:
    from vidssl.recipe import Recipe

    return groups_of(Recipe, "The run")


def _of_pack() -> list[Group]:
    from pipelines.packing.options import PackOptions

    return groups_of(PackOptions, "How videos are packed")


def _of_sweep() -> list[Group]:
    from cluster.mine.words import SweepWords
    from cluster.sweep.search import TrainSearch

    own = groups_of(SweepWords, "What is searched on a bank")
    own += groups_of(TrainSearch, "What is searched with level=train, where KEY=[A,B] of any key below is an axis")
    named = {key.name for group in own for key in group.keys}
    recipe = _of_recipe()
    return own + only(recipe, [f"{key.name}=" for group in recipe for key in group.keys if key.name not in named])


def _of_mine() -> list[Group]:
    from cluster.mine.words import MineWords
    from vidssl.mining.sizing import Sizing

    looking = [start for start in OF_A_TRAINED if start != "data="]  # data= is among its own words
    own = groups_of(MineWords, "What is tried, and on which rows") + only(_of_recipe(), ("mining.", *looking))
    return own + groups_of(Sizing, "With --plan, instead of all that: how much there is to mine")


def _of_embed() -> list[Group]:
    return groups_of(EmbedWords, "What is embedded") + only(_of_recipe(), OF_A_TRAINED)


def _of_evaluate() -> list[Group]:
    return groups_of(EvaluateWords, "What is measured") + only(_of_recipe(), OF_A_TRAINED)


def _of_finetune() -> list[Group]:
    mine = only(_of_recipe(), (*OF_A_TRAINED, *OF_A_FINETUNING))
    return groups_of(FinetuneWords, "What is trained") + mine


def _of_report() -> list[Group]:
    return groups_of(ReportWords, "Where it looks")


def _of_reproduce() -> list[Group]:
    return groups_of(ReproduceWords, "Where things are, and what is measured") + _of_recipe()


def _of_import() -> list[Group]:
    return groups_of(ImportWords, "What is read") + only(_of_recipe(), OF_AN_IMPORT)


def _of_export() -> list[Group]:
    return groups_of(ExportWords, "What is written")


@dataclass(frozen=True)
class Verb:
    """One verb of the command line.

    Attributes:
        run: What it does; returns the exit code.
        sentence: What it does, in words.
        places: Words that are known by where they stand.
        options: Words that begin with `--`.
        groups: Its `key=value` words.
        recipe: The recipe that it always takes; empty: none.
    """

    run: Callable[[Words], int]
    sentence: str
    places: tuple[Place, ...] = ()
    options: tuple[Option, ...] = ()
    groups: Keys = _none
    recipe: str = ""


_RUN = Place("RUN", "a run folder, e.g. runs/cpr-tiny")
_RUN_OR_CARD = Place("RUN|CARD", "a run folder or a card folder")

VERBS: dict[str, Verb] = {
    "demo": Verb(
        handlers.demo,
        "make a small motion set, pack, train, evaluate, report: everything once, in minutes",
        options=(
            Option("--out", "folder for all that it makes", "FOLDER", default="runs/demo"),
            Option("--seed", "of data, weights and order", "N", default="0", least=0),
        ),
        groups=_of_recipe,
        recipe="cpr-demo",
    ),
    "pack": Verb(
        handlers.pack,
        "videos → verified, normalised shards with a manifest",
        places=(
            Place("FORMAT", " | ".join(FORMATS)),
            Place("SOURCE", "folder of the videos, or the file that lists them; in a bucket too (s3://…, gs://…)"),
            Place("OUT", "folder to write"),
        ),
        options=(Option("--workers", "parallel tasks; without it the cores of the machine or cluster", "N", least=1),),
        groups=_of_pack,
    ),
    "verify": Verb(
        handlers.verify,
        "read packed data whole; name every damaged sample, its shard and bytes",
        places=(Place("PACKED", "a folder that `vidssl pack` wrote"),),
        options=(Option("--workers", "shards read at once; without it one per core", "N", least=1),),
    ),
    "train": Verb(
        handlers.train,
        "train a recipe, or go on with a run",
        places=(Place("RECIPE", "a name of `vidssl recipes`, or a YAML file", needed=False),),
        options=(
            Option(
                "--resume",
                "go on with a run from its last checkpoint (the same words again do so too); trainer.workers=N and "
                "trainer.batch=B: with other workers; s3://BUCKET/RUNS/NAME: its copy, fetched to trainer.storage=FOLDER first",
                "RUN",
            ),
            Option("--fresh", "remove what a run of the same name made, and begin again"),
            Option("--phase", "with --resume, of a recipe with phases: train this one again, alone", "NAME"),
            Option("--no-evaluation", "only train"),
        ),
        groups=_of_recipe,
    ),
    "status": Verb(
        handlers.status,
        "what runs are doing, or how they ended: state, step, rate, time left, last message",
        places=(Place("RUN", "a run folder, or a folder that holds runs; without it: runs", needed=False),),
        options=(
            Option(
                "--clean",
                "remove what commands left that were killed: in those folders, and on the cluster of RAY_ADDRESS",
            ),
        ),
    ),
    "mine": Verb(
        handlers.mine,
        "ways of mining measured here and now: stages × pool × k × strategy × space, on a bank or on embeddings made now",
        places=(replace(_RUN_OR_CARD, needed=False),),
        options=(
            Option("--out", "folder for mine.json and the pictures; without it RUN/mine", "FOLDER"),
            Option("--plan", "without RUN|CARD: memory, traffic, rows per second and miners for slots=N workers=W …"),
        ),
        groups=_of_mine,
    ),
    "sweep": Verb(
        handlers.sweep,
        "the points of `vidssl mine` on a run's bank snapshot, spread over a cluster; level=train: whole trainings",
        places=(
            Place(
                "RECIPE|RUN",
                "recipe (with run=RUN, or level=train), ablations/NAME, or run whose mining is searched",
                needed=False,
            ),
        ),
        options=(
            Option(
                "--out",
                "folder for sweep.csv and the picture; without it RUN/sweep, or sweep-RECIPE beside the runs",
                "FOLDER",
            ),
        ),
        groups=_of_sweep,
    ),
    "embed": Verb(handlers.embed, "embeddings of all videos as a zarr store", (_RUN_OR_CARD,), groups=_of_embed),
    "evaluate": Verb(
        handlers.evaluate,
        "retrieval and mining quality, classifiers on frozen features, each with its protocol",
        (_RUN_OR_CARD,),
        groups=_of_evaluate,
    ),
    "finetune": Verb(
        handlers.finetune,
        "supervised training from a pre-trained encoder; finetune.backbone_lr=0: linear probe",
        (_RUN_OR_CARD,),
        groups=_of_finetune,
    ),
    "report": Verb(
        handlers.report,
        "one self-contained page: of a run, of a sweep, or of packed data before anything is trained on it",
        (Place("RUN|SWEEP|PACKED", "a run folder, a sweep's folder, or a folder that `vidssl pack` wrote"),),
        groups=_of_report,
    ),
    "reproduce": Verb(
        handlers.reproduce,
        "a paper's table: archives → packs → training → every evaluation on all splits → ours beside published; goes on where it stopped",
        places=(Place("NAME", "what is reproduced: " + " | ".join(REPRODUCTIONS)),),
        options=(
            Option("--dry-run", "print the steps, hours, disk and what is missing; make nothing"),
            Option("--out", "folder for all that it makes; without it runs/reproduce-NAME", "FOLDER"),
        ),
        groups=_of_reproduce,
    ),
    "bench": Verb(
        handlers.bench,
        "headspace: a run's training with its loader and with batches that are always ready, for some steps each",
        places=(Place("WHAT", "headspace"), _RUN),
        options=(Option("--steps", "of each of both trainings", "N", default="60", least=12),),
        groups=_of_recipe,
    ),
    "import": Verb(
        handlers.import_,
        "a published checkpoint: what is in it, and as a card",
        places=(Place("FILE", "the file"),),
        options=(
            Option("--from", f"whose code wrote it: {' | '.join(SOURCES)}", "PAPER"),
            Option("--out", "folder of the card; without it the file is only looked at", "CARD"),
        ),
        groups=_of_import,
    ),
    "export": Verb(
        handlers.export,
        "the last checkpoint of a run as a card: safetensors and card.json",
        places=(_RUN,),
        options=(Option("--out", "folder of the card", "CARD"),),
        groups=_of_export,
    ),
    "doctor": Verb(
        handlers.doctor,
        "what this machine has, what would be chosen on it, what is at fault; with RECIPE: what that training needs and waits for",
        places=(Place("RECIPE", "a name of `vidssl recipes`, or a YAML file", needed=False),),
        groups=_of_recipe,
    ),
    "recipes": Verb(
        handlers.recipes,
        "what there is to train, or one recipe resolved",
        places=(Place("NAME", "a recipe to show with every default, key=value words applied", needed=False),),
        options=(Option("--name", "the same as NAME", "NAME"),),
        groups=_of_recipe,
    ),
}
"""Name → verb, in the order of the help."""
