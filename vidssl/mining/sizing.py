"""How much memory, traffic and how many miners does mining take? Arithmetic from a small table of measured rates.

    vidssl mine --plan slots=100M views=2 workers=64 step_s=.25

Needed are workers · batch / step_s rows per second: every row that is trained on is mined once. What a query costs is
linear in the slots that it is compared with, so one rate for each way of mining serves for all sizes; rates that were
not measured say so. With fewer miners than needed nothing waits: positives grow older, by as many epochs as miners lack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, ValidationError

from vidssl.errors import RecipeError
from vidssl.fields import Section
from vidssl.mining.brackets import SAMPLE, SURE
from vidssl.mining.plan import CascadePlan, plan_from
from vidssl.recipe import Mining
from vidssl.refusal import refusal

__all__ = ["RATES", "Mode", "Rate", "Sizing", "sizing_lines", "sizing_modes"]

_UNITS: Final = {"k": 10**3, "M": 10**6, "G": 10**9}


def _counted(given: object) -> object:
    """`100M` is a hundred million."""
    if isinstance(given, str) and given[-1:] in _UNITS:
        try:
            return round(float(given[:-1]) * _UNITS[given[-1]])
        except (ValueError, OverflowError):
            return given
    return given


Large = Annotated[int, BeforeValidator(_counted), Field(ge=1, le=10**12)]


class Sizing(Section):
    """Own words of `vidssl mine --plan`."""

    slots: Large = Field(description="N, videos (k, M and G are thousands, millions, thousand millions)")
    views: int = Field(default=2, ge=1, le=16, description="views that the bank holds; two are read")
    workers: int = Field(default=8, ge=1, le=1_000_000, description="ranks that train")
    step_s: float = Field(default=0.25, gt=0, le=86_400, description="seconds of a training step")
    batch: int = Field(default=32, ge=1, le=1_000_000, description="rows of one rank and step")
    dim: int = Field(default=128, ge=1, le=100_000, description="D, numbers of a row")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(default="float16", description="of the bank's rows")
    stages: int = Field(default=3, ge=1, le=64, description="S, stages of the cascade")
    ratio: float | None = Field(default=None, gt=0, le=1, description="share kept by each stage; null: pool decides")
    pool: Large = Field(default=32, description="candidates that reach the last stage, without a ratio")
    topk: int = Field(default=5, ge=1, le=100_000, description="k positives per row")
    queue: Large = Field(default=16_384, description="rows of every rank's queue, mined inline")
    pool_slots: Large = Field(default=1_000_000, description="slots of a random or recent pool to mine among")
    memory_gb: float = Field(default=64.0, gt=0, le=1e6, description="memory that one process of a shard may take")
    cores: int = Field(default=4, ge=1, le=4096, description="CPU cores of one miner, of the bank, of one shard")

    @property
    def needed(self) -> float:
        """Rows per second that are trained on."""
        return self.workers * self.batch / self.step_s

    @property
    def row_bytes(self) -> int:
        """Bytes of one video's rows of all views."""
        return self.views * self.dim * (4 if self.dtype == "float32" else 2)

    def plan(self, slots: int) -> CascadePlan:
        """The cascade on so many slots; the same last pool wherever no ratio is given.

        Raises:
            RecipeError: a cascade that cannot be on so few.
        """
        pool = None if self.ratio is not None else min(self.pool, slots)
        return plan_from(Mining(stages=self.stages, ratio=self.ratio, pool=pool, topk=min(self.topk, slots)), slots)


@dataclass(frozen=True)
class Rate:
    """What one core or device does.

    Attributes:
        says: Of what.
        per_s: Slots compared with queries, per second, both views of 128 numbers and the selection included.
        source: Where the figure is from.
        measured: Whether it is one.
    """

    says: str
    per_s: float
    source: str
    measured: bool = True


RATES: Final[dict[str, Rate]] = {
    "long": Rate(
        "a core, first stage keeps much (S=7 r=.5)",
        1e6 / 14.3e-3,
        "1 M slots, B=64: 14.3 ms per query and core, GEMM 5.2 of it (Zen 5, numpy)",
    ),
    "short": Rate(
        "a core, first stage keeps at most 1 % (S=3 p=32)",
        1e6 / 4.4e-3,
        "1 M slots, B=64: 4.4 ms per query and core (Zen 5, faiss.knn and a re-rank of gathered rows)",
    ),
    "gpu": Rate(
        "a GPU of the H200's class, half precision",
        64e6 / 1.5e-3,
        "estimate: 1 M slots, B=64 in 1-2 ms (bank read .1 ms, scores .5 GB); never measured",
        measured=False,
    ),
}
"""By kind. The rates of cores fall with the memory bus that they share: 2 cores of one machine gave 1.8 times one."""

