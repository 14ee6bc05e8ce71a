"""Where does it stand beside the papers? Their rows next to ours, with everything in which the two measurements differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final, NamedTuple

from cluster.evaluation.evaluator import FeatureResult, Result
from cluster.evaluation.linear import LinearResult
from cluster.evaluation.retrieval import RetrievalResult
from cluster.finetune.results import FinetuneProtocol, FinetuneResult
from cluster.page.parts import Section, bare, table
from vidssl.evaluation.beside import Beside, Ours, beside
from vidssl.evaluation.tables import NAMES, Measurement

__all__ = ["facts_of", "published_part"]

_TITLES: Final[dict[Measurement, str]] = {
    "retrieval": "Retrieval",
    "linear": "Linear probe",
    "finetune": "Fine-tuning",
}
_KINDS: Final = {"finetune-linear": ", trained on clips", "finetune-scratch": ", from random weights"}
_OPEN: Final = 8
"""Published rows shown at once; the rest folds."""


class _Own(NamedTuple):
    """A number of ours that papers report too: which, under which facts, in percent by metric."""

    task: Measurement
    kind: str
    facts: Ours
    run: str
    values: Mapping[str, float]


def published_part(results: Mapping[str, Result], finetuned: Mapping[str, FinetuneResult]) -> Section:
    """Ours beside theirs; a sentence where no paper reports this data, or nothing was measured."""
    title = "Beside the papers"
    lead = (
        "Numbers as the papers and their authors state them, fewest differences first. A difference in the last column can be worth "
        "more than the method: rows of different protocols are no ranking. Numbers that could not be read at their source are left out."
    )
    about = next((found.protocol for found in (*results.values(), *finetuned.values())), None)
    if about is None:
        return Section(title, lead, '<p class="missing">Not evaluated yet, so there is nothing to compare.</p>')
    if about.dataset is None:
        words = (
            f"No published row is for this data ({escape(about.data_hash)}): the papers report UCF101 and HMDB51, and a number "
            "from other videos says nothing about theirs. The rivals above are the comparison."
        )
        return Section(title, lead, f'<p class="missing">{words}</p>')
    parts: list[str] = []
    for own in (*_measured(results), *_trained(finetuned)):
        rows = beside(own.task, own.facts, list(own.values))
        if rows:
            heading = f"{_TITLES[own.task]} on {NAMES[about.dataset]}, {own.facts.stream}{own.kind}"
            parts.append(f"<h3>{escape(heading)}</h3>" + _table(own.run, own.values, rows))
    return Section(title, lead, "".join(parts) or '<p class="missing">Nothing that the papers report was measured.</p>')


def _measured(results: Mapping[str, Result]) -> list[_Own]:
    """Retrieval and linear probe, of one stream and of two together."""
    found = []
    for name in ("retrieval", "retrieval-joint", "linear", "linear-joint"):
        result = results.get(name)
        if isinstance(result, RetrievalResult) and result.results:
            values = {k: 100 * share for k, share in result.results["trained"].recall.items()}
            found.append(_Own("retrieval", "", facts_of(result), result.protocol.run, values))
        if isinstance(result, LinearResult) and result.results:
            values = {"accuracy": 100 * result.results["trained"].accuracy}
            found.append(_Own("linear", "", facts_of(result), result.protocol.run, values))
    return found


def _trained(finetuned: Mapping[str, FinetuneResult]) -> list[_Own]:
    tasks: Sequence[tuple[str, Measurement]] = (
        ("finetune-linear", "linear"),
        ("finetune", "finetune"),
        ("finetune-scratch", "finetune"),
    )
    return [
        _Own(
            task,
            _KINDS.get(name, ""),
            facts_of(found),
            found.protocol.run,
            {"accuracy": 100 * found.results.chosen.accuracy},
        )
        for name, task in tasks
        if (found := finetuned.get(name)) is not None
    ]


def facts_of(found: FeatureResult | FinetuneResult) -> Ours:
    """What the papers' rows are compared with."""
    about = found.protocol
    scratch = isinstance(about, FinetuneProtocol) and about.init == "scratch"
    return Ours(
        dataset=about.dataset,
        split=about.split,
        pretrained="none" if scratch else about.pretrained,
        id="clips" if "end to end" in about.id else about.id,
        T=about.T,
        size=about.size,
        backbone=about.backbone,
        stream=about.stream,
        windows=about.windows,
        crops=about.crops,
        crop=about.crop,
        epochs=about.epochs,
        choose=about.finetune.choose if isinstance(about, FinetuneProtocol) else None,
    )


def _table(run: str, own: Mapping[str, float], rows: list[Beside]) -> str:
    keys = list(own)
    head = ["percent", *(key if key == "accuracy" else f"R@{key}" for key in keys), "read in", "differs from ours in"]

    words = (0, len(head) - 2, len(head) - 1)

    def line(one: Beside) -> list[str]:
        row = one.row
        epochs = f"{row.epochs} epochs" if row.epochs else None
        facts = ", ".join(word for word in (row.backbone, row.stream, epochs) if word)
        name = row.what if row.what.startswith(row.paper) else f"{row.paper}: {row.what}"
        values = [bare(row.values[key] / 100) if key in row.values else "–" for key in keys]
        return [f"{name} ({facts})" if facts else name, *values, row.source, "; ".join(one.differences)]

    ours = [f"this run: {run}", *(bare(own[key] / 100) for key in keys), "", ""]
    shown = table(head, [ours, *(line(one) for one in rows[:_OPEN])], strong=0, words=words)
    if len(rows) <= _OPEN:
        return shown
    rest = table(head, [line(one) for one in rows[_OPEN:]], words=words)
    return f"{shown}<details><summary>{len(rows) - _OPEN} rows that differ in more</summary>{rest}</details>"
