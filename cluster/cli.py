"""`vidssl VERB … key=value …`: words in, exit codes out (0 done, 2 a mistake of the user in one sentence, 130 stopped).

Verbs import what they need when they are called, so that `vidssl --help` starts at once and needs neither Ray nor DALI.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vidssl import __version__
from vidssl.errors import RecipeError, VidsslError
from vidssl.recipe import load_recipe, recipe_names, take_word

__all__ = ["main"]

_EPILOG = """\
a first walk:
  vidssl demo                                        everything below, on a small set that it makes itself
  vidssl pack folder VIDEOS PACKED                   VIDEOS/CLASS/file → verified shards
  vidssl train cpr-tiny data=PACKED trainer.workers=2
  vidssl evaluate runs/cpr-tiny                      retrieval and mining quality, with their protocol
  vidssl report runs/cpr-tiny                        one page to look at
on a cluster: ray job submit --working-dir . -- python -m cluster train cpr-tiny data=/shared/PACKED
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser, verbs = _parser()
    if words and not words[0].startswith("-") and words[0] not in verbs:
        near = difflib.get_close_matches(words[0], verbs, n=1)
        return _refuse(
            f"no verb '{words[0]}'; there are {', '.join(verbs)}" + (f"; did you mean '{near[0]}'?" if near else "")
        )
    if not words:
        parser.print_help()
        return 0
    args, later = parser.parse_known_args(words)  # words after a flag: argparse leaves them over
    unknown = next((word for word in later if word.startswith("-")), None)
    if unknown is not None:
        return _refuse(f"unknown option '{unknown}'; see: vidssl {words[0]} --help")
    args.words, args.argv = [*args.words, *later], words
    try:
        return args.run(args)
    except VidsslError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141


def _refuse(sentence: str) -> int:
    print(f"vidssl: {sentence}", file=sys.stderr)
    return 2


def _say(line: str) -> None:
    print(line, flush=True)


def _pack(args: argparse.Namespace) -> int:
    from cluster.pack import run_pack

    manifest = run_pack(args.format, Path(args.source), Path(args.out), args.words, workers=args.workers)
    _say(
        f"{args.out}: {len(manifest)} videos in {len(manifest.shards)} shards, hash {manifest.hash}; what was refused, and why: {args.out}/verdicts.csv"
    )
    return 0


def _train(args: argparse.Namespace) -> int:
    from cluster.training.driver import prepare, resume, train
    from cluster.training.phases import check_phase_words, prepare_phases, train_phases

    words = list(args.words)
    if args.resume:
        folder, recipe = resume(args.resume, words)
    else:
        if not words or "=" in words[0]:
            raise RecipeError(
                f"no recipe named; type vidssl train RECIPE key=value …, with one of {', '.join(recipe_names())}"
            )
        recipe = load_recipe(words[0], words[1:])
        make = prepare_phases if recipe.phases else prepare
        folder = make(recipe, fresh=args.fresh, argv=args.argv)
        recipe = folder.read_recipe()
    check_phase_words(recipe, args.phase)
    if recipe.phases:

        def after(path: Path) -> None:
            if not args.no_evaluation:
                _evaluate_and_report(path, [])

        outcome = train_phases(recipe, folder, _say, only=args.phase, after=after, argv=args.argv)
    else:
        outcome = train(recipe, folder, _say)
    if outcome.stopped:
        _say(
            f"stopped after step {outcome.steps} of {outcome.total_steps}; to go on: vidssl train --resume {folder.path}"
        )
        return 130
    _say(f"trained {outcome.steps} steps in {outcome.seconds:.0f} s")
    if recipe.phases:
        from cluster.training.phases import phase_table

        _say(phase_table(recipe, folder.path))
    elif not args.no_evaluation:
        _evaluate_and_report(folder.path, [])
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from vidssl.saved.card import is_card

    if is_card(args.run_dir):  # a card has no training to report on
        return _evaluate_card(args.run_dir, args.words)
    return _evaluate_and_report(Path(args.run_dir), args.words)


def _evaluate_card(card: str, words: Sequence[str]) -> int:
    from cluster.evaluation.evaluate import evaluate_run, results_table

    _say(results_table(evaluate_run(card, words)))
    _say(f"results: {Path(card) / 'eval'}")
    return 0


def _evaluate_and_report(run: Path, words: Sequence[str]) -> int:
    from cluster.evaluation.evaluate import evaluate_run, results_table
    from cluster.report.write import write_report

    _say(results_table(evaluate_run(run, words)))
    _say(f"report: {write_report(run)}")
    return 0


def _import(args: argparse.Namespace) -> int:
    from cluster.exchange import import_file

    _say(import_file(args.file, args.source, args.out, args.words))
    return 0


