"""How does a message reach the bank? Through Ray, or to a bank within this process; the client does not see which."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from cluster.bank.server import BankServer
from cluster.bank.spec import Push

__all__ = ["BankGone", "Link", "LocalLink", "RayLink"]


class BankGone(ConnectionError):
    """The bank's process cannot be reached just now; what was on its way may be lost."""


class Link(Protocol):
    """What the client needs of a connection: sends return references at once, `call` waits."""

    def push(self, message: Push) -> Any:
        """Reference to a `Verdict` and the `Positives` that were asked for (None: not in time)."""
        ...

    def wait(self, attempt: int, rank: int, step: int) -> Any:
        """Reference to `Positives` or None."""
        ...

    def stats(self) -> Any:
        """Reference to the bank's counters."""
        ...

    def finished(self, references: Sequence[Any]) -> list[Any]:
        """Those whose value is there, without waiting."""
        ...

    def value(self, reference: Any) -> Any:
        """Value of a finished reference.

        Raises:
            BankGone: the process died on the way.
        """
        ...

    def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        """Result of a method of `BankServer`, waited for.

        Raises:
            BankGone: no answer in time, or the process died for good.
        """
        ...


class RayLink:
    """The bank is a Ray actor; see `cluster.bank.actor.start_bank`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def push(self, message: Push) -> Any:
        """As `Link.push`."""
        return self._actor.serve.remote(message)

    def wait(self, attempt: int, rank: int, step: int) -> Any:
        """As `Link.wait`."""
        return self._actor.wait.remote(attempt, rank, step)

    def stats(self) -> Any:
        """As `Link.stats`."""
        return self._actor.stats.remote()

    def finished(self, references: Sequence[Any]) -> list[Any]:
        """As `Link.finished`."""
        import ray

        return ray.wait(list(references), num_returns=len(references), timeout=0)[0] if references else []

    def value(self, reference: Any) -> Any:
        """As `Link.value`."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

        try:
            return ray.get(reference, timeout=30)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except (RayActorError, GetTimeoutError) as error:
            raise BankGone(type(error).__name__) from error

    def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        """As `Link.call`."""
        import ray

        reference = getattr(self._actor, method).remote(*args)
        done, _ = ray.wait([reference], timeout=timeout_s)
        if not done:
            raise BankGone(f"no answer to {method} within {timeout_s:g} s")
        return self.value(reference)


class LocalLink:
    """The bank is in this process: for one worker without Ray, and for tests."""

    def __init__(self, server: BankServer, threads: int = 8) -> None:
        self._server = server
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bank")

    def push(self, message: Push) -> Future[Any]:
        """As `Link.push`."""
        return self._pool.submit(self._server.serve, message, 1.0)

    def wait(self, attempt: int, rank: int, step: int) -> Future[Any]:
        """As `Link.wait`."""
        return self._pool.submit(self._server.wait, attempt, rank, step, 1.0)

    def stats(self) -> Future[Any]:
        """As `Link.stats`."""
        return self._pool.submit(self._server.stats)

    def finished(self, references: Sequence[Future[Any]]) -> list[Future[Any]]:
        """As `Link.finished`."""
        return [reference for reference in references if reference.done()]

    def value(self, reference: Future[Any]) -> Any:
        """As `Link.value`."""
        return reference.result(30)

    def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        """As `Link.call`."""
        del timeout_s  # nothing lies between
        return getattr(self._server, method)(*args)
