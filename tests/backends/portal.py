"""A backend that synchronous code can call: its trio loop runs in a thread."""

import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, TypeVar

import trio

from fuseswap.backends.groups import first_error
from fuseswap.backends.protocol import Backend

T = TypeVar("T")


class Portal:
    """`with Portal(open_source(url)) as portal: portal.call(portal.backend.getattr, ...)`."""

    backend: Backend

    def __init__(self, opening: AbstractAsyncContextManager[Backend]) -> None:
        self._opening = opening
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """What `function` returns or raises; 30 s at most."""

        async def limited() -> T:
            with trio.fail_after(30):
                return await function(*args)

        return trio.from_thread.run(limited, trio_token=self._token)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        self._thread.join()

    def _run(self) -> None:
        try:
            with first_error():
                trio.run(self._serve)
        except BaseException as error:
            self._error = error
            self._ready.set()

    async def _serve(self) -> None:
        async with self._opening as self.backend:
            self._stop = trio.Event()
            self._token = trio.lowlevel.current_trio_token()
            self._ready.set()
            await self._stop.wait()
