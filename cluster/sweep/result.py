"""What does a sweep leave? best.yaml and sweep.png beside its rows, and the table of `vidssl mine` as text."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.mine.measure import Row
from cluster.mine.picture import draw_points
from cluster.mine.study import Study
from cluster.mine.table import Findings, find, recipe_words, table_text, value_of
from cluster.mine.words import Search, own_point
from cluster.sweep.ledger import Ledger
from vidssl.files import write_whole
from vidssl.recipe import Recipe

__all__ = ["write_results"]


def write_results(ledger: Ledger, study: Study, search: Search, recipe: Recipe) -> str:
    """best.yaml (with labels) and sweep.png beside the rows; returns the text to print."""
    picture, k = ledger.folder / "sweep.png", recipe.mining.topk
    draw_points(ledger.rows, search.metric, study, picture)
    files = [str(ledger.path), str(picture)]
    if study.labelled:
        best = ledger.folder / "best.yaml"
        write_whole(best, _best_yaml(ledger.rows, find(ledger.rows, search.metric, k), study))
        files.append(str(best))
    own = own_point(recipe.mining, study.n_filled, study.space(recipe.mining.space).kind) if recipe.mines else None
    return "\n".join([*table_text(ledger.rows, study, search.metric, k, own), "", *files])


def _best_yaml(rows: Sequence[Row], found: Findings, study: Study) -> str:
    lines = [
        f"# best of {len(rows)} points by {found.metric} on {study.source}",
        f"# data {study.data}, {len(study.queries)} queries",
    ]
    for k in sorted({row.topk for row in rows} - {found.k}):
        row = find(rows, found.metric, k).best
        lines.append(f"# k={k}: {_recipe_line(row, study)}  ({found.metric} {value_of(row, found.metric):.3f})")
    lines.append(f"# k={found.k}: {found.metric} {value_of(found.best, found.metric):.3f}")
    return "\n".join([*lines, _recipe_line(found.best, study), ""])


def _recipe_line(row: Row, study: Study) -> str:
    """`recipe_words` as YAML."""
    words = (word.removeprefix("mining.").replace("=", ": ") for word in recipe_words(row, study))
    return f"mining: {{{', '.join(words)}}}"
