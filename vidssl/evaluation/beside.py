"""In which ways does a number of ours differ from a published one? Everything that makes the two another measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vidssl.evaluation.protocol import share_words
from vidssl.evaluation.tables import NAMES, PUBLISHED, Measurement, PaperRow

__all__ = ["Beside", "Ours", "beside"]

_ON_240_ROWS = ("CoCLR", "CPR", "ViCC")


@dataclass(frozen=True, kw_only=True)
class Ours:
    """What of our own measurement the papers' rows are compared with; None: unknown.

    Attributes:
        dataset: As `PaperRow.data`, and so on for the others.
        split: Official split.
        pretrained: Data of the pre-training.
        id: p1_strict | p1_ref | centre | p2; clips: trained on clips.
        T: Frames.
        size: Pixels.
        backbone: Network.
        stream: As `PaperRow.stream`.
        windows: Most windows of a video; 0: all.
        crops: Of the test.
        crop: Side of its squares in short sides.
        epochs: Of the pre-training.
        choose: Of a training, which epoch is reported: held_out | last.
    """

    dataset: str | None = None
    split: str | None = None
    pretrained: str | None = None
    id: str | None = None
    T: int | None = None
    size: int | None = None
    backbone: str | None = None
    stream: str | None = None
    windows: int | None = None
    crops: str | None = None
    crop: float | None = None
    epochs: float | None = None
    choose: str | None = None


@dataclass(frozen=True)
class Beside:
    """A published row and everything in which ours differs from it, in words."""

    row: PaperRow
    differences: tuple[str, ...]


def beside(task: Measurement, ours: Ours, measured: Sequence[str]) -> list[Beside]:
    """Published rows on the same data set and task, each with what makes it another measurement than ours.

    Args:
        task: retrieval | linear | finetune.
        ours: Facts of our result, as far as they are known.
        measured: Our metrics ("1", "5" … or "accuracy"); a row without any of them is left out.

    Returns:
        Fewest differences first; empty for data that no paper reports.
    """
    rows = [
        row for row in PUBLISHED if row.task == task and row.data == ours.dataset and set(row.values) & set(measured)
    ]
    found = [Beside(row, _differences(row, ours)) for row in rows]
    return sorted(found, key=lambda one: (_count(one.differences), one.row.paper, one.row.what))


def _count(differences: Sequence[str]) -> int:
    """Differences, every fact that is not stated for itself."""
    return sum(1 + (one.count(",") if one.startswith("not stated") else 0) for one in differences)


def _differences(row: PaperRow, ours: Ours) -> tuple[str, ...]:
    differ: list[str] = []
    pre = ours.pretrained
    if row.pretrained != pre:
        differ.append(f"pre-trained on {_data(row.pretrained)}, ours on {_data(pre)}")
    if row.split != ours.split:
        differ.append(f"split {row.split}, ours {ours.split or 'unknown'}")
    unsaid: list[str] = []
    for name, theirs, own in (
        ("backbone", row.backbone, ours.backbone),
        ("stream", row.stream, ours.stream),
        ("frames", row.frames, ours.T),
        ("pixels", row.size, ours.size),
        ("epochs", row.epochs, ours.epochs),
    ):
        if theirs is None:
            unsaid.append(name)
        elif theirs != own:
            differ.append(f"{name} {theirs}, ours {_word(own)}")
    differ += [f"not stated: {', '.join(unsaid)}"] if unsaid else []
    return (*differ, *_protocol_differences(row, ours))


def _protocol_differences(row: PaperRow, ours: Ours) -> list[str]:
    """What the measuring itself does differently."""
    own, square = str(ours.id), _other_square(row, ours)
    chosen = "the last epoch" if ours.choose == "last" else "on held-out training groups"
    if row.protocol == "p1":
        if own == "p2":
            return ["P1 (all windows, pooled features, centred), ours P2"]
        differ = [f"all windows of a video and colour jitter at the test, ours at most {ours.windows} windows, none"]
        if ours.windows == 0:
            differ = ["colour jitter at the test, ours none"]
        differ += square
        return (
            differ if own == "p1_ref" else [*differ, "test videos centred by their own mean, ours by the training mean"]
        )
    if row.protocol == "p2":
        if own != "p2":
            return [f"P2 (ten clips, last map, not centred), ours {own}"]
        return ["the last incomplete batch is dropped (7 test videos), ours keeps them"]
    if row.protocol == "p3":
        clips = [] if "clips" in own else ["trained on augmented clips, ours on one saved feature per video"]
        crops = [] if str(ours.crops).startswith("ten") else ["ten crops at the test, ours the centre"]
        return [*clips, *crops, *square, f"settings and epoch by hand or on the test split, ours {chosen}"]
    differ = [f"epoch chosen on videos of the test split, ours {chosen}"]
    return [*differ, *square] if row.paper in _ON_240_ROWS else []


def _other_square(row: PaperRow, ours: Ours) -> list[str]:
    """CoCLR, CPR and ViCC show squares of 224 of the 240 rows of UCF101 and HMDB51."""
    if row.paper not in _ON_240_ROWS or ours.crop is None or abs(ours.crop - 224 / 240) < 1e-3:
        return []
    return [f"squares of 14/15 of the short side at the test, ours of {share_words(ours.crop)}"]


def _word(value: str | float | None) -> str:
    return "unknown" if value is None else value if isinstance(value, str) else f"{value:g}"


def _data(name: str | None) -> str:
    return "nothing (random weights)" if name == "none" else NAMES.get(name, str(name))
