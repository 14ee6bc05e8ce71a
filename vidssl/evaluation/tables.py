"""What did the papers report? Their rows with the protocol behind each; `beside` compares ours with them.

Only numbers that were read at their source are here: the abstracts of CPR and ViCC, the README tables of CoCLR and IIC and
the answers of their authors in the issue threads. Numbers known from memory alone are left out, so the tables have holes.
Rows of different protocols are no ranking: 32 frames at 128 pixels and all windows (P1) against ten clips of 16 frames at
112 pixels (P2) move R@1 by more than most methods do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["NAMES", "PUBLISHED", "Measurement", "PaperRow", "dataset_of"]

Measurement = Literal["retrieval", "linear", "finetune"]

NAMES: Final = {"ucf101": "UCF101", "hmdb51": "HMDB51", "k400": "Kinetics-400", None: "unknown data"}
_LOOKS_LIKE: Final = {"ucf101": (101, {"ApplyEyeMakeup", "YoYo"}), "hmdb51": (51, {"brush_hair", "wave"})}


@dataclass(frozen=True)
class PaperRow:
    """One row of a published table; None: not stated at the source.

    Attributes:
        paper: Who reports it.
        what: Method and variant.
        task: retrieval | linear | finetune.
        data: The evaluated data set: ucf101 | hmdb51.
        pretrained: Data of the pre-training: ucf101 | k400 | none (from random weights).
        backbone: As `model.backbone` names it, or a word for what has no such name.
        stream: rgb | flow | residual | rgb + flow …
        protocol: p1 | p2 | p3 (linear probe) | p4 (fine-tuning).
        split: Official split, or "mean of 3".
        frames: T.
        size: Pixels.
        values: R@k by "1", "5" …, or "accuracy", in percent.
        source: Where the number was read.
        epochs: Of the pre-training.
    """

    paper: str
    what: str
    task: Measurement
    data: str
    pretrained: str | None
    backbone: str | None
    stream: str | None
    protocol: str
    split: str
    frames: int | None
    size: int | None
    values: Mapping[str, float]
    source: str
    epochs: int | None = None


def _r(*values: float) -> dict[str, float]:
    return dict(zip(("1", "5", "10", "20", "50"), values, strict=False))


def _coclr(
    task: Measurement,
    what: str,
    stream: str,
    values: Mapping[str, float],
    source: str,
    data: str = "ucf101",
    pre: str | None = "ucf101",
    epochs: int | None = None,
) -> PaperRow:
    protocol = {"retrieval": "p1", "linear": "p3", "finetune": "p4"}[task]
    return PaperRow(
        "CoCLR", what, task, data, pre, "s3d", stream, protocol, "1", 32, 128, values, f"CoCLR {source}", epochs
    )


def _a(value: float) -> dict[str, float]:
    return {"accuracy": value}


def _coclr_rows() -> list[PaperRow]:
    two = "rgb + flow"
    return [
        _coclr("retrieval", "InfoNCE", "rgb", _r(33.1), "README"),
        _coclr("retrieval", "InfoNCE", "flow", _r(45.2), "README"),
        _coclr("retrieval", "CoCLR", "rgb", _r(51.8), "README"),
        _coclr("retrieval", "CoCLR", "flow", _r(48.4), "README"),
        _coclr(
            "retrieval",
            "InfoNCE, released weights measured by a user",
            "rgb",
            _r(36.1, 52.3, 61.7, 71.0, 82.1),
            "issue 10 (the authors: a difference of 3 is normal)",
        ),
        _coclr("retrieval", "CoCLR", "rgb", _r(45.6), "README", pre="k400"),
        _coclr("retrieval", "CoCLR", "flow", _r(44.4), "README", pre="k400"),
        _coclr("linear", "InfoNCE", "rgb", _a(46.8), "README", epochs=500),
        _coclr("linear", "InfoNCE", "rgb", _a(52.3), "issue 21", epochs=800),
        _coclr("linear", "CoCLR", "rgb", _a(70.2), "README"),
        _coclr("linear", "CoCLR", "rgb", _a(74.5), "issue 54", pre="k400"),
        _coclr("linear", "CoCLR", two, _a(77.8), "issue 54 and the benchmark list", pre="k400"),
        _coclr("linear", "CoCLR", two, _a(52.4), "the benchmark list", data="hmdb51", pre="k400"),
        _coclr("finetune", "CoCLR", "rgb", _a(81.4), "issue 35"),
        _coclr("finetune", "CoCLR", "rgb", _a(87.9), "README", pre="k400"),
        _coclr("finetune", "CoCLR", "flow", _a(85.3), "README", pre="k400"),
        _coclr("finetune", "CoCLR", two, _a(90.6), "README", pre="k400"),
        _coclr("finetune", "CoCLR", "rgb", _a(54.6), "README", data="hmdb51", pre="k400"),
        _coclr("finetune", "supervised from random weights", "rgb", _a(77.0), "issue 30", pre="none"),
    ]


def _abstract(
    paper: str,
    what: str,
    task: Measurement,
    data: str,
    backbone: str | None,
    stream: str | None,
    value: float,
    source: str,
    pre: str = "ucf101",
) -> PaperRow:
    values, protocol = (_r(value), "p1") if task == "retrieval" else (_a(value), "p4")
    s3d = backbone == "s3d"
    return PaperRow(
        paper,
        what,
        task,
        data,
        pre,
        backbone,
        stream,
        protocol,
        "1",
        32 if s3d else None,
        128 if s3d else None,
        values,
        source,
    )


def _cpr_vicc_rows() -> list[PaperRow]:
    rows: list[PaperRow] = []
    cpr: tuple[tuple[Measurement, str, float, str], ...] = (
        ("retrieval", "ucf101", 56.7, "ucf101"),
        ("retrieval", "hmdb51", 24.4, "ucf101"),
        ("finetune", "ucf101", 83.8, "ucf101"),
        ("finetune", "hmdb51", 54.8, "ucf101"),
        ("finetune", "ucf101", 85.1, "k400"),
    )
    for task, data, value, pre in cpr:
        rows.append(_abstract("CPR", "CPR", task, data, None, None, value, "CPR abstract", pre))
    vicc: tuple[tuple[Measurement, str, str, str, float], ...] = (
        ("retrieval", "ucf101", "s3d", "rgb", 62.1),
        ("retrieval", "hmdb51", "s3d", "rgb", 25.5),
        ("retrieval", "ucf101", "s3d", "flow", 59.7),
        ("retrieval", "ucf101", "s3d", "rgb + flow", 65.1),
        ("finetune", "ucf101", "s3d", "rgb + flow", 90.5),
        ("finetune", "hmdb51", "s3d", "rgb + flow", 62.2),
        ("retrieval", "ucf101", "r21d10", "rgb", 58.6),
        ("retrieval", "hmdb51", "r21d10", "rgb", 25.3),
        ("finetune", "hmdb51", "r21d10", "rgb", 52.4),
        ("retrieval", "ucf101", "r21d10", "flow", 50.0),
        ("retrieval", "hmdb51", "r21d10", "rgb + flow", 28.3),
        ("finetune", "hmdb51", "r21d10", "rgb + flow", 61.5),
    )
    for task, data, backbone, stream, value in vicc:  # its R(2+1)D has one block per stage
        source = "ViCC README" if (task, data) == ("retrieval", "ucf101") else "ViCC abstract"
        rows.append(_abstract("ViCC", "cross-stream, 2 cycles", task, data, backbone, stream, value, source))
    return rows


def _iic(
    what: str,
    retrieval: Sequence[float] = (),
    finetune: tuple[float | None, float | None] = (None, None),
    backbone: str | None = "r3d10",
    stream: str | None = None,
    data: str = "ucf101",
    split: str = "1",
    pre: str | None = "ucf101",
    own: bool = True,
) -> list[PaperRow]:
    """Rows of IIC's README: retrieval on one data set, recognition on UCF101 and HMDB51."""
    paper, source = ("IIC" if own else what.split(" ")[0]), "IIC README"
    source += "" if own else " (as listed there)"
    frames, size = (16, 112) if own else (None, None)
    rows: list[PaperRow] = []
    if retrieval:
        shown = stream if stream is None or not own else f"rgb + {stream}"
        values = _r(*retrieval)
        rows.append(
            PaperRow(paper, what, "retrieval", data, pre, backbone, shown, "p2", split, frames, size, values, source)
        )
    for name, value in zip(("ucf101", "hmdb51"), finetune, strict=True):
        if value is not None:
            asked = "residual" if own and stream == "residual" else None  # what recognition was fed
            rows.append(
                PaperRow(
                    paper, what, "finetune", name, pre, backbone, asked, "p4", split, frames, size, _a(value), source
                )
            )
    return rows


