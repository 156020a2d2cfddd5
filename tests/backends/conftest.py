"""Backends under test: each conformance test runs on every one of them."""

import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from fuseswap.backends.groups import first_error
from fuseswap.backends.memory import MemoryBackend
from fuseswap.backends.protocol import Backend
from fuseswap.backends.source import open_source
from fuseswap.host.ganesha import GaneshaServer

Test = Callable[[Backend], Awaitable[None]]
Runner = Callable[[Test], None]

_numbers = itertools.count()


@pytest.fixture(params=["memory", "local", "nfs"])
def opened(request: pytest.FixtureRequest, disk_dir: Path) -> Callable[[], AbstractAsyncContextManager[Backend]]:
    """Opens a new, empty backend."""

    @contextlib.asynccontextmanager
    async def memory() -> AsyncIterator[Backend]:
        yield MemoryBackend(64 << 20)

    @contextlib.asynccontextmanager
    async def local() -> AsyncIterator[Backend]:
        directory = disk_dir / f"local-{next(_numbers)}"
        directory.mkdir()
        async with open_source(f"file://{directory}") as backend:
            yield backend

    @contextlib.asynccontextmanager
    async def nfs() -> AsyncIterator[Backend]:
        server: GaneshaServer = request.getfixturevalue("nfs_server")
        name = f"conformance-{next(_numbers)}"
        (server.export_dir / name).mkdir()
        async with open_source(server.url(name)) as backend:
            yield backend

    return {"memory": memory, "local": local, "nfs": nfs}[request.param]


@pytest.fixture
def run(opened: Callable[[], AbstractAsyncContextManager[Backend]]) -> Runner:
    """Runs a coroutine function on a new, empty backend, within a time limit."""

    def runner(test: Test) -> None:
        async def main() -> None:
            with trio.fail_after(30):
                async with opened() as backend:
                    await test(backend)

        with first_error():
            trio.run(main)

    return runner
