"""What did it learn? The parts of the report about retrieval; a part whose numbers are missing says so in words."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, Final

from cluster.report.frames import StripReader
from cluster.report.page import Section, bar_list, bare, card, not_evaluated, percent, table, tiles
from cluster.report.pictures import class_map, pca_2d
from vidssl.saved.embeddings import Embedded

__all__ = ["classes_part", "map_part", "neighbours_part", "retrieval_part"]

Json = Mapping[str, Any]

_NAMES: Final = {
    "trained": "trained encoder",
    "untrained": "untrained encoder",
    "histogram": "colour histogram",
    "chance": "chance",
}
_MANY_CLASSES: Final = 24


def retrieval_part(result: Json | None, run: str, taught: str | None = None) -> Section:
    """R@k beside what it has to beat; `taught` says how labels entered the training, where they did."""
    title = "Does it find videos of the same class?"
    lead = (
        "Each query video asks for its nearest neighbours; R@k is the share of queries that find at least one video of "
        f"their own class among the k nearest. {taught or 'No label was used in training.'} The encoder has to beat its own untrained "
        "self and the colours of the frames; chance is a random order."
    )
    if result is None:
        return Section(title, lead, not_evaluated(run))
    if result["results"] is None:
        return Section(title, lead, f'<p class="missing">No score: {escape(result["reason"])}.</p>')
    numbers: Json = result["results"]
    ks = list(numbers["trained"]["recall"])
    low, high = numbers["trained"]["r1_interval95"]
    big = [
        (percent(row["recall"].get("1")), f"R@1, {_NAMES.get(name, name)}", _tile_note(name, row))
        for name, row in numbers.items()
    ]
    rows = [
        [_NAMES.get(name, name), *(bare(row["recall"].get(k)) for k in ks), _interval(row)]
        for name, row in numbers.items()
    ]
    about = result["protocol"]
    words = (
        f"Protocol {about['id']}: {about['search']}, {numbers['trained']['queries']} queries, at most {about['windows']} windows of "
        f"{about['T']} frames (stride {about['stride']}, {about['size']} pixels) per video, {about['view']} stream. "
        f"From {numbers['trained']['queries']} queries a share is known only to within its interval "
        f"({percent(low)} to {percent(high)} for the trained R@1): smaller differences mean nothing."
    )
    head = ["percent", *(f"R@{k}" for k in ks), "R@1, 95 % interval"]
    return Section(
        title,
        lead,
        tiles(big)
        + f'<p class="verdict">{escape(_verdict(numbers))}</p>'
        + table(head, rows, strong=0)
        + f'<p class="note">{escape(words)}</p>',
    )


def _verdict(numbers: Json) -> str:
    """One honest sentence: does the trained encoder beat its rivals, and by more than the number of queries can tell?"""
    rivals = {name: row for name, row in numbers.items() if name != "trained"}
    score, (low, _) = numbers["trained"]["recall"].get("1", 0.0), numbers["trained"]["r1_interval95"]
    best = max(rivals, key=lambda name: rivals[name]["recall"].get("1", 0.0))
    highest = max(row.get("r1_interval95", (0.0, row["recall"].get("1", 0.0)))[1] for row in rivals.values())
    if score <= rivals[best]["recall"].get("1", 0.0):
        return f"The trained encoder does not beat: {_NAMES.get(best, best)}. It has not learned what these classes are about."
    if low <= highest:
        return (
            "The trained encoder is ahead of all the others, but the intervals overlap: more videos would have to tell."
        )
    return "The trained encoder beats all the others, by more than the choice of queries can explain."


def _tile_note(name: str, row: Json) -> str:
    if name == "chance":
        return "a random order of the same videos"
    if name == "histogram":
        return "the same frames, colours only"
    if name == "untrained":
        return "same network and seed, before training"
    low, high = row["r1_interval95"]
    return f"{row['queries']} queries; {percent(low)} to {percent(high)}"


def _interval(row: Json) -> str:
    if "r1_interval95" not in row:
        return ""
    low, high = row["r1_interval95"]
    return f"{100 * low:.1f} – {100 * high:.1f}"


def neighbours_part(result: Json | None, strips: StripReader | None, store: Embedded | None, reason: str) -> Section:
    """Queries and their five nearest videos as film strips."""
    title = "What it takes for similar"
    lead = (
        "Each box is one query (blue) with its five nearest videos, nearest first: three frames of each, oldest left. "
        "Green ✓ has the query's class, red ✗ has not. The queries were drawn by chance, one per class as far as it goes, "
        "never by success. Look for what neighbours share: the motion, or only the scene?"
    )
    examples = result["examples"] if result else []
    if not examples or strips is None or store is None:
        return Section(title, lead, f'<p class="missing">No pictures: {escape(reason or "no query has a label")}.</p>')
    classes, row_of = store.protocol["classes"], {int(instance): row for row, instance in enumerate(store.instance)}

    def class_of(instance: int) -> str:
        label = int(store.label[row_of[instance]])
        return classes[label] if label >= 0 else "unknown"

    boxes = []
    for example in examples:
        asked = class_of(example["query"])
        cells = [_shot(strips.strip(example["query"]), "ask", "query", asked, "")]
        for instance, similarity in zip(example["neighbours"], example["similarity"], strict=False):
            name = class_of(instance)
            kind, mark = ("right", "✓") if name == asked else ("wrong", "✗")
            cells.append(_shot(strips.strip(instance), kind, mark, name, f"{similarity:.2f}"))
        boxes.append(f'<div class="query">{"".join(cells)}</div>')
    return Section(
        title,
        lead,
        "".join(boxes) + '<p class="note">The number is the cosine of the two features: 1 is the same direction.</p>',
    )


def _shot(picture: str | None, kind: str, mark: str, name: str, note: str) -> str:
    image = (
        f'<img src="{picture}" alt="{escape(name)}" loading="lazy">'
        if picture
        else '<div class="gone">this video could not be read</div>'
    )
    return (
        f'<figure class="shot {kind}">{image}<figcaption><span><b>{mark}</b> {escape(name)}</span>'
        f"<small>{note}</small></figcaption></figure>"
    )


def classes_part(result: Json | None) -> Section | None:
    """R@1 of every class; None where there are no classes to compare."""
    if not result or not result["per_class"]:
        return None
    items: Json = result["per_class"]
    rows = sorted(
        ((name, row["trained"], row.get("untrained")) for name, row in items.items()), key=lambda row: (-row[1], row[0])
    )
    lead = "R@1 of each class in percent, best first; the tick is the untrained encoder. A class whose bar ends before the tick got worse."
    if len(rows) <= _MANY_CLASSES:
        return Section("Class by class", lead, bar_list(rows))
    half = _MANY_CLASSES // 2
    body = f"<h3>best {half}</h3>{bar_list(rows[:half])}<h3>worst {half}</h3>{bar_list(rows[-half:])}"
    return Section(
        "Class by class", lead, body + f"<details><summary>all {len(rows)} classes</summary>{bar_list(rows)}</details>"
    )


def map_part(store: Embedded | None) -> Section | None:
    """The feature space from above; None where nothing is stored."""
    if store is None or not store.feature or len(store) < 3:
        return None
    view, rows = next(iter(store.feature.items()))
    xy, share = pca_2d(rows)
    classes = list(store.protocol["classes"])
    few = len(classes) <= 30
    lead = (
        "Each dot is a video, placed by the two directions in which the features differ most (principal components). "
        + ("Colour is the class. " if few else "Colour is the class; hover over a dot for its name. ")
        + f"These two directions hold {100 * share:.0f} % of the variance: what lies together here may still be far apart in the rest."
    )
    return Section(
        "The space from above", lead, card(f"{len(store)} videos, {view} stream", class_map(xy, store.label, classes))
    )
