"""What is an evaluation? The one shape of all of them: measure, keep, print, show on the page."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import ClassVar, Final, Generic, Literal, TypeVar

from cluster.evaluation.features import FeatureProtocol, Features, features_of, search_protocol
from cluster.page.parts import Section, not_evaluated
from cluster.subject import Subject
from vidssl.errors import DataError
from vidssl.evaluation.protocol import Protocol
from vidssl.health import Health
from vidssl.recipe import Recipe

__all__ = ["About", "Evaluator", "FeatureEvaluator", "FeatureResult", "Head", "Result", "Seen"]

_UNLABELLED: Final = "the labels are unknown"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What every result file says; a kind of result adds `results`, None where nothing could be measured.

    Attributes:
        protocol: How it was measured.
        reason: Why nothing could be measured; None where something was.
    """

    protocol: Protocol
    reason: str | None = None

    @property
    def unlabelled(self) -> bool:
        """Whether labels are what was missing."""
        return (self.reason or "").startswith(_UNLABELLED)


@dataclass(frozen=True, kw_only=True)
class FeatureResult(Result):
    """A result that was read off the features of the encoder.

    Attributes:
        protocol: With the lines of the features.
        health: Of the first view's embeddings.
        classes: Names.
    """

    protocol: FeatureProtocol
    health: Health | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Head:
    """What the results of one look at the features have in common."""

    protocol: FeatureProtocol
    health: Health
    classes: tuple[str, ...]


@dataclass(frozen=True)
class About:
    """What a page knows of the run beside its results.

    Attributes:
        run: As the user typed it.
        recipe: Of the run, or of the card.
        taught: How labels entered the training, in a sentence; None where they did not.
    """

    run: str
    recipe: Recipe
    taught: str | None = None


class Seen:
    """What the evaluations of one command share: the features, read when the first of them asks.

    Args:
        subject: Whose encoder.
        views: Streams to look at.
        untrained: Whether the untrained rival is looked at too.
    """

    def __init__(self, subject: Subject, views: Sequence[str], untrained: bool) -> None:
        self._subject, self.views, self._untrained = subject, tuple(views), untrained

    @cached_property
    def features(self) -> Features:
        """The videos as the encoder sees them; each window is decoded once."""
        return features_of(self._subject, self.views, self._untrained)

    @cached_property
    def head(self) -> Head:
        """Protocol, health and classes."""
        protocol = search_protocol(self._subject, self.features)
        return Head(protocol, self.features.health, tuple(self._subject.manifest.classes))


R = TypeVar("R", bound=Result)
F = TypeVar("F", bound=FeatureResult)


class Evaluator(ABC, Generic[R]):
    """One evaluation: a line of `cluster.evaluators.EVALUATORS`.

    Attributes:
        name: The word of `what=`, and the name of the file.
        needs: features of the encoder (then there may be a `-joint` result of two streams), or the bank of the run.
        as_card: Whether the page shows it among the classifiers, or as a part of its own.
        result: What it writes and reads.
    """

    name: ClassVar[str]
    needs: ClassVar[Literal["features", "bank"]] = "features"
    as_card: ClassVar[bool] = True
    result: type[R]

    @abstractmethod
    def measure(self, subject: Subject, seen: Seen) -> R:
        """The result; one with a `reason` where nothing can be measured.

        Raises:
            VidsslError: the words or the data are wrong.
        """

    @abstractmethod
    def text(self, result: R) -> list[str]:
        """The lines that `vidssl evaluate` prints of a result without a `reason`."""

    @abstractmethod
    def section(self, result: R, about: About) -> Section:
        """What the page shows of a result without a `reason`."""

    def lines(self, result: R) -> list[str]:
        """`text`, or why there is none."""
        return self.text(result) if result.reason is None else [f"{self.name}: {result.reason}"]

    def part(self, result: R | None, about: About) -> Section:
        """`section`, or what is missing."""
        if result is not None and result.reason is None:
            return self.section(result, about)
        title, lead = self.heading(about)
        if result is None:
            return Section(title, lead, self.unmeasured(about))
        return Section(title, lead, f'<p class="missing">No score: {escape(result.reason or "")}.</p>')

    def heading(self, about: About) -> tuple[str, str]:
        """Title and lead of the part of the page; asked for where there is nothing to show."""
        return self.name, ""

    def unmeasured(self, about: About) -> str:
        """What the page says in place of a result that is not there."""
        return not_evaluated(about.run)


class FeatureEvaluator(Evaluator[F]):
    """An evaluation that reads labelled features."""

    number: ClassVar[str] = "accuracy"
    """What there is none of without labels."""

    def measure(self, subject: Subject, seen: Seen) -> F:
        """See `Evaluator.measure`."""
        features, head = seen.features, seen.head
        if not (features.store.label >= 0).any():
            return self.nothing(head, f"{_UNLABELLED}, so there is no {self.number}")
        try:
            return self.ask(subject, features, head)
        except DataError as error:
            return self.nothing(head, str(error))

    @abstractmethod
    def ask(self, subject: Subject, features: Features, head: Head) -> F:
        """The result on features of which some are labelled.

        Raises:
            DataError: too few videos, or none that can be compared; its sentence becomes the `reason`.
        """

    @abstractmethod
    def nothing(self, head: Head, reason: str) -> F:
        """A result that says why it is none."""