def _export(args: argparse.Namespace) -> int:
    from cluster.exchange import export_card

    if args.out is None:
        raise RecipeError("no folder for the card; type --out CARD")
    _say(f"card: {export_card(args.run_dir, args.out, args.words)}")
    return 0


def _embed(args: argparse.Namespace) -> int:
    from cluster.embed import embed_run

    _say(f"embeddings: {embed_run(Path(args.run_dir), args.words)}")
    return 0


def _report(args: argparse.Namespace) -> int:
    from cluster.report.write import write_report

    data, unknown = take_word(args.words, "data")
    if unknown:
        raise RecipeError(f"'{unknown[0]}' is no setting of a report; type data=FOLDER where the data has moved")
    _say(f"report: {write_report(Path(args.run_dir), data)}")
    return 0


def _sweep(args: argparse.Namespace) -> int:
    from cluster.sweep.trials import run_sweep

    _say(run_sweep(args.recipe, args.words, out=args.out))
    return 0


def _demo(args: argparse.Namespace) -> int:
    from cluster.demo import run_demo

    run_demo(Path(args.out), args.words, seed=args.seed, say=_say)
    return 0


def _finetune(args: argparse.Namespace) -> int:
    from cluster.finetune.run import finetune_run, finetune_table

    _say(finetune_table(finetune_run(Path(args.run_dir), args.words, _say)))
    return 0


def _recipes(args: argparse.Namespace) -> int:
    if args.name is None:
        _say("\n".join(recipe_names()))
    else:
        _say(json.dumps(load_recipe(args.name, args.words).model_dump(mode="json"), indent=1))
    return 0


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    parser = argparse.ArgumentParser(
        prog="vidssl",
        description="Self-supervised video learning at cluster scale.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vidssl {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    names: list[str] = []

    def verb(
        name: str, run: Callable[[argparse.Namespace], int], text: str, *positional: tuple[str, str]
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text)
        for argument, explanation in positional:
            sub.add_argument(argument, help=explanation)
        sub.add_argument("words", nargs="*", metavar="key=value", help="settings")
        sub.set_defaults(run=run)
        names.append(name)
        return sub

    run_dir = ("run_dir", "a run folder, e.g. runs/cpr-tiny")
    demo = verb("demo", _demo, "make a small motion set, pack, train, evaluate, report: everything once, in minutes")
    demo.add_argument("--out", default="runs/demo", help="folder for all that it makes (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of data, weights and order")
    pack = verb(
        "pack",
        _pack,
        "videos → verified, normalised shards with a manifest",
        ("format", "folder | csv | ucf101 | hmdb51"),
        ("source", "folder or csv file"),
        ("out", "folder to write"),
    )
    pack.add_argument(
        "--workers", type=int, default=None, help="parallel tasks (default: the cores of the machine or cluster)"
    )
    train = verb("train", _train, "train a recipe: vidssl train RECIPE data=PACKED key=value …")
    train.add_argument("--resume", metavar="RUN", help="go on with a run from its last checkpoint")
    train.add_argument("--fresh", action="store_true", help="remove a run of the same name first")
    train.add_argument(
        "--phase", metavar="NAME", help="with --resume, of a recipe with phases: train this one again, alone"
    )
    train.add_argument("--no-evaluation", action="store_true", help="only train")
    verb(
        "sweep",
        _sweep,
        "search stages x pool x top-k on a run's bank snapshot",
        ("recipe", "recipe or run whose mining is searched"),
    ).add_argument("--out", default=None, help="folder for sweep.csv and the plot")
    run_or_card = ("run_dir", "a run folder or a card folder")
    verb("embed", _embed, "embeddings of all videos as a zarr store", run_or_card)
    verb(
        "evaluate",
        _evaluate,
        "retrieval R@k and mining quality; what=knn,linear,fewshot or all; view=joint for two streams together",
        run_or_card,
    )
    verb(
        "finetune",
        _finetune,
        "supervised training from a pre-trained encoder; finetune.backbone_lr=0: linear probe",
        run_or_card,
    )
    verb("report", _report, "one self-contained page", run_dir)
    published = verb("import", _import, "a published checkpoint: what is in it, and as a card", ("file", "the file"))
    published.add_argument(
        "--from", dest="source", metavar="PAPER", default=None, help="whose code wrote it: coclr | cpr | vicc | iic"
    )
    published.add_argument("--out", metavar="CARD", default=None, help="folder of the card (default: only look)")
    card = verb("export", _export, "the last checkpoint of a run as a card: safetensors and card.json", run_dir)
    card.add_argument("--out", metavar="CARD", default=None, help="folder of the card")
    recipes = verb("recipes", _recipes, "names of the recipes, or one of them resolved")
    recipes.add_argument("--name", default=None, help="show this one with key=value words applied")
    return parser, names
