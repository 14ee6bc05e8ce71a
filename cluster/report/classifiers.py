"""What do simple classifiers make of the features? The parts of the report about k-NN, probes, fine-tuning and two streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from cluster.report.page import Section, bare, card, percent, table

__all__ = ["classifiers_part", "fusion_part"]

Json = Mapping[str, Any]
Results = Mapping[str, Json]

_NAMES: Final = {
    "trained": "trained encoder",
    "untrained": "untrained encoder",
    "histogram": "colour histogram",
    "chance": "most frequent class",
}
_FINE: Final = {
    "finetune": "Fine-tuning of the whole network",
    "finetune-scratch": "The same network, trained from random weights",
    "finetune-linear": "Linear probe on clips (backbone frozen)",
}


def classifiers_part(results: Results, run: str) -> Section:
    """Every classifier that was measured, each beside its rivals; what was not measured is named with what to type."""
    title = "What classifiers make of it"
    lead = (
        "The features stay as they are and a simple classifier reads them: the vote of the nearest training videos, one linear "
        "layer, the mean of a few labelled videos per class. Settings were chosen on training videos that were held out, never "
        "on the test."
    )
    cards = [
        maker(results[name])
        for name, maker in (("knn", _knn), ("linear", _linear), ("fewshot", _few_shot))
        if name in results
    ]
    cards += [_finetune(name, results[name]) for name in _FINE if name in results]
    missing = [name for name in ("knn", "linear", "fewshot") if name not in results]
    note = ""
    if missing:
        words = f"Not measured: {', '.join(missing)}. Type <code>vidssl evaluate {escape(run)} what={','.join(missing)}</code>."
        note = f'<p class="missing">{words}</p>'
    return Section(title, lead, (f'<div class="grid wide">{"".join(cards)}</div>' if cards else "") + note)


def fusion_part(results: Results) -> Section | None:
    """Two streams together and each alone; None where they were not looked at together."""
    joint = {name.removesuffix("-joint"): found for name, found in results.items() if name.endswith("-joint")}
    measured = {name: found for name, found in joint.items() if found["results"] is not None}
    if not measured:
        return None
    how = {found["protocol"].get("fusion", "") for found in measured.values()}
    lead = f"The same videos through both streams: {escape(', '.join(sorted(how - {''})))}. Together has to beat the better one alone."
    cards = "".join(
        maker(measured[name])
        for name, maker in (("knn", _knn), ("linear", _linear), ("fewshot", _few_shot))
        if name in measured
    )
    body = _joint_retrieval(measured["retrieval"]) if "retrieval" in measured else ""
    return Section(
        "Two streams together", lead, body + (f'<div class="grid wide later">{cards}</div>' if cards else "")
    )


def _name(name: str, about: Json) -> str:
    if name == "trained" and " + " in str(about.get("view")):
        return "both streams"
    return _NAMES.get(name, name)


def _gone(title: str, found: Json) -> str:
    return card(title, f'<p class="missing">No score: {escape(str(found["reason"]))}.</p>')


def _accuracy_rows(found: Json) -> list[list[str]]:
    return [
        [_name(name, found["protocol"]), bare(row["accuracy"]), _between(row.get("interval95"))]
        for name, row in found["results"].items()
    ]


def _knn(found: Json) -> str:
    title = "Nearest neighbours vote"
    if found["results"] is None:
        return _gone(title, found)
    rows = _accuracy_rows(found)
    for row, numbers in zip(rows, found["results"].values(), strict=True):
        row.append(bare(numbers.get("majority")))
    about = found["protocol"]
    words = (
        f"k = {about['neighbours']}; weighted by exp(cosine / 0.07), and one vote each (majority). {_verdict(found)}"
    )
    return card(title, table(["percent", "accuracy", "95 % interval", "majority"], rows, strong=0), escape(words))


def _linear(found: Json) -> str:
    title = "Linear probe"
    if found["results"] is None:
        return _gone(title, found)
    about, trained = found["protocol"], found["results"]["trained"]
    chosen = "; ".join(
        f"rate {one['lr']:g}, decay {one['weight_decay']:g}"
        + (
            ""
            if one["held_out_accuracy"] is None
            else f" ({percent(one['held_out_accuracy'])} on {one['held_out_videos']} held-out videos)"
        )
        for one in trained["streams"]
    )
    gap = ", ".join(percent(one["train_accuracy"]) for one in trained["streams"])
    words = (
        f"{about['train_videos']} training and {about['test_videos']} test videos ({about['sides']}). Chosen: {chosen}. On its own "
        f"training videos: {gap}. Mean over classes: {percent(trained['per_class_mean'])}. {_verdict(found)}"
    )
    return card(title, table(["percent", "accuracy", "95 % interval"], _accuracy_rows(found), strong=0), escape(words))


def _few_shot(found: Json) -> str:
    title = "A few labelled videos"
    if found["results"] is None:
        return _gone(title, found)
    shots = list(found["results"]["trained"])
    rows = [
        [_name(name, found["protocol"])]
        + [f"{bare(row[n]['accuracy'])}{_half(row[n].get('interval95'))}" for n in shots]
        for name, row in found["results"].items()
    ]
    about = found["protocol"]
    words = (
        f"Nearest class mean of n labelled videos per class, {about['draws']} draws; ± is the 95 % interval of the mean over draws, "
        "not over test videos."
    )
    return card(title, table(["percent", *(f"n = {n}" for n in shots)], rows, strong=0), escape(words))


def _finetune(name: str, found: Json) -> str:
    about, rows = found["protocol"], []
    for kind in ("chosen", "last"):
        row = found["results"][kind]
        rows.append([f"{kind} epoch ({row['epoch']})", bare(row["accuracy"]), _between(row["interval95"])])
    rows.append(["most frequent class", bare(found["results"]["largest_class"]), ""])
    both = found.get("fused")
    if both:
        rows.append([f"with {both['with']}", bare(both["both"]), ""])
    words = (
        f"{about['id']}, {about['view']} stream, {about['init']} weights, {about['windows']} windows, crops {about['crops']}. "
        f"{about['checkpoint_rule']}."
    )
    return card(_FINE[name], table(["percent", "accuracy", "95 % interval"], rows, strong=0), escape(words))


def _joint_retrieval(found: Json) -> str:
    numbers = found["results"]
    ks = list(numbers["trained"]["recall"])
    rows = [
        [_name(name, found["protocol"]) if name != "chance" else "chance"]
        + [bare(row["recall"].get(k)) for k in ks]
        + [_between(row.get("r1_interval95"))]
        for name, row in numbers.items()
    ]
    head = ["percent", *(f"R@{k}" for k in ks), "R@1, 95 % interval"]
    about = found["protocol"]
    note = f"Protocol {about['id']}, {about['search']}, {numbers['trained']['queries']} queries."
    return table(head, rows, strong=0) + f'<p class="note">{escape(note)}</p>'


def _verdict(found: Json) -> str:
    """Whether the trained encoder is ahead by more than the number of test videos can explain."""
    rivals = {name: row for name, row in found["results"].items() if name != "trained"}
    trained, who = found["results"]["trained"], _name("trained", found["protocol"]).capitalize()
    who, verb = (f"{who} together", "") if who.startswith("Both") else (f"The {who.lower()}", "s")
    best = max(rivals, key=lambda name: rivals[name]["accuracy"])
    if trained["accuracy"] <= rivals[best]["accuracy"]:
        return f"{who} do{'es' if verb else ''} not beat: {_NAMES.get(best, best)}."
    highest = max(row.get("interval95", (0, row["accuracy"]))[1] for row in rivals.values())
    if trained["interval95"][0] <= highest:
        return f"{who} score{verb} highest, but the intervals overlap."
    return f"{who} beat{verb} all the others by more than the choice of test videos can explain."


def _between(interval: Sequence[float] | None) -> str:
    return f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}" if interval else ""


def _half(interval: Sequence[float] | None) -> str:
    return f" ± {50 * (interval[1] - interval[0]):.1f}" if interval else ""
