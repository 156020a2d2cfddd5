"""Writes that the server has answered but may still lose: UNSTABLE and COMMIT (RFC 1813 3.3.7, 3.3.21).

The server names its instance by a write verifier in every reply. Data written under another verifier than
the COMMIT's may be lost, so it is kept here until a COMMIT confirms it, and written again if one does not.
Writing again must not bring older bytes back over newer ones: everything from the first doubtful write on is
repeated, in its order, while new writes of the file wait.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import trio
from attrs import define, field, frozen

from fuseswap.backends.protocol import Caller, Handle, Written

KEPT_BYTES_MAX: Final = 64 << 20
"""Of all files together; a writer that would exceed it commits first."""

COMMIT_BYTES: Final = 16 << 20
"""Of one file: the server's disk is to be busy while more comes, not only at the end."""


@frozen
class Kept:
    """One answered write."""

    offset: int
    data: bytes
    verifier: bytes


@define(eq=False)
class _File:
    caller: Caller
    kept: list[Kept] = field(factory=list)
    kept_bytes: int = 0
    writing: int = 0
    """Writes now on their way."""
    changed: trio.Event = field(factory=trio.Event)
    committing: trio.Lock = field(factory=trio.Lock)
    closed: bool = False
    """New writes wait: a repetition is under way."""
    error: OSError | None = None
    """What became of writes that could not be committed, for the file's next `commit` to report."""

    def notify(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class UnstableWrites:
    """The kept writes of all files of one server.

    `write(handle, offset, data, caller)` makes an unstable write and returns the verifier, or None if the server
    made it stable at once, and what it found and left; `rewrite` makes a stable one; `commit(handle, caller)`
    returns a verifier.
    """

    def __init__(
        self,
        write: Callable[[Handle, int, bytes, Caller], Awaitable[tuple[bytes | None, Written]]],
        rewrite: Callable[[Handle, int, bytes, Caller], Awaitable[object]],
        commit: Callable[[Handle, Caller], Awaitable[bytes]],
    ) -> None:
        self._write = write
        self._rewrite = rewrite
        self._commit = commit
        self._files: dict[Handle, _File] = {}
        self._making_room = trio.Lock()
        self.kept_bytes = 0

    async def write(self, handle: Handle, offset: int, data: bytes, caller: Caller) -> Written:
        """Write and remember. Errors as the backend's `write`."""
        if self.kept_bytes + len(data) > KEPT_BYTES_MAX:
            await self._make_room(len(data))
        while (file := self._files.setdefault(handle, _File(caller))).closed:
            await file.changed.wait()
        file.caller = caller
        file.writing += 1
        try:
            verifier, written = await self._write(handle, offset, data, caller)
            if verifier is not None:
                file.kept.append(Kept(offset, data, verifier))
                self.kept_bytes += len(data)
                file.kept_bytes += len(data)
        finally:
            file.writing -= 1
            file.notify()
            self._drop_if_idle(handle, file)
        if file.kept_bytes >= COMMIT_BYTES and not file.committing.locked():
            await self._settle(handle, file)
        return written

    async def commit(self, handle: Handle) -> None:
        """Everything answered before this call is on stable storage when it returns.

        OSError if something is not: it is lost, and said once, as fsync(2) has it.
        """
        file = self._files.get(handle)
        if file is None:
            return
        await self._settle(handle, file)
        if file.error is not None:
            error, file.error = file.error, None
            self._drop_if_idle(handle, file)
            raise error

    async def settle(self, handle: Handle) -> None:
        """As `commit`, but an error waits for it."""
        file = self._files.get(handle)
        if file is not None:
            await self._settle(handle, file)

    async def settle_all(self) -> None:
        """`settle` every file."""
        for handle in list(self._files):
            await self.settle(handle)

    async def _make_room(self, bytes_wanted: int) -> None:
        # One at a time: those who waited find what the first has committed.
        async with self._making_room:
            if self.kept_bytes + bytes_wanted > KEPT_BYTES_MAX:
                await self.settle_all()

    async def _settle(self, handle: Handle, file: _File) -> None:
        async with file.committing:
            if not file.kept:
                return
            covered = len(file.kept)
            try:
                verifier = await self._commit(handle, file.caller)
                if any(kept.verifier != verifier for kept in file.kept[:covered]):
                    covered = await self._repeat(handle, file)
            except OSError as error:
                file.error = error
            self._release(handle, file, covered)

    async def _repeat(self, handle: Handle, file: _File) -> int:
        file.closed = True
        try:
            while file.writing:
                await file.changed.wait()
            for kept in file.kept:
                await self._rewrite(handle, kept.offset, kept.data, file.caller)
            return len(file.kept)
        finally:
            file.closed = False
            file.notify()

    def _release(self, handle: Handle, file: _File, count: int) -> None:
        released = sum(len(kept.data) for kept in file.kept[:count])
        file.kept_bytes -= released
        self.kept_bytes -= released
        del file.kept[:count]
        self._drop_if_idle(handle, file)

    def _drop_if_idle(self, handle: Handle, file: _File) -> None:
        idle = not file.kept and not file.writing and file.error is None
        if idle and self._files.get(handle) is file:
            del self._files[handle]