SHORT = 0.01
"""Largest share that the first stage of a "short" cascade keeps."""
SHORT_FROM = 262_144
"""Slots below which that is no faster."""
ROUND_S = 3e-3
"""One round of questions to all shards and their answers: p50 of two Ray actors on a machine of two busy cores."""
SHARD_BATCH = 64
"""Rows of a batch of a bank in shards."""
SHARD_ROUNDS = 3
"""Rounds of a batch: its rows are fetched, compared by all shards at once, and what was found is fetched."""
STATE_BYTES = 40
"""Per slot beside rows: version, group, number of last write, positives' age and a share of the indexes."""


@dataclass(frozen=True)
class Mode:
    """One way to mine what this cluster needs.

    Attributes:
        name: In a word or two.
        bytes_each: Memory of one process for it.
        processes: How many processes keep up; of inline: the ranks themselves.
        rows_per_s: What one of them mines.
        traffic: Bytes per second that the bank's process sends and receives.
        step_ms: What a training step waits for it.
        age_epochs: Age to which positives grow with one process (0: none beyond the look-ahead).
        measured: Whether its rate is one.
        note: What has to be known.
    """

    name: str
    bytes_each: float
    processes: int
    rows_per_s: float
    traffic: float
    step_ms: float
    age_epochs: float
    measured: bool
    note: str


def sizing_modes(asked: Sizing) -> tuple[Mode, ...]:
    """All modes for what is asked; those that cannot be are left out with a reason in another's note.

    Raises:
        RecipeError: a cascade that cannot be on so many slots.
    """
    return (
        _inline(asked),
        _threads(asked),
        _miners(asked, "miners CPU", *_core_rate(asked, asked.slots), cores=asked.cores),
        _miners(asked, "miners GPU", RATES["gpu"], _gpu_bytes(asked), cores=1),
        _pool(asked),
        _shards(asked),
    )


def sizing_lines(words: Sequence[str]) -> list[str]:
    """The table of `vidssl mine --plan`, line by line.

    Args:
        words: `key=value`, the fields of `Sizing`; `slots=` is needed.

    Raises:
        RecipeError: an unknown key, a value that is not allowed, no slots, a cascade that cannot be.
    """
    given: dict[str, str] = {}
    for word in words:
        key, sep, value = word.partition("=")
        if not sep or not value:
            raise RecipeError(f"'{word}' is no setting; type key=value, e.g. slots=100M")
        if key in given:
            raise RecipeError(f"{key} is given twice: {key}={given[key]} and {word}")
        given[key] = value
    if "slots" not in given:
        raise RecipeError("how many videos? Type slots=N, e.g. slots=1M workers=64 step_s=.25")
    try:
        asked = Sizing.model_validate(given)
    except ValidationError as error:
        raise RecipeError(refusal(error, list(Sizing.model_fields))) from error
    return _table(asked, sizing_modes(asked))


def _core_rate(asked: Sizing, slots: int) -> tuple[Rate, float]:
    short = slots >= SHORT_FROM and asked.plan(slots).sizes(slots)[0] <= SHORT * slots
    return RATES["short" if short else "long"], slots * (asked.row_bytes + STATE_BYTES)


def _per_s(asked: Sizing, rate: Rate, slots: int) -> float:
    """Queries per second of one core or device: wider rows take longer in the products, about half of all."""
    return rate.per_s / slots / (0.5 + 0.5 * asked.dim / 128)


def _push_traffic(asked: Sizing) -> float:
    answer = asked.topk * (8 + 4 * asked.dim)  # ids and the trained view's rows
    return asked.needed * (asked.row_bytes + answer)


def _behind(asked: Sizing, rows_per_s: float) -> float:
    return max(0.0, asked.needed / rows_per_s) if rows_per_s < asked.needed else 0.0


def _inline(asked: Sizing) -> Mode:
    slots = min(asked.queue, asked.slots)
    rate, _ = _core_rate(asked, slots)
    per_s = _per_s(asked, rate, slots)
    held = slots * asked.views * asked.dim * 4
    note = f"a queue of {_count(slots)} on every rank, as published; on one core, GPUs take less"
    return Mode("inline", held, asked.workers, per_s, 0.0, 1e3 * asked.batch / per_s, 0.0, rate.measured, note)


def _threads(asked: Sizing) -> Mode:
    rate, held = _core_rate(asked, asked.slots)
    per_s = asked.cores * _per_s(asked, rate, asked.slots)
    keeps_up = per_s >= asked.needed
    note = "keeps up" if keeps_up else f"{per_s / asked.needed:.2g} of what is needed: use miners, a pool or a GPU"
    age = _behind(asked, per_s)
    return Mode(
        f"bank's process, {asked.cores} cores", held, 1, per_s, _push_traffic(asked), 0.0, age, rate.measured, note
    )


def _gpu_bytes(asked: Sizing) -> float:
    return asked.slots * asked.row_bytes


