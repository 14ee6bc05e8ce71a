"""What do simple classifiers make of the features? The parts of the report about them, fine-tuning and two streams."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Final

from cluster.evaluation.evaluator import About, Evaluator, FeatureResult, Result
from cluster.evaluation.kept import JOINT_END, evaluators
from cluster.evaluation.retrieval import RetrievalResult, recall_table
from cluster.finetune.results import FinetuneResult, finetune_card
from cluster.page.parts import Section, card

__all__ = ["classifiers_part", "fusion_part"]

Results = Mapping[str, Result]

_JOINT: Final = {
    "trained": "both streams",
    "untrained": "untrained encoder",
    "histogram": "colour histogram",
    "chance": "chance",
}


def classifiers_part(results: Results, finetuned: Mapping[str, FinetuneResult], about: About) -> Section:
    """Every classifier that was measured, each beside its rivals; what was not measured is named with what to type."""
    title = "What classifiers make of it"
    lead = (
        "The features stay as they are and a simple classifier reads them: the vote of the nearest training videos, one linear "
        "layer, the mean of a few labelled videos per class. Settings were chosen on training videos that were held out, never "
        "on the test."
    )
    cards = [_card(one, results[one.name], about) for one in _cards() if one.name in results]
    cards += [finetune_card(name, result) for name, result in finetuned.items()]
    grid = f'<div class="grid wide">{"".join(cards)}</div>' if cards else ""
    return Section(title, lead, grid + _unmeasured(results, about.run))


def fusion_part(results: Results, about: About) -> Section | None:
    """Two streams together and each alone; None where they were not looked at together."""
    joint = {
        name.removesuffix(JOINT_END): found
        for name, found in results.items()
        if name.endswith(JOINT_END) and isinstance(found, FeatureResult) and found.reason is None
    }
    if not joint:
        return None
    how = sorted({found.protocol.fusion for found in joint.values()} - {"none"})
    lead = f"The same videos through both streams: {escape(', '.join(how))}. Together has to beat the better one alone."
    retrieval = joint.get("retrieval")
    body = _joint_retrieval(retrieval) if isinstance(retrieval, RetrievalResult) else ""
    cards = "".join(_card(one, joint[one.name], about) for one in _cards() if one.name in joint)
    return Section(
        "Two streams together", lead, body + (f'<div class="grid wide later">{cards}</div>' if cards else "")
    )


def _cards() -> list[Evaluator[Any]]:
    return [one for one in evaluators().values() if one.as_card]


def _card(one: Evaluator[Any], result: Result, about: About) -> str:
    part = one.part(result, about)
    return card(part.title, part.body, part.lead)


def _unmeasured(results: Results, run: str) -> str:
    """What to type for the rest; data without labels has no rest."""
    missing = ",".join(one.name for one in _cards() if one.name not in results)
    if not missing:
        return ""
    words = f"Not measured: {missing.replace(',', ', ')}. "
    if any(found.unlabelled for found in results.values()):
        words += (
            "The labels are unknown, and every one of them needs labels: pack a folder with one sub-folder per class."
        )
    else:
        words += f"Type <code>vidssl evaluate {escape(run)} what={missing}</code>."
    return f'<p class="missing">{words}</p>'


def _joint_retrieval(found: RetrievalResult) -> str:
    rows, about = found.results or {}, found.protocol
    note = f"Protocol {about.id}, {about.search}, {rows['trained'].queries} queries."
    return recall_table(rows, _JOINT) + f'<p class="note">{escape(note)}</p>'
