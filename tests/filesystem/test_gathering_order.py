"""Order and promises of gathered writes, on a backend that answers when the test says so."""

import errno
from collections.abc import Awaitable, Callable
from typing import cast

import trio
import trio.testing

from fuseswap.backends.memory import MemoryBackend
from fuseswap.backends.protocol import Backend, Caller, Handle, Written
from fuseswap.filesystem.gathering import Gathering
from fuseswap.filesystem.inodes import Node

ROOT = Caller(0, 0)
PAGE = 4096


class HeldBackend(MemoryBackend):
    """Each write takes effect when it is let go."""

    def __init__(self) -> None:
        super().__init__(64 << 20)
        self.held: dict[int, trio.Event] = {}
        self.stable: list[bool] = []
        self.fails = False

    def hold(self, offset: int) -> trio.Event:
        event = self.held[offset] = trio.Event()
        return event

    async def write(self, handle: Handle, offset: int, data: bytes, stable: bool, caller: Caller) -> Written:
        self.stable.append(stable)
        event = self.held.pop(offset, None)
        if event is not None:
            await event.wait()
        if self.fails:
            raise OSError(errno.ENOSPC, "full")
        return await super().write(handle, offset, data, stable, caller)


def run(test: Callable[[HeldBackend, Gathering, Node], Awaitable[None]]) -> None:
    async def main() -> None:
        backend = HeldBackend()
        handle, attributes = await backend.create(backend.root, b"file", 0o600, True, ROOT)
        async with trio.open_nursery() as nursery:
            with trio.fail_after(20):
                await test(
                    backend, Gathering(cast(Backend, backend), nursery, lambda _: False), Node(2, 1, handle, attributes)
                )
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_what_gathers_does_not_grow_over_an_older_write_on_its_way() -> None:
    async def test(backend: HeldBackend, gathering: Gathering, node: Node) -> None:
        letting_go = backend.hold(PAGE)
        await gathering.write(node, PAGE, b"o" * PAGE, ROOT)
        await gathering.write(node, 0, b"n" * PAGE, ROOT)
        assert not gathering.append(node.handle, PAGE, b"n" * PAGE, ROOT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gathering.write, node, PAGE, b"n" * PAGE, ROOT)
            await trio.testing.wait_all_tasks_blocked()
            letting_go.set()
        await gathering.commit(node, ROOT)
        assert await backend.read(node.handle, 0, 3 * PAGE, ROOT) == b"n" * 2 * PAGE

    run(test)


def test_a_stable_write_does_not_overtake_what_came_during_the_commit_before() -> None:
    async def test(backend: HeldBackend, gathering: Gathering, node: Node) -> None:
        first, second = backend.hold(0), backend.hold(backend.write_bytes_max)
        await gathering.write(node, 0, bytes(backend.write_bytes_max), ROOT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gathering.commit, node, ROOT)
            await trio.testing.wait_all_tasks_blocked()
            await gathering.write(node, backend.write_bytes_max, bytes(backend.write_bytes_max), ROOT)
            await trio.testing.wait_all_tasks_blocked()
            first.set()
        second.set()
        await gathering.drain(node.handle)
        await gathering.write(node, 0, b"x", ROOT)
        await gathering.commit(node, ROOT)
        assert backend.stable == [False, False, False]
        await gathering.write(node, 0, b"x", ROOT)
        await gathering.commit(node, ROOT)
        assert backend.stable[-1]

    run(test)


def test_an_error_that_waits_to_be_told_is_no_write() -> None:
    async def test(backend: HeldBackend, gathering: Gathering, node: Node) -> None:
        backend.fails = True
        await gathering.write(node, 0, b"x", ROOT)
        assert gathering.has(node.handle)
        await gathering.drain(node.handle)
        assert not gathering.has(node.handle)
        backend.fails = False
        await gathering.commit(node, ROOT)
        assert (node.wb_err.count, node.wb_err.errno) == (1, errno.ENOSPC)

    run(test)
