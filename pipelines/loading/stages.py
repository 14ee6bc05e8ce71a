"""Where does the making of a batch spend its time? Seconds and bytes of each stage, and which of them is the limit, in words.

| stage | what is counted |
|---|---|
| `read` | bytes of the samples out of their shards, held against their checksums; waits for a disk or a store included |
| `decode` | bytes → frames of the clip's size, on `loader.threads` threads; where DALI decodes itself, the whole graph |
| `augment` | the rest of the graph: colours, blur, mirror, normalisation; not told apart where DALI decodes itself |
| `handover` | views, copies to the device |

The stages of one batch follow one another on the loader's thread, so their sum is what a batch takes while it is made.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

__all__ = ["Stages", "limit_in_words"]

WAITS = 0.05
"""Share of the time above which a wait for data is a limit and worth a sentence."""

_ADVICE = {
    "read": "nearer data, loader.cache or a larger loader.prefetch help",
    "decode": "more loader.threads and cores, a GPU's decoder (loader.decode=mixed: and the cores beside it) or a pack of a smaller size help",
    "augment": "augment.preset=light, loader.threads and cores help",
    "handover": "fewer views and a smaller clip help",
}


@dataclass
class Stages:
    """What has been counted since the loader began; written on the loader's thread, read from any.

    Attributes:
        seconds: Of each stage.
        bytes_read: Of videos and flow.
        batches: Made.
        native: Whether DALI decoded, so that `decode` holds the whole graph.
        ready: Share of the queue that was filled, summed over the batches that were asked for.
        asked: Batches asked for.
        by_dali: Under `loader.decode=mixed`, share of the videos that DALI's decoder took, summed over `mixed` batches.
        mixed: Batches of two decoders.
    """

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_ADVICE, 0.0))
    bytes_read: int = 0
    batches: int = 0
    native: bool = False
    ready: float = 0.0
    asked: int = 0
    by_dali: float = 0.0
    mixed: int = 0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time of a block."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - before

    @contextmanager
    def graph(self, native: bool) -> Iterator[None]:
        """Count a run of the graph, less what is read and decoded in it, and the batch.

        On a GPU a run returns a batch that was begun earlier, so a single one says little and many say what is spent.
        """
        before, inside = time.perf_counter(), self.seconds["read"] + self.seconds["decode"]
        yield
        rest = time.perf_counter() - before - (self.seconds["read"] + self.seconds["decode"] - inside)
        self.seconds["decode" if native else "augment"] += max(rest, 0.0)
        self.native, self.batches = native, self.batches + 1

    def copy(self) -> Stages:
        """As it stands."""
        return replace(self, seconds=dict(self.seconds))

    def row(self, before: Stages) -> dict[str, float | None]:
        """Per batch since an earlier copy: milliseconds of each stage, MB read, share of the queue that was filled.

        None: nothing to say.
        """
        made, asked = self.batches - before.batches, self.asked - before.asked
        row: dict[str, float | None] = {
            f"data/{stage}_ms": 1e3 * (self.seconds[stage] - before.seconds[stage]) / made if made else None
            for stage in self.seconds
        }
        if self.native:
            row["data/augment_ms"] = None
        row["data/read_mb"] = (self.bytes_read - before.bytes_read) / 1e6 / made if made else None
        if (both := self.mixed - before.mixed) > 0:
            row["data/dali_share"] = (self.by_dali - before.by_dali) / both
        row["data/queue"] = (self.ready - before.ready) / asked if asked else None
        return row


def limit_in_words(row: Mapping[str, float], threads: int) -> str:
    """What limits a training: the step, or which stage of the loader, and what helps.

    Args:
        row: `wait_ratio` and `data/…` of log rows, averaged.
        threads: `loader.threads`.
    """
    known = {stage: row[f"data/{stage}_ms"] for stage in _ADVICE if row.get(f"data/{stage}_ms") is not None}
    if not known:
        return ""
    whole, queue = sum(known.values()), row.get("data/queue", 0.0)
    stages = ", ".join(f"{stage} {took:.1f}" for stage, took in known.items())
    said = (
        f"a batch is made in {whole:.1f} ms ({stages}; {row.get('data/read_mb', 0.0):.2f} MB read; {threads} thread(s))"
    )
    if "data/dali_share" in row:
        said += f", {100 * row['data/dali_share']:.0f} % of it by DALI's decoder and the rest by PyAV beside it"
    if row["wait_ratio"] < WAITS:
        return f"the step is the limit, not the data (queue {100 * queue:.0f} % full): {said}"
    most = max(known, key=lambda stage: known[stage])
    return f"data is the limit ({100 * row['wait_ratio']:.0f} % waiting), most of it {most}: {said}; {_ADVICE[most]}"
