"""What does `vidssl evaluate` print? The results as short tables, and the alarm where the encoder has collapsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["results_table"]

Json = Mapping[str, Any]


def results_table(results: Json) -> str:
    """The lines that `vidssl evaluate` prints; only what was measured."""
    lines: list[str] = []
    makers = {
        "retrieval": _retrieval,
        "knn": _knn,
        "linear": _linear,
        "fewshot": _few_shot,
        "mining": _mining,
    }
    for name, maker in makers.items():
        if name in results:
            found = results[name]
            about = found["protocol"]
            lines += maker(found, about) if found["results"] is not None else [f"{name}: {found['reason']}"]
    return "\n".join([*lines, *_health(results)])


def _retrieval(found: Json, about: Json) -> list[str]:
    ks = list(found["results"]["trained"]["recall"])
    lines = [
        f"retrieval {about['id']} on data {about['data_hash']}, {about['search']}, view {about['view']}",
        f"  {'':15}" + "".join(f"{'R@' + k:>8}" for k in ks),
    ]
    return lines + [
        f"  {name:15}" + "".join(f"{100 * row['recall'][k]:7.1f} " for k in ks)
        for name, row in found["results"].items()
    ]


def _knn(found: Json, about: Json) -> list[str]:
    head = f"{about['neighbours']} nearest neighbours, view {about['view']}"
    rows = [
        (
            name,
            row["accuracy"],
            row.get("interval95"),
            f"majority {100 * row['majority']:.1f}" if "majority" in row else "",
        )
        for name, row in found["results"].items()
    ]
    return _accuracies(head, rows)


def _linear(found: Json, about: Json) -> list[str]:
    head = (
        f"linear probe, {about['train_videos']} training and {about['test_videos']} test videos, view {about['view']}"
    )
    rows = []
    for name, row in found["results"].items():
        chosen = ", ".join(f"lr {one['lr']:g} decay {one['weight_decay']:g}" for one in row.get("streams", ()))
        rows.append((name, row["accuracy"], row.get("interval95"), chosen))
    return _accuracies(head, rows)


def _accuracies(head: str, rows: Sequence[tuple[str, float, Sequence[float] | None, str]]) -> list[str]:
    lines = [head, f"  {'':15}{'accuracy':>9}  (95 % interval)"]
    for name, value, interval, note in rows:
        between = f"({100 * interval[0]:.1f} - {100 * interval[1]:.1f})" if interval else ""
        lines.append(f"  {name:15}{100 * value:8.1f}   {between:16}{note}".rstrip())
    return lines


def _few_shot(found: Json, about: Json) -> list[str]:
    shots = list(found["results"]["trained"])
    lines = [
        f"few-shot, {about['draws']} draws, view {about['view']}",
        f"  {'':15}" + "".join(f"{'n=' + n:>14}" for n in shots),
    ]
    for name, row in found["results"].items():
        cells = []
        for n in shots:
            edges = row[n].get("interval95")
            half = f" ± {50 * (edges[1] - edges[0]):.1f}" if edges else " " * 6
            cells.append(f"{100 * row[n]['accuracy']:.1f}{half}")
        lines.append(f"  {name:15}" + "".join(f"{cell:>14}" for cell in cells))
    return lines


def _mining(found: Json, about: Json) -> list[str]:
    lines = [
        f"mining on the bank of step {about['bank_step']}, {about['plan']}",
        f"  {'':15}{'prec@k':>8}{'hit@k':>8}{'coverage':>9}  (median over classes)",
    ]
    return lines + [
        f"  {name:15}{100 * row['precision']:7.1f} {100 * row['hit']:7.1f} {100 * row['coverage_median']:8.1f}"
        for name, row in found["results"].items()
    ]


def _health(results: Json) -> list[str]:
    health = next((found["health"] for found in results.values() if found.get("health")), None)
    if health is None:
        return []
    return [("ALARM, embeddings " if health["collapsed"] else "embeddings ") + str(health["verdict"])]
