"""What each verb does with its words: one function per verb, which imports what it needs when it is called.

So `vidssl --help` starts at once and needs neither Ray nor DALI.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.commands.console import say
from cluster.commands.words import Words
from cluster.keywords import ReportWords, own_words
from vidssl.errors import RecipeError

__all__ = [
    "bench",
    "demo",
    "doctor",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "import_",
    "mine",
    "pack",
    "recipes",
    "report",
    "reproduce",
    "status",
    "sweep",
    "train",
    "verify",
]


def pack(words: Words) -> int:
    """Videos → shards."""
    from cluster.pack import run_pack

    out = words["OUT"]
    manifest = run_pack(words["FORMAT"], words["SOURCE"], out, words.settings, workers=words.number("--workers"))
    say(
        f"{out}: {len(manifest)} videos in {len(manifest.shards)} shards, hash {manifest.hash}; what was refused, and why: {out}/verdicts.csv"
    )
    return 0


def verify(words: Words) -> int:
    """Is a packed folder whole?"""
    from cluster.verify import run_verify

    run_verify(words["PACKED"], words.settings, words.number("--workers"), say)
    return 0


def train(words: Words) -> int:
    """Start or resume a training, then evaluate it."""
    from cluster.training.verb import TrainWords, run_train

    typed = TrainWords(
        words.place("RECIPE"),
        words.settings,
        resume=words.option("--resume"),
        fresh=words.on("--fresh"),
        phase=words.option("--phase"),
        argv=words.argv,
    )
    return run_train(typed, say, None if words.on("--no-evaluation") else lambda path: _evaluate_and_report(path, []))


def evaluate(words: Words) -> int:
    """Retrieval, mining quality, classifiers; and the report of a run."""
    from vidssl.saved.card import is_card

    home = words["RUN|CARD"]
    if is_card(home):  # a card has no training to report on
        return _evaluate_card(home, words.settings)
    return _evaluate_and_report(Path(home), words.settings)


def _evaluate_card(card: str, settings: Sequence[str]) -> int:
    from cluster.evaluation.evaluate import evaluate_run

    evaluate_run(card, settings, say)
    say(f"results: {Path(card) / 'eval'}")
    return 0


def _evaluate_and_report(run: Path, settings: Sequence[str]) -> int:
    from cluster.evaluation.evaluate import evaluate_run
    from cluster.report.write import write_report

    evaluate_run(run, settings, say)
    say(f"report: {write_report(run)}")
    return 0


def import_(words: Words) -> int:
    """A published file: what is in it, and as a card."""
    from cluster.exchange import import_file

    say(import_file(words["FILE"], words.option("--from"), words.option("--out"), words.settings))
    return 0


def export(words: Words) -> int:
    """The last checkpoint as a card."""
    from cluster.exchange import export_card

    out = words.option("--out")
    if out is None:
        raise RecipeError("no folder for the card; type --out CARD")
    say(f"card: {export_card(words['RUN'], out, words.settings)}")
    return 0


def embed(words: Words) -> int:
    """Vectors of all videos."""
    from cluster.embed import embed_run

    say(f"embeddings: {embed_run(Path(words['RUN|CARD']), words.settings, say)}")
    return 0


def report(words: Words) -> int:
    """One page, of a run, of a sweep or of packed data."""
    from cluster.report.packed_page import is_packed, write_data_report
    from vidssl.marks import mark_of

    own, unknown = own_words(ReportWords, words.settings)
    home = words["RUN|SWEEP|PACKED"]
    made = mark_of(Path(home).expanduser())
    if made is not None and made.kind == "sweep":
        if words.settings:
            raise RecipeError(f"'{words.settings[0]}' is no setting of a sweep's report; type vidssl report {home}")
        from cluster.report.swept import write_sweep_report

        say(f"report: {write_sweep_report(home)}")
        return 0
    if is_packed(home):
        if unknown or own.data is not None:
            given = unknown[0] if unknown else f"data={own.data}"
            raise RecipeError(f"'{given}' is no setting of a report on packed data; type out=PAGE.html or nothing")
        say(f"report: {write_data_report(home, own.out, say)}")
        return 0
    if unknown or own.out is not None:
        given = unknown[0] if unknown else f"out={own.out}"
        raise RecipeError(f"'{given}' is no setting of a run's report; type data=FOLDER where the data has moved")
    from cluster.report.write import write_report

    say(f"report: {write_report(Path(home), own.data)}")
    return 0


def mine(words: Words) -> int:
    """Ways of mining, here and now."""
    home = words.place("RUN|CARD")
    if words.on("--plan"):
        from vidssl.mining.sizing import sizing_lines

        if home is not None or words.option("--out") is not None:
            raise RecipeError(
                "--plan reads no run and writes nothing; type vidssl mine --plan slots=N workers=W step_s=S"
            )
        say("\n".join(sizing_lines(words.settings)))
        return 0
    if home is None:
        raise RecipeError(
            "no RUN|CARD given (a run folder or a card folder); type vidssl mine RUN|CARD, or --plan slots=N"
        )
    from cluster.mine.run import run_mine

    say(run_mine(home, words.settings, words.option("--out")))
    return 0


def sweep(words: Words) -> int:
    """The same points on a bank, over a cluster; or whole trainings."""
    from cluster.sweep.search import level_of
    from cluster.sweep.trials import run_sweep

    name, out = words.place("RECIPE|RUN") or "", words.option("--out")
    level, settings = level_of(name, words.settings)
    if level == "train":
        from cluster.sweep.trainings import run_trainings

        say(run_trainings(name, settings, out))
    else:
        say(run_sweep(name, settings, out=out))
    return 0


def demo(words: Words) -> int:
    """Everything once."""
    from cluster.demo import run_demo

    run_demo(Path(words.option("--out") or ""), words.settings, seed=words.number("--seed") or 0, say=say)
    return 0


def finetune(words: Words) -> int:
    """Supervised training from an encoder."""
    from cluster.finetune.run import finetune_run, finetune_table

    say(finetune_table(finetune_run(Path(words["RUN|CARD"]), words.settings, say)))
    return 0


def bench(words: Words) -> int:
    """How much faster a faster loader could make a training."""
    from cluster.headspace import run_headspace

    if words["WHAT"] != "headspace":
        raise RecipeError(f"'{words['WHAT']}' is unknown; type vidssl bench headspace RUN")
    run_headspace(words["RUN"], words.settings, words.number("--steps") or 0, say)
    return 0


def reproduce(words: Words) -> int:
    """From the archives to the paper's table."""
    from cluster.reproduce.verb import run_reproduce

    return run_reproduce(words["NAME"], words.settings, words.option("--out"), words.on("--dry-run"), say)


def doctor(words: Words) -> int:
    """This machine, and what a training would need on it."""
    from cluster.doctor.verb import run_doctor

    return run_doctor(words.place("RECIPE"), words.settings, say)


def status(words: Words) -> int:
    """What runs are doing, or how they ended."""
    from cluster.status import run_status

    return run_status(words.place("RUN"), say, clean_up=words.on("--clean"))


def recipes(words: Words) -> int:
    """All recipes, or one resolved."""
    from cluster.commands.recipes import recipes_table
    from vidssl.recipe import load_recipe

    name = words.place("NAME") or words.option("--name")
    if name is None and words.settings:
        raise RecipeError(f"no recipe to set '{words.settings[0]}' in; type vidssl recipes NAME key=value …")
    say(recipes_table() if name is None else load_recipe(name, words.settings).to_yaml().rstrip())
    return 0
