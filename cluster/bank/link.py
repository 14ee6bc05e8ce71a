"""How does a message reach the bank? Through Ray, or to a bank within this process; the client does not see which."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from cluster.bank.server import BankServer
from cluster.bank.spec import Answer, Push, Verdict

__all__ = ["BankGone", "Link", "LocalLink", "RayLink"]


class BankGone(ConnectionError):
    """The bank's process cannot be reached just now; what was on its way may be lost."""


class Link(Protocol):
    """What the client needs of a connection: sends return a future at once, `call` waits."""

    def serve(self, push: Push) -> Future[tuple[Verdict, Answer | None]]:
        """`BankServer.serve`, its result to come."""
        ...

    def stats(self) -> Future[dict[str, float | str]]:
        """The bank's counters, to come."""
        ...

    def value(self, future: Future[Any]) -> Any:
        """Result of a future that is done.

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
    """The bank is a Ray actor; see `cluster.bank.actor.start_bank`. Ray says when an answer is there: nobody looks for it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def serve(self, push: Push) -> Future[tuple[Verdict, Answer | None]]:
        """As `Link.serve`."""
        return self._actor.serve.remote(push).future()

    def stats(self) -> Future[dict[str, float | str]]:
        """As `Link.stats`."""
        return self._actor.stats.remote().future()

    def value(self, future: Future[Any]) -> Any:
        """As `Link.value`."""
        from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

        try:
            return future.result(30)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except (RayActorError, GetTimeoutError) as error:
            raise BankGone(type(error).__name__) from error

    def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        """As `Link.call`."""
        future = getattr(self._actor, method).remote(*args).future()
        try:
            future.exception(timeout_s)
        except TimeoutError:
            raise BankGone(f"no answer to {method} within {timeout_s:g} s") from None
        return self.value(future)


class LocalLink:
    """The bank is in this process: for one worker without Ray, and for tests."""

    def __init__(self, server: BankServer) -> None:
        self._server = server
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="bank")

    def serve(self, push: Push) -> Future[tuple[Verdict, Answer | None]]:
        """As `Link.serve`."""
        return self._pool.submit(self._server.serve, push)

    def stats(self) -> Future[dict[str, float | str]]:
        """As `Link.stats`."""
        return self._pool.submit(self._server.stats)

    def value(self, future: Future[Any]) -> Any:
        """As `Link.value`."""
        return future.result(30)

    def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        """As `Link.call`."""
        del timeout_s  # nothing lies between
        return getattr(self._server, method)(*args)
