"""Setuid bits that go with a change, where another client has changed the mode meanwhile."""

import trio

from fuseswap.backends.memory import MemoryBackend
from fuseswap.backends.protocol import Caller, SetAttributes
from fuseswap.filesystem.inodes import Node
from fuseswap.filesystem.privileges import before_write, set_attributes

ROOT = Caller(0, 0)


def test_what_another_client_took_from_the_mode_stays_away() -> None:
    async def test() -> None:
        backend = MemoryBackend(1 << 20)
        handle, _ = await backend.create(backend.root, b"file", 0o777, True, ROOT)
        known = await backend.setattr(handle, SetAttributes(mode=0o6777), ROOT)

        await backend.setattr(handle, SetAttributes(mode=0o4700), ROOT)
        await before_write(backend, Node(2, 1, handle, known), Caller(1000, 1000))
        assert (await backend.getattr(handle, ROOT)).mode == 0o700

        await backend.setattr(handle, SetAttributes(mode=0o4700), ROOT)
        await set_attributes(backend, Node(2, 1, handle, known), SetAttributes(uid=1000), ROOT)
        assert (await backend.getattr(handle, ROOT)).mode == 0o700

    trio.run(test)
