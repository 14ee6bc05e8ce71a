"""Where are the videos and lists of each data set, how is it packed, and what is missing?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from cluster.keywords import ReproduceWords
from cluster.reproduce.names import Reproduction
from pipelines.packing.catalog import FORMATS, read_catalog
from pipelines.packing.folds import fold_folder, folds_of
from pipelines.packing.formats.official import NoLists
from pipelines.packing.options import PackOptions, pack_options
from vidssl.errors import DataError, RecipeError
from vidssl.evaluation.tables import NAMES
from vidssl.recipe import Recipe, phase_recipe

__all__ = ["Source", "sources_of"]

Data = Literal["ucf101", "hmdb51", "k400"]
_LISTS: Final = {
    "ucf101": ("trainlist01.txt", "ucfTrainTestlist"),
    "hmdb51": ("*_test_split1.txt", "testTrainMulti_7030_splits"),
    "k400": ("train.csv", "annotations"),
}
"""A list of each, and the folder that it is usually in."""
_EVALUATED_SIDE: Final = "size=240"
"""UCF101 and HMDB51 are 240 pixels high; a pack for Kinetics would enlarge them."""


@dataclass(frozen=True)
class Source:
    """One data set of a reproduction.

    Attributes:
        data: Which.
        word: What its folder is typed behind.
        videos: That folder; None: not given.
        words: Of its pack, without folds.
        packed: Where it is packed to.
        fold: As typed.
        twin: Its videos are made here.
    """

    data: Data
    word: str
    videos: Path | None
    words: tuple[str, ...]
    packed: Path
    fold: str
    twin: bool = False

    @property
    def format(self) -> str:
        """Name of the packing format."""
        return "kinetics" if self.data == "k400" else self.data

    @property
    def options(self) -> PackOptions:
        """Of split 1."""
        return pack_options(self.words)

    @cached_property
    def folds(self) -> tuple[int, ...]:
        """Official splits that are evaluated: those asked for of those that there are, as far as that is known."""
        there = (1,) if self.data == "k400" else (1, 2) if self.twin else self._official()
        return tuple(fold for fold in there if self.fold in ("all", str(fold)))

    def place(self, fold: int) -> Path:
        """The pack of one split."""
        return fold_folder(self.packed, fold)

    def missing(self) -> list[str]:
        """What keeps it from being packed, a sentence each."""
        if self.twin:
            return self._without_opencv()
        kind = FORMATS[self.format]
        if self.videos is None:
            return [
                f"the videos of {NAMES[self.data]}: type {self.word}=FOLDER ({kind.looks_for})",
                *self._without_opencv(),
            ]
        if not self.videos.is_dir():
            return [f"{NAMES[self.data]}: {self.videos} is no folder; type {self.word}=FOLDER", *self._without_opencv()]
        try:
            read_catalog(self.format, self.videos, self.options)
        except (DataError, RecipeError) as error:
            return [f"{NAMES[self.data]}: {error}", *self._without_opencv()]
        return self._without_opencv()

    def gaps(self) -> list[str]:
        """What the lists name and nobody has: it is packed without, and said."""
        if self.twin or self.videos is None:
            return []
        try:
            catalog = read_catalog(self.format, self.videos, self.options)
        except (DataError, RecipeError):
            return []
        gone = sum(not os.path.exists(catalog.root / row.source) for row in catalog.rows) + len(catalog.left_out)
        whole = len(catalog.rows) + len(catalog.left_out)
        said = [f"{gone} of {whole} videos of {NAMES[self.data]} are listed and not there"] if gone else []
        asked = (1, 2, 3) if FORMATS[self.format].has_folds and self.fold == "all" else ()
        lost = [str(fold) for fold in asked if fold not in self.folds]
        return [*said, *([f"{NAMES[self.data]} without split {' and '.join(lost)}: no lists of it"] if lost else [])]

    def _without_opencv(self) -> list[str]:
        from pipelines.packing.flow import require_opencv

        try:
            require_opencv(self.options.flow_form())
        except RecipeError as error:
            return [str(error)]
        return []

    def _official(self) -> tuple[int, ...]:
        """What the lists say; what is packed, where the videos are gone since; all, where there is nothing to look at yet."""
        listed = (
            tuple(fold for fold in (1, 2, 3) if self._has_lists(fold)) if self.videos and self.videos.is_dir() else ()
        )
        if not listed and (self.packed / "manifest.json").is_file():
            return folds_of(self.packed)
        return listed or (1, 2, 3)  # without any list it is missing, and that is said

    def _has_lists(self, fold: int) -> bool:
        try:
            read_catalog(self.format, self.videos or "", self.options.model_copy(update={"fold": fold}))
        except NoLists:
            return False
        except (DataError, RecipeError):
            return True  # it is said what is wrong with them, and they are not passed over
        return True


def sources_of(entry: Reproduction, words: ReproduceWords, recipe: Recipe, home: Path) -> tuple[Source, ...]:
    """The data sets that a reproduction takes, that of the pre-training first."""
    pack = _pack_words(entry, words, recipe)
    if entry.twin:
        return (
            Source("ucf101", "videos", home / "videos" / "videos", pack, home / "packed" / "ucf101", words.fold, True),
        )

    def source(data: Data, word: str, typed: str | None) -> Source:
        videos = None if typed is None else Path(typed).expanduser().resolve()
        mine = (
            pack if data == entry.trains else [*(one for one in pack if not one.startswith("size=")), _EVALUATED_SIDE]
        )
        lists = _lists(words.splits, data)
        mine = [*mine, *([f"splits={lists}"] if lists else [])]
        return Source(data, word, videos, tuple(mine), home / "packed" / data, words.fold)

    found = [source(entry.trains, "videos", words.videos)]
    if entry.trains == "k400":
        found.append(source("ucf101", "ucf101", words.ucf101))
    if words.hmdb51 is not None:
        found.append(source("hmdb51", "hmdb51", words.hmdb51))
    return tuple(found)


def _pack_words(entry: Reproduction, words: ReproduceWords, recipe: Recipe) -> tuple[str, ...]:
    """As the recipe's header has them; without flow where no stream reads it, or made as it was typed."""
    own = [recipe, *(phase_recipe(recipe, one) for one in recipe.phases)]
    reads_flow = any({"flow", "u", "v"} & set(one.views) for one in own)
    stated = entry.pack.split()
    if not reads_flow:
        return tuple(word for word in stated if not word.startswith("flow"))
    if words.flow is None:
        return tuple(stated if any(word.startswith("flow=") for word in stated) else [*stated, "flow=dis"])
    return (*(word for word in stated if not word.startswith("flow=")), f"flow={words.flow}")


def _lists(splits: str | None, data: str) -> Path | None:
    """The folder below (or at) `splits=` that holds the lists of a data set; None: they are looked for beside its videos."""
    if splits is None:
        return None
    pattern, usual = _LISTS[data]
    root = Path(splits).expanduser().resolve()
    places: Sequence[Path] = (root, root / usual)
    return next((place for place in places if any(place.glob(pattern))), None)
