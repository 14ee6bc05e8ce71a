"""What does every number have to carry? How the encoder came to be and how the videos were shown to it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

from vidssl.sections import Augment

__all__ = ["Protocol", "share_words"]

P = TypeVar("P", bound="Protocol")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Numbers may be compared where these agree; the names are the keys of the result files.

    Attributes:
        run: Name of the run or card.
        method: Pretext task.
        backbone: Network.
        recipe: Fingerprint; None: unknown.
        checkpoint_sha256: Of the weights, first 16 digits.
        seed: Of the training.
        steps: Optimizer steps.
        epochs: Passes over the training videos; None where it was shown other data.
        checkpoint: Which one was taken, and of a card where it came from.
        assumed: Facts that a published file did not say.
        dataset: ucf101, hmdb51; None for any other data.
        split: Official split.
        pretrained: Data set of the training; None: unknown, or no published one.
        data_hash: Of the data that was shown.
        trained_on: Hash of the data it was trained on.
        T: Frames of a clip.
        stride: Frames from one to the next.
        size: Pixels.
        normalize: Scale of the pixels.
        windows: Most windows of one video.
        window_rule: Where they lie, in words.
        crops: Which part of the frame, in words.
        crop: Side of its squares in short sides of the frame; None: a file of an older version, whose words say it.
        augmentation: none; of a training, what changed its clips.
        decode: nvdec | dali-cpu | py.
        device: cpu | cuda.
    """

    run: str
    method: str
    backbone: str
    recipe: str | None
    checkpoint_sha256: str
    seed: int | None
    steps: int | None
    epochs: float | None
    checkpoint: str
    assumed: tuple[str, ...] = ()
    dataset: str | None
    split: str | None
    pretrained: str | None
    data_hash: str
    trained_on: str | None
    T: int
    stride: int
    size: int
    normalize: str
    windows: int
    window_rule: str
    crops: str
    crop: float | None = None
    augmentation: str | Augment
    decode: str
    device: str

    def grown(self, kind: type[P], **more: object) -> P:
        """These facts as another kind of protocol, with what that kind adds or says otherwise.

        Raises:
            TypeError: a fact that `kind` does not know, or lacks.
        """
        facts: dict[str, Any] = vars(self) | more
        return kind(**facts)


def share_words(share: float) -> str:
    """A share as people write it: 0.875 is 7/8, 0.93333 is 14/15, 0.9123 stays 0.912."""
    near = Fraction(share).limit_denominator(16)
    return str(near) if abs(float(near) - share) < 1e-4 else f"{share:.3g}"