def _miners(asked: Sizing, name: str, rate: Rate, held: float, cores: int) -> Mode:
    per_s = cores * _per_s(asked, rate, asked.slots)
    count = max(1, math.ceil(asked.needed / per_s))
    mirrored = asked.needed * (asked.row_bytes + 16) * count
    label = name if not name.endswith("CPU") else f"{name}, {cores} cores each"
    note = f"every one holds the whole bank and hears of {_size(mirrored / count)}/s"
    if held > asked.memory_gb * 1e9:
        note = f"more than {asked.memory_gb:g} GB each: use shards or a pool"
    traffic = _push_traffic(asked) + mirrored
    return Mode(label, held, count, per_s, traffic, 0.0, _behind(asked, per_s), rate.measured, note)


def _pool(asked: Sizing) -> Mode:
    slots = min(asked.pool_slots, asked.slots)
    rate, _ = _core_rate(asked, slots)
    per_s = asked.cores * _per_s(asked, rate, slots)
    count = max(1, math.ceil(asked.needed / per_s))
    held = slots * (asked.row_bytes + STATE_BYTES)
    share = slots / asked.slots
    note = f"mining.pool_slots={slots}: each row sees {share:.3g} of the bank; not exact"
    traffic = _push_traffic(asked) + asked.needed * share * (asked.row_bytes + 16) * count
    return Mode(
        f"pool of {_count(slots)}", held, count, per_s, traffic, 0.0, _behind(asked, per_s), rate.measured, note
    )


def _shards(asked: Sizing) -> Mode:
    rate, whole = _core_rate(asked, asked.slots)
    shards = max(2, math.ceil(whole / (asked.memory_gb * 1e9)))
    per_s = _sharded_per_s(asked, rate, shards)
    asks = asked.views * asked.dim * 4 * shards + 12 * _sent(asked) * asked.slots
    note = (
        f"mining.shards={shards} mining.cpus_per_shard={asked.cores}: exact; {SHARD_ROUNDS} rounds a batch of "
        f"{SHARD_BATCH} at {1e3 * ROUND_S:g} ms; {_enough_shards(asked, rate, shards)}"
    )
    traffic = _push_traffic(asked) + asked.needed * asks
    return Mode("shards", whole / shards, shards, per_s, traffic, 0.0, _behind(asked, per_s), False, note)


def _sent(asked: Sizing) -> float:
    """About the share of the slots that the first narrow stage keeps, or that lies in its bracket: slots and scores are sent."""
    kept = next(
        (size / asked.slots for size in asked.plan(asked.slots).sizes(asked.slots) if 16 * size <= asked.slots), 1.0
    )
    return min(1.0, kept + 2 * SURE * math.sqrt(kept / SAMPLE[1]))


def _sharded_per_s(asked: Sizing, rate: Rate, shards: int) -> float:
    """Queries per second of all shards together: each compares its own slots, and a batch takes its rounds besides."""
    work_s = SHARD_BATCH / (asked.cores * _per_s(asked, rate, max(1, asked.slots // shards)))
    return SHARD_BATCH / (work_s + SHARD_ROUNDS * ROUND_S)


def _enough_shards(asked: Sizing, rate: Rate, least: int) -> str:
    numbers = (least << doubled for doubled in range(14))
    fit = next((one for one in numbers if _sharded_per_s(asked, rate, one) >= asked.needed), None)
    return "no number of shards keeps up" if fit is None else "keeps up" if fit == least else f"{fit} would keep up"


def _table(asked: Sizing, modes: Sequence[Mode]) -> list[str]:
    plan = asked.plan(asked.slots)
    epoch_s = asked.slots / asked.needed
    lines = [
        f"{_count(asked.slots)} videos, {asked.views} views of {asked.dim} in {asked.dtype}: "
        f"{_size(asked.slots * asked.row_bytes)} of rows; {plan.describe()}",
        f"{asked.workers} workers of {asked.batch} rows in {asked.step_s:g} s need {asked.needed:,.0f} mined rows/s; "
        f"an epoch takes {_time(epoch_s)}",
        "",
        f"{'mode':24}{'memory each':>12}{'rows/s each':>13}{'processes':>11}{'traffic/s':>11}{'step waits':>12}"
        f"{'age with one':>14}",
    ]
    for mode in modes:
        age = f"{mode.age_epochs:,.{0 if mode.age_epochs >= 10 else 1}f} epochs" if mode.age_epochs else "look-ahead"
        star = "" if mode.measured else " *"
        lines.append(
            f"{mode.name:24}{_size(mode.bytes_each):>12}{mode.rows_per_s:>13,.0f}{mode.processes:>11,}"
            f"{_size(mode.traffic):>11}{mode.step_ms:>9.3g} ms{age:>14}{star}"
        )
        lines.append(f"  {mode.note}")
    lines += ["", "rates (* estimated, not measured):"]
    lines += [f"  {rate.says}: {rate.per_s:.2g} slots/s ({rate.source})" for rate in RATES.values()]
    return lines


def _count(number: float) -> str:
    for unit, size in reversed(_UNITS.items()):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:g}"


def _size(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1e3:.3g} kB"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
