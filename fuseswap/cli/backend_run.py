"""A coroutine on an opened source or directory, from a command that knows nothing of trio.

Ctrl-C lets it clean up.
"""

import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import trio
from attrs import define, field

from fuseswap.backends.protocol import Backend
from fuseswap.backends.source import open_source
from fuseswap.cli.interrupts import SIGNALS, Interrupted

P = TypeVar("P")
T = TypeVar("T")


@define(eq=False)
class _Run(Generic[P, T]):
    open: Callable[[], AbstractAsyncContextManager[P]]
    work: Callable[[P], Awaitable[T]]
    opening: trio.CancelScope = field(factory=trio.CancelScope)
    working: trio.CancelScope = field(factory=trio.CancelScope)
    opened: bool = False
    signals: list[int] = field(factory=list)
    results: list[T] = field(factory=list)
    error: Exception | None = None

    async def main(self) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals)
            with self.opening:
                try:
                    await self._open_and_work()
                except Exception as error:
                    self.error = _first(error)
            nursery.cancel_scope.cancel()

    async def _open_and_work(self) -> None:
        async with self.open() as place:
            self.opened = True
            with self.working:
                try:
                    self.results.append(await self.work(place))
                except Exception as error:
                    # Beyond the backend's nursery it would be a group.
                    self.error = error
            if self.signals:
                # What the source would still wait for is not wanted any more.
                self.opening.cancel()

    async def _watch_signals(self, task_status: trio.TaskStatus[None]) -> None:
        # While the work cleans up, the backend must still serve: so it is not cancelled, and a second signal
        # is only noted.
        with trio.open_signal_receiver(*SIGNALS) as received:
            task_status.started()
            async for number in received:
                self.signals.append(number)
                (self.working if self.opened else self.opening).cancel()


def with_source(source: str, work: Callable[[Backend], Awaitable[T]]) -> T:
    """`await work(backend)` on an opened source. SourceError, and whatever `work` raises."""
    return with_opened(lambda: open_source(source), work)


def with_opened(open: Callable[[], AbstractAsyncContextManager[P]], work: Callable[[P], Awaitable[T]]) -> T:
    """`await work(place)` on what `open` opens.

    A signal cancels the work and is raised again once it has cleaned up. Whatever `open` and `work` raise.
    """
    run = _Run(open, work)
    trio.run(run.main)
    if run.signals:
        signal.raise_signal(run.signals[0])
        raise Interrupted(run.signals[0])
    if run.error is not None:
        raise run.error
    return run.results[0]


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
