"""Writes answered before the server has them: small ones gather into large ones, large ones overlap.

What write(2) promises is that later readers of this mount see the bytes. So whoever reads the file, asks for its
attributes or changes them waits for its writes first (`drain`), and so does whoever was promised stable storage:
fsync and close (`commit`). A write that fails is told by the next write of each open file, and by its next fsync or,
until then, each close. Nothing is held back for longer than LINGER_SECONDS.
"""

import errno
import itertools
import logging
import math
import os
from collections.abc import Callable
from typing import Final

import trio
from attrs import define, field

from fuseswap.backends.protocol import Attributes, Backend, Caller, Handle, Written
from fuseswap.filesystem.inodes import Node

log = logging.getLogger(__name__)

SENDING_BYTES_MAX: Final = 8 << 20
"""On their way at once, of one file; a writer that would exceed it waits."""

_SENDING_MAX: Final = 64
LINGER_SECONDS: Final = 0.5


@define(eq=False)
class _Piece:
    """Adjoining bytes of one file."""

    offset: int
    data: bytes | bytearray
    caller: Caller
    end_max: float = math.inf
    """Behind it lie bytes of an earlier piece that was on its way when this one began, and might still arrive later."""
    after: Attributes | None = None
    """What it left, as far as the backend told it."""

    @property
    def end(self) -> int:
        return self.offset + len(self.data)

    def takes(self, offset: int, length: int, caller: Caller) -> bool:
        """Whether a write goes on where this piece ends."""
        return self.end == offset and self.caller == caller and offset + length <= self.end_max

    def overlaps(self, offset: int, end: int) -> bool:
        return self.offset < end and offset < self.end


@define(eq=False)
class _File:
    node: Node
    gathered: _Piece | None = None
    sending: set[_Piece] = field(factory=set)
    sent: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    writers: int = 0
    """Calls of `write` under way."""


class Gathering:
    """The writes of all files that the backend does not have yet."""

    def __init__(self, backend: Backend, nursery: trio.Nursery, is_refused: Callable[[Handle], bool]) -> None:
        """`is_refused` is asked before a write is sent: ETXTBSY for a file that has become swap since it was taken."""
        self._backend = backend
        self._nursery = nursery
        self._is_refused = is_refused
        self._files: dict[Handle, _File] = {}
        self._unstable: dict[Handle, int] = {}
        """Which was the last write of a file that a `commit` has to confirm."""
        self._numbers = itertools.count()

    def handles(self) -> frozenset[Handle]:
        """Of the files that have such writes."""
        return frozenset(self._files)

    def has(self, handle: Handle) -> bool:
        """Whether the file has such writes."""
        file = self._files.get(handle)
        return file is not None and (file.gathered is not None or bool(file.sending))

    def append(self, handle: Handle, offset: int, data: bytes, caller: Caller) -> bool:
        """Take a small write that goes on where the last one ended. False if `write` has to take it."""
        file = self._files.get(handle)
        if file is None or file.gathered is None:
            return False
        piece = file.gathered
        full = len(piece.data) + len(data) >= self._backend.write_bytes_max
        if full or not piece.takes(offset, len(data), caller):
            return False
        piece.data += data
        return True

    async def write(self, node: Node, offset: int, data: bytes, caller: Caller) -> None:
        """Take a write. If it fails later, `node.wb_err` has it."""
        file = self._files.setdefault(node.handle, _File(node))
        file.writers += 1
        try:
            await self._take(file, offset, data, caller)
            while len(file.sending) > _SENDING_MAX or _bytes(file) > SENDING_BYTES_MAX:
                await file.sent.park()
        finally:
            file.writers -= 1
            self._drop_if_idle(file)

    async def drain(self, handle: Handle) -> Attributes | None:
        """The backend has answered every write taken before this call when it returns.

        Attributes of the file at a moment since the call began, if they came by the way.
        """
        file = self._files.get(handle)
        if file is None:
            return None
        # The only one, and sent from here.
        last = None if file.sending else file.gathered
        self._send_gathered(file)
        before = set(file.sending)
        while before & file.sending:
            await file.sent.park()
        return None if last is None or file.sending else last.after

    async def commit(self, node: Node, caller: Caller) -> None:
        """All that was written before this call is on stable storage when it returns, or `node.wb_err` says no."""
        handle = node.handle
        file = self._files.get(handle)
        if file is not None:
            # A lone WRITE that is stable by itself is one round trip less than an unstable one and COMMIT. It must
            # not overtake unstable ones: those may be repeated yet, after a crash of the server.
            self._send_gathered(file, stable=not file.sending and handle not in self._unstable)
        # Those that others send from here on may still be on their way when COMMIT is answered.
        last = self._unstable.get(handle)
        await self.drain(handle)
        try:
            await self._backend.commit(handle, caller)
        except OSError as error:
            node.wb_err.set(error)
            return
        if self._unstable.get(handle) == last:
            self._unstable.pop(handle, None)

    async def drain_all(self) -> None:
        """As `drain`, for every file."""
        for handle in self.handles():
            await self.drain(handle)

    async def _take(self, file: _File, offset: int, data: bytes, caller: Caller) -> None:
        gathered = file.gathered
        if gathered is not None and gathered.takes(offset, len(data), caller):
            gathered.data += data
        else:
            self._send_gathered(file)
            # Two writes of the same bytes must reach the server in their order.
            while any(piece.overlaps(offset, offset + len(data)) for piece in file.sending):
                await file.sent.park()
                self._send_gathered(file)
            whole = len(data) >= self._backend.write_bytes_max
            end_max = min((piece.offset for piece in file.sending if piece.offset > offset), default=math.inf)
            file.gathered = gathered = _Piece(offset, data if whole else bytearray(data), caller, end_max)
            if not whole:
                self._nursery.start_soon(self._send_lingering, file, gathered)
        if len(gathered.data) >= self._backend.write_bytes_max:
            self._send_gathered(file)

    async def _send_lingering(self, file: _File, piece: _Piece) -> None:
        await trio.sleep(LINGER_SECONDS)
        if file.gathered is piece:
            self._send_gathered(file)

    def _send_gathered(self, file: _File, *, stable: bool = False) -> None:
        piece, file.gathered = file.gathered, None
        if piece is not None:
            file.sending.add(piece)
            if not stable:
                self._unstable[file.node.handle] = next(self._numbers)
            self._nursery.start_soon(self._send, file, piece, stable)

    async def _send(self, file: _File, piece: _Piece, stable: bool) -> None:
        try:
            if self._is_refused(file.node.handle):
                raise OSError(errno.ETXTBSY, os.strerror(errno.ETXTBSY))
            written = await self._backend.write(file.node.handle, piece.offset, bytes(piece.data), stable, piece.caller)
            if written.after is not None:
                file.node.attributes = piece.after = written.after
            file.node.wrote(written)
        except OSError as error:
            file.node.wb_err.set(error)
            file.node.wrote(Written(None, None))
        except Exception:
            log.exception("write failed")
            file.node.wb_err.set(OSError(errno.EIO, "write failed"))
            file.node.wrote(Written(None, None))
        finally:
            file.sending.discard(piece)
            file.sent.unpark_all()
            self._drop_if_idle(file)

    def _drop_if_idle(self, file: _File) -> None:
        busy = file.gathered is not None or file.sending or file.writers
        if not busy and self._files.get(file.node.handle) is file:
            del self._files[file.node.handle]


def _bytes(file: _File) -> int:
    return sum(len(piece.data) for piece in file.sending)
