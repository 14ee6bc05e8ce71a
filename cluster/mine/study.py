"""What is mined in offline? The rows of two views, who they are, who asks: from a bank, from a store, or embedded now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cluster.mine.words import Search
from vidssl.errors import BankError, RecipeError
from vidssl.methods import bank_views_of
from vidssl.mining.plan import LastView
from vidssl.mining.snapshots import latest_snapshot, load_snapshot
from vidssl.mining.space import AskedSpace, Space, SpaceKind, fit_space, raw_space
from vidssl.recipe import Recipe
from vidssl.saved.run_folder import RunFolder

if TYPE_CHECKING:
    from pipelines.dataset.manifest import Manifest

__all__ = ["About", "Rows", "Study", "carried", "study_of_bank", "study_of_rows"]

Rows = NDArray[np.floating]
S = TypeVar("S", bound=Search)


@dataclass(frozen=True)
class About:
    """Where rows come from; see `Study`."""

    source: str
    n_slots: int
    data: str = ""
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Study:
    """A bank as offline mining sees it: its n filled rows, in the order of their slots.

    Attributes:
        main: [n, D] rows of the view that mines first.
        aux: [n, D] rows of the trained view; None where there is one view only.
        group: int64 [n]; a query never mines its own group.
        label: int64 [n], -1 unknown.
        queries: int64 [Q], rows that mine, ascending.
        last_view: View of the last stage.
        source: The rows in words, e.g. the folder of the snapshot.
        n_slots: N, filled or not.
        data: Hash of the data set, empty when it is unknown.
        views: Names of main and aux, or of main alone.
        classes: Their names; empty where nobody knows.
    """

    main: Rows
    aux: Rows | None
    group: NDArray[np.int64]
    label: NDArray[np.int64]
    queries: NDArray[np.int64]
    last_view: LastView
    source: str
    n_slots: int
    data: str
    views: tuple[str, ...]
    classes: tuple[str, ...] = ()
    _fitted: dict[AskedSpace, Space] = field(default_factory=dict)

    @property
    def n_filled(self) -> int:
        """n, the rows that can be mined."""
        return len(self.group)

    @property
    def labelled(self) -> bool:
        """Whether precision can be measured at all."""
        return bool((self.label[self.queries] >= 0).any())

    @property
    def class_sizes(self) -> NDArray[np.int64]:
        """Filled rows of every class that has any."""
        return np.unique(self.label[self.label >= 0], return_counts=True)[1]

    def space(self, asked: AskedSpace) -> Space:
        """The map that these rows carry, fitted on all of them; raw, with the reason, where they carry none."""
        if self.aux is not None and self.aux.shape != self.main.shape:
            return raw_space(f"the views are {self.main.shape[1]} and {self.aux.shape[1]} numbers wide")
        if asked not in self._fitted:
            self._fitted[asked] = fit_space(asked, dict(zip(self.views, self._raw(), strict=True)))
        return self._fitted[asked]

    def rows_in(self, space: SpaceKind) -> list[Rows]:
        """[n, R] rows of main and aux (where there is one) as mining in `space` sees them."""
        if space == "raw":
            return self._raw()
        fitted = self.space(space)
        return [fitted.apply(view, rows) for view, rows in zip(self.views, self._raw(), strict=True)]

    def _raw(self) -> list[Rows]:
        return [self.main] if self.aux is None else [self.main, self.aux]

    def class_name(self, label: int) -> str:
        """Of a class, for people."""
        return self.classes[label] if label < len(self.classes) else str(label)

    def chance(self) -> float:
        """Expected precision of positives drawn at random from what each query may mine."""
        label, group = self.label[self.queries], self.group[self.queries]
        known = label >= 0
        same_class = _sizes(self.label, label) - _together(self.label, self.group, label, group)
        allowed = self.n_filled - _sizes(self.group, group)
        return float((same_class[known] / np.maximum(allowed[known], 1)).mean()) if known.any() else float("nan")


def study_of_bank(folder: RunFolder, recipe: Recipe, search: Search) -> Study:
    """The newest bank snapshot of a run with the labels of its data.

    Raises:
        BankError: the run has no snapshot, or not of the recipe's two views.
    """
    path = latest_snapshot(folder.bank)
    if path is None:
        raise BankError(
            f"{folder.path} has no bank snapshot; train it with mining.where=actor for at least one checkpoint, "
            f"or type vidssl mine {folder.path}, which makes embeddings itself"
        )
    bank = load_snapshot(path)
    main, aux = bank_views_of(recipe)
    if missing := {main, aux} - set(bank.views):
        raise BankError(
            f"{path} holds {', '.join(bank.views)} and not {', '.join(sorted(missing))}; set method.name, method.view and method.second_view as in the run"
        )
    warm = recipe.method.warmup_steps
    # Rows of the warm-up come from a much younger encoder; training overwrites them as it goes.
    oldest = warm if bank.step >= warm else 0
    filled = np.flatnonzero(bank.version >= oldest)
    if len(filled) < 3:
        raise BankError(f"{path} holds {len(filled)} filled rows since the warm-up ended at step {warm}; train on")
    manifest = _manifest(search.data or recipe.data, bank.n_slots)
    label = np.full(bank.n_slots, -1, np.int64) if manifest is None else manifest.samples.label.astype(np.int64)
    views = {name: bank.vectors(filled, name) for name in (main, aux)}
    about = About(str(path), bank.n_slots, manifest.hash, tuple(manifest.classes)) if manifest else None
    return study_of_rows(
        views, bank.group[filled], label[filled], search, recipe, about or About(str(path), bank.n_slots)
    )


def carried(study: Study, search: S) -> tuple[S, list[str]]:
    """The search in the spaces that these rows carry, and a sentence for each of the others.

    Raises:
        RecipeError: none of those that were asked for.
    """
    kept: list[SpaceKind] = []
    notes: list[str] = []
    for asked in dict.fromkeys(search.spaces):
        found = study.space(asked)
        if found.kind == asked:
            kept.append(asked)
        else:
            notes.append(f"{asked} rows are left out: {found.why}")
    if not kept:
        raise RecipeError(f"spaces={list(search.spaces)}: {'; '.join(notes)}; type spaces=raw")
    return search.model_copy(update={"spaces": tuple(kept)}), notes


def study_of_rows(
    views: Mapping[str, Rows],
    group: NDArray[np.int64],
    label: NDArray[np.int64],
    search: Search,
    recipe: Recipe,
    about: About,
) -> Study:
    """Rows [n, D] by view, main first, as a study; of many rows a seeded sample asks."""
    queries = np.arange(len(group))
    if len(queries) > search.queries:
        queries = np.sort(np.random.default_rng(search.seed).choice(queries, search.queries, replace=False))
    main, *aux = views.values()
    return Study(
        main=main,
        aux=aux[0] if aux else None,
        group=group,
        label=label,
        queries=queries,
        last_view=recipe.mining.last_view,
        source=about.source,
        n_slots=about.n_slots,
        data=about.data,
        views=tuple(views),
        classes=about.classes,
    )


def _manifest(data: str | None, n_slots: int) -> Manifest | None:
    """Who knows the labels by slot; None where nobody names data."""
    from pipelines.dataset.manifest import load_manifest
    from pipelines.dataset.place import place_of

    if data is None:
        return None
    manifest = load_manifest(place_of(data), verify="nothing")  # labels alone are asked for
    if len(manifest) != n_slots:
        raise BankError(
            f"{data} holds {len(manifest)} videos and the bank {n_slots} slots; give the data of this run as data=FOLDER"
        )
    return manifest


def _sizes(of: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each of `values` occurs in `of`."""
    known, counts = np.unique(of, return_counts=True)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[at] == values, counts[at], 0)


def _together(
    label: NDArray[np.int64], group: NDArray[np.int64], of_label: NDArray[np.int64], of_group: NDArray[np.int64]
) -> NDArray[Any]:
    """Rows that share both the class and the group of each query."""
    width = int(group.max()) + 2
    return _sizes((label + 1) * width + group, (of_label + 1) * width + of_group)