def _iic_rows() -> list[PaperRow]:
    other: list[list[PaperRow]] = [
        _iic("Jigsaw", (19.7, 28.5, 33.5, 40.0, 49.4), backbone=None, own=False),
        _iic("OPN", (19.9, 28.7, 34.0, 40.6, 51.6), backbone=None, own=False),
        _iic("R3D from random weights", (9.9, 18.9, 26.0, 35.5, 51.9), (54.5, 23.4), pre="none", own=False),
        _iic("VCOP", (14.1, 30.3, 40.4, 51.1, 66.5), (64.9, 29.5), own=False),
        _iic("VCP", (18.6, 33.6, 42.5, 53.5, 68.1), (66.0, 31.5), own=False),
        _iic("CMC as IIC ran it (no intra-negatives)", (26.4, 37.7, 45.1, 53.2, 66.3), own=False),
        _iic("CMC (3 views)", (), (59.1, 26.7), backbone=None, own=False),
        _iic("PRP", (22.8, 38.5, 46.7, 55.2, 69.1), (66.5, 29.7), own=False),
        _iic("RTT", (26.1, 48.5, 59.1, 69.6, 82.8), backbone=None, own=False),
        _iic("MemDPC", (20.2, 40.4, 52.4, 64.7), backbone=None, stream="rgb", own=False),
        _iic("MemDPC", (40.2, 63.2, 71.9, 78.6), backbone=None, stream="flow", own=False),
        _iic("VCOP", (), (72.4, 30.9), backbone="r21d10", own=False),
        _iic("PRP", (), (72.1, 35.0), backbone="r21d10", own=False),
        _iic("OPN (residual input)", (), (71.8, 36.7), backbone=None, own=False),
        _iic("O3N (residual input)", (), (60.3, 32.5), backbone=None, own=False),
        _iic("ST-puzzle", (), (65.8, 33.7), backbone=None, own=False),
        _iic("ImageNet inflated", (), (60.3, 30.7), backbone=None, pre=None, own=False),
    ]
    for backbone, name, first in (("c3d", "VCOP", 12.5), ("c3d", "VCP", 17.3), ("c3d", "PRP", 23.2)):
        other.append(_iic(name, (first,), backbone=backbone, split="not stated", own=False))
    for name, first in (("VCOP", 10.7), ("VCP", 19.9), ("PRP", 20.3)):
        other.append(_iic(name, (first,), backbone="r21d10", split="not stated", own=False))
    ours = [
        _iic("IIC repeat, views rgb and residual", (36.5, 54.1, 62.9, 72.4, 83.4), (72.8, 35.3), stream="residual"),
        _iic("IIC repeat, views rgb and u", (41.8, 60.4, 69.5, 78.4, 87.7), (72.7, 36.8), stream="u"),
        _iic("IIC shuffle, views rgb and residual", (34.6, 53.0, 62.3, 71.7, 82.4), (74.4, 38.3), stream="residual"),
        _iic("IIC shuffle, views rgb and v", (42.4, 60.9, 69.2, 77.1, 86.5), (67.0, 34.0), stream="v"),
    ]
    for backbone, what, ucf, hmdb, top in (
        ("c3d", "repeat", (31.9, 48.2, 57.3, 67.1, 79.1), (9.9, 29.6, 42.0, 57.3, 78.4), (70.0, 30.8)),
        ("c3d", "shuffle", (28.9, 45.4, 55.5, 66.2, 78.8), (11.5, 31.3, 43.9, 60.1, 80.3), (69.7, 29.7)),
        ("r21d10", "repeat", (34.7, 51.7, 60.9, 69.4, 81.9), (12.7, 33.3, 45.8, 61.6, 81.3), (72.4, 34.0)),
        ("r21d10", "shuffle", (30.2, 45.6, 55.0, 64.4, 77.6), (12.6, 31.9, 44.2, 59.9, 80.7), (73.3, 31.2)),
        ("r3d18", "repeat", (36.8, 54.1, 63.1, 72.0, 83.3), (15.5, 34.4, 48.9, 63.8, 83.8), (72.4, 34.3)),
        ("r3d18", "shuffle", (33.0, 49.2, 59.1, 69.1, 80.6), (12.4, 33.6, 46.9, 63.2, 83.5), (73.1, 34.3)),
    ):
        ours.append(_iic(f"IIC {what}, views rgb and residual", ucf, top, backbone, "residual", split="mean of 3"))
        ours.append(
            _iic(
                f"IIC {what}, views rgb and residual",
                hmdb,
                backbone=backbone,
                stream="residual",
                data="hmdb51",
                split="mean of 3",
            )
        )
    released = [
        PaperRow("IIC", what, "retrieval", "ucf101", "ucf101", "r3d10", stream, "p2", "1", 16, 112, _r(first), source)
        for what, stream, first, source in (
            ("IIC, released weights", "residual", 33.4, "IIC README"),
            ("IIC, released weights", "rgb", 34.8, "IIC README"),
            ("IIC, released weights", "rgb + residual", 36.5, "IIC README"),
        )
    ]
    return [row for rows in [*ours, *other] for row in rows] + released


PUBLISHED: Final = (*_coclr_rows(), *_cpr_vicc_rows(), *_iic_rows())
"""All rows, by paper."""


def dataset_of(source: Mapping[str, str], classes: Sequence[str]) -> tuple[str | None, str | None]:
    """Which of the papers' data sets packed data is, and its official split: ("ucf101", "1"); (None, None) for any other.

    Args:
        source: `Manifest.source`; the split is known where it was packed from the official lists.
        classes: `Manifest.classes`: other videos in the same layout are not that data set.
    """
    for name, (count, some) in _LOOKS_LIKE.items():
        if len(classes) == count and some <= set(classes):
            official = source.get("format") == name
            fold = json.loads(source.get("options") or "{}").get("fold") if official else None
            return name, None if fold is None else str(fold)
    return None, None
