"""What did it find? The parts of the report about neighbours, classes and the space; what is missing is said in words."""

from __future__ import annotations

from html import escape

from cluster.evaluation.retrieval import RetrievalResult
from cluster.page.parts import Section, card, class_bars
from cluster.page.pictures import class_map, pca_2d
from cluster.report.frames import StripReader
from vidssl.saved.embeddings import Embedded

__all__ = ["classes_part", "map_part", "neighbours_part"]


def neighbours_part(
    result: RetrievalResult | None, strips: StripReader | None, store: Embedded | None, reason: str
) -> Section:
    """Queries and their five nearest videos as film strips."""
    title = "What it takes for similar"
    lead = (
        "Each box is one query (blue) with its five nearest videos, nearest first: three frames of each, oldest left. "
        "Green ✓ has the query's class, red ✗ has not. The queries were drawn by chance, one per class as far as it goes, "
        "never by success. Look for what neighbours share: the motion, or only the scene?"
    )
    examples = result.examples if result else ()
    if not examples or strips is None or store is None:
        return _no_pictures(title, lead, (result.reason if result else None) or reason or "no query was found")
    classes, row_of = store.protocol["classes"], {int(instance): row for row, instance in enumerate(store.instance)}
    if not {video for one in examples for video in (one.query, *one.neighbours)} <= row_of.keys():
        return _no_pictures(
            title, lead, "the stored embeddings are of other videos than retrieval.json; evaluate again"
        )

    def class_of(instance: int) -> str:
        label = int(store.label[row_of[instance]])
        return classes[label] if label >= 0 else "unknown"

    boxes = []
    for example in examples:
        asked = class_of(example.query)
        cells = [_shot(strips.strip(example.query), "ask", "query", asked, "")]
        for instance, similarity in zip(example.neighbours, example.similarity, strict=False):
            name = class_of(instance)
            kind, mark = ("right", "✓") if name == asked else ("wrong", "✗")
            cells.append(_shot(strips.strip(instance), kind, mark, name, f"{similarity:.2f}"))
        boxes.append(f'<div class="query">{"".join(cells)}</div>')
    return Section(
        title,
        lead,
        "".join(boxes) + '<p class="note">The number is the cosine of the two features: 1 is the same direction.</p>',
    )


def _no_pictures(title: str, lead: str, why: str) -> Section:
    return Section(title, lead, f'<p class="missing">No pictures: {escape(why)}.</p>')


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


def classes_part(result: RetrievalResult | None) -> Section | None:
    """R@1 of every class; None where there are no classes to compare."""
    if not result or not result.per_class:
        return None
    rows = [(name, row["trained"], row.get("untrained")) for name, row in result.per_class.items()]
    lead = "R@1 of each class in percent, best first; the tick is the untrained encoder. A class whose bar ends before the tick got worse."
    return Section("Class by class", lead, class_bars(rows))


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
