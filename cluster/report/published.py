"""Where does it stand beside the papers? Their rows next to ours, with everything in which the two measurements differ."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Final

from cluster.report.page import Section, bare, table
from vidssl.evaluation.tables import NAMES, Beside, Task, beside

__all__ = ["published_part"]

Json = Mapping[str, Any]

_TITLES: Final[dict[Task, str]] = {"retrieval": "Retrieval", "linear": "Linear probe", "finetune": "Fine-tuning"}
_OPEN: Final = 8
"""Published rows shown at once; the rest folds."""


def published_part(results: Mapping[str, Json]) -> Section:
    """Ours beside theirs; a sentence where no paper reports this data, or nothing was measured."""
    title = "Beside the papers"
    lead = (
        "Numbers as the papers and their authors state them, fewest differences first. A difference in the last column can be worth "
        "more than the method: rows of different protocols are no ranking. Numbers that could not be read at their source are left out."
    )
    about = next((found["protocol"] for found in results.values() if "dataset" in found["protocol"]), None)
    if about is None:
        return Section(title, lead, '<p class="missing">Not evaluated yet, so there is nothing to compare.</p>')
    if about["dataset"] is None:
        words = (
            f"No published row is for this data ({escape(str(about['data_hash']))}): the papers report UCF101 and HMDB51, and a number "
            "from other videos says nothing about theirs. The rivals above are the comparison."
        )
        return Section(title, lead, f'<p class="missing">{words}</p>')
    parts: list[str] = []
    for name, task in _shown(results):
        own, found = _ours(task, results[name]), results[name]
        rows = beside(task, _facts(found["protocol"], about), list(own))
        if rows:
            kind = {"finetune-linear": ", trained on clips", "finetune-scratch": ", from random weights"}.get(name, "")
            heading = f"{_TITLES[task]} on {NAMES[about['dataset']]}, {found['protocol']['view']}{kind}"
            parts.append(f"<h3>{escape(heading)}</h3>" + _table(found["protocol"]["run"], own, rows))
    return Section(title, lead, "".join(parts) or '<p class="missing">Nothing that the papers report was measured.</p>')


def _facts(protocol: Json, about: Json) -> dict[str, Any]:
    """What `beside` compares; the data set and its split are those of the other evaluations of this page."""
    facts = {key: about[key] for key in ("dataset", "split", "pretrained")} | dict(protocol)
    if protocol.get("init") == "scratch":
        facts["pretrained"] = "none"
    if "end to end" in str(protocol["id"]):
        facts["id"] = "clips"
    return facts | {"stream": protocol.get("stream", protocol["view"])}


def _shown(results: Mapping[str, Json]) -> list[tuple[str, Task]]:
    tasks: tuple[tuple[str, Task], ...] = (
        ("retrieval", "retrieval"),
        ("retrieval-joint", "retrieval"),
        ("linear", "linear"),
        ("linear-joint", "linear"),
        ("finetune-linear", "linear"),
        ("finetune", "finetune"),
        ("finetune-scratch", "finetune"),
    )
    return [(name, task) for name, task in tasks if name in results and results[name]["results"] is not None]


def _ours(task: Task, found: Json) -> dict[str, float]:
    if task == "retrieval":
        return {k: 100 * value for k, value in found["results"]["trained"]["recall"].items()}
    row = found["results"]["chosen" if "chosen" in found["results"] else "trained"]
    return {"accuracy": 100 * row["accuracy"]}


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
