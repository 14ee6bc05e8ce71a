"""Did the file fit? What was loaded, what was missing, what did not belong; a strict verdict and plain words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from vidssl.errors import CheckpointError
from vidssl.saved.published.layouts import Translation

__all__ = ["KeyReport", "compare"]

_COUNTER = "num_batches_tracked"
"""Batch norm's count of batches: torch before 0.4.1 did not have it, and nothing here reads it."""

_WORDS = {
    "encoder_q": "the query encoder",
    "encoder_k": "the momentum twin",
    "sampler": "the frozen second stream",
    "second": "the frozen second stream",
    "queue": "queue of the run",
    "queue_ptr": "queue of the run",
    "queue_second": "queue of the run",
    "queue_vname": "queue of the run",
    "queue_label": "queue of the run",
    "prototypes": "prototypes",
    "linear": "a classifier",
}


@dataclass(frozen=True)
class KeyReport:
    """What became of every key.

    Attributes:
        loaded: Our names that the file fills (and `extra.` entries).
        missing: Our names that it does not; after a strict check only counters of batch norm, which start at zero.
        unexpected: Keys of the encoder that we have no place for; after a strict check only such counters.
        ignored: Keys of the file that belong to something else (queue, momentum twin, second stream).
        doubles: Keys that name a layer a second time (S3D files hold every layer twice).
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    doubles: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report in plain words, one line for each kind of key that occurs."""
        parts = Counter(name.split(".")[0] for name in self.loaded)
        said = [f"loaded {len(self.loaded)} tensors: " + ", ".join(f"{part} {n}" for part, n in parts.items())]
        if self.missing:
            said.append(f"missing {len(self.missing)}, left as they start: {_few(self.missing)}")
        if self.unexpected:
            said.append(f"unexpected {len(self.unexpected)}, left out: {_few(self.unexpected)}")
        if self.doubles:
            said.append(f"second names of the same layers, left out: {len(self.doubles)} ({_few(self.doubles, 1)})")
        others = Counter(name.removeprefix("module.").split(".")[0] for name in self.ignored)
        for part, count in others.items():
            said.append(f"not part of the encoder, left out: {part} {count} ({_WORDS.get(part, 'unknown here')})")
        return said


def compare(translation: Translation, own: Mapping[str, Tensor]) -> KeyReport:
    """The report of a translated file against the state dict of the encoder it is meant for.

    Raises:
        CheckpointError: a layer missing, unknown or of another shape (counters of batch norm are forgiven).
    """
    encoder = {key: rows for key, rows in translation.artifact.items() if not key.startswith("extra.")}
    missing, unknown = sorted(own.keys() - encoder.keys()), sorted(encoder.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & encoder.keys() if own[key].shape != encoder[key].shape)
    layers_missing, layers_unknown = ([k for k in keys if not k.endswith(_COUNTER)] for keys in (missing, unknown))
    if layers_missing or layers_unknown or shapes:
        first = (layers_missing + layers_unknown + shapes)[0]
        raise CheckpointError(
            f"this checkpoint is of another encoder: {len(layers_missing)} layers are missing in it, {len(layers_unknown)} are unknown, "
            f"{len(shapes)} have another shape (first: {first}); set model.backbone and model.dim to what it was trained with"
        )
    loaded = tuple(key for key in translation.artifact if key not in unknown)
    return KeyReport(loaded, tuple(missing), tuple(unknown), translation.ignored, translation.doubles)


def _few(names: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
