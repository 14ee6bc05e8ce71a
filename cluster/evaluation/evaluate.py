"""`vidssl evaluate RUN|CARD`: what the features are worth beside what they have to beat, each number with its protocol.

| what | file | measures |
|---|---|---|
| retrieval | retrieval.json | nearest neighbours, R@k (P1 of CoCLR, CPR, ViCC; P2 of IIC) |
| mining | mining.json | the cascade and its rivals on the run's last bank snapshot |
| knn | knn.json | k-NN classifier |
| linear | linear.json | linear probe on saved features (P3) |
| fewshot | fewshot.json | nearest class mean of a few labelled videos |

With `view=joint` two streams are looked at together; the files are then named `*-joint.json`. Nothing in them depends on the
time or the place: two evaluations of one checkpoint write the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from cluster.embed import forget_parts
from cluster.evaluation.evaluator import FeatureResult, Result, Seen
from cluster.evaluation.features import views_asked
from cluster.evaluation.kept import JOINT_END, evaluators, keep_results
from cluster.evaluators import asked_for
from cluster.keywords import EvaluateWords, own_words
from cluster.subject import looked_at, open_subject
from vidssl.errors import StorageError
from vidssl.files import storage_error
from vidssl.lock import held
from vidssl.saved.embeddings import save_embeddings

__all__ = ["evaluate_run", "results_table"]

Say = Callable[[str], None]


def evaluate_run(run_dir: str | Path, words: Sequence[str] = (), say: Say = lambda text: None) -> dict[str, Result]:
    """Measure a run's last checkpoint, or a card.

    Args:
        run_dir: The run or card folder.
        words: `what=` a list of `EVALUATORS`, or all (default: retrieval,mining); `view=` a stream, or joint for both
            (default: the trained one); `baseline=untrained|off`; and the words of `cluster.subject.open_subject`.
        say: Told the results before they are stored, so that a full disk does not take them away.

    Returns:
        what → its result, in the order of the table.

    Raises:
        VidsslError: as `open_subject`; an unknown word of `what`, `view`, `baseline` or protocol.
        BusyError: another evaluation is storing its results there.
        StorageError: the results cannot be stored.
    """
    own, words = own_words(EvaluateWords, words)
    names = asked_for(own.what)
    subject = open_subject(run_dir, words)
    views = views_asked(subject, own.view)
    looks = any(evaluators()[name].needs == "features" for name in names)
    with looked_at(subject, say) if looks else nullcontext(subject) as subject:
        seen = Seen(subject, views, untrained=own.baseline != "off")
        results = {name: evaluators()[name].measure(subject, seen) for name in names}
    say(results_table(results))
    _store(subject.out_folder, results, seen, say)
    forget_parts(subject)
    return results


def results_table(results: Mapping[str, Result]) -> str:
    """The lines that `vidssl evaluate` prints, and the alarm where the encoder has collapsed."""
    lines = [line for name, one in evaluators().items() if name in results for line in one.lines(results[name])]
    health = next((one.health for one in results.values() if isinstance(one, FeatureResult) and one.health), None)
    if health is not None:
        lines.append(("ALARM, embeddings " if health.collapsed else "embeddings ") + health.verdict)
    return "\n".join(lines)


def _store(folder: Path, results: Mapping[str, Result], seen: Seen, say: Say) -> None:
    looked = any(evaluators()[name].needs == "features" for name in results)
    end = JOINT_END if len(seen.views) > 1 else ""
    named = {f"{name}{end if evaluators()[name].needs == 'features' else ''}": one for name, one in results.items()}
    try:
        with held(folder, "evaluate", say):
            if looked and not end:
                save_embeddings(seen.features.store, folder / "embeddings.zarr")
            keep_results(folder, named)
    except (OSError, StorageError) as error:
        known = storage_error(error, folder) if isinstance(error, OSError) else error
        raise type(known)(
            f"what was measured is not stored: {known}; make room, or copy the run to a folder that can be written, "
            "and type vidssl evaluate again"
        ) from error
