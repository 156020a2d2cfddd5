"""Files: attributes, opening, reading, writing, and what close and fsync promise."""

import contextlib
import os

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FileNameT, FlagT, InodeT, ModeT

from fuseswap.backends.protocol import Attributes, Caller, SetAttributes
from fuseswap.filesystem.entries import changes_of
from fuseswap.filesystem.inodes import Node
from fuseswap.filesystem.privileges import before_write, set_attributes
from fuseswap.filesystem.removal import remove_hidden
from fuseswap.filesystem.serving import OpenFile, Serving
from fuseswap.filesystem.translate import answers_errno
from fuseswap.swap.rules import FileState, Operation


class FileOperations(Serving):
    """GETATTR, SETATTR, OPEN, CREATE, READ, WRITE, FLUSH, FSYNC, RELEASE, STATFS."""

    @answers_errno
    async def getattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        node = self.node(inode)
        await self.seen(node.handle, await self.refresh(node))
        return self.entry(node)

    @answers_errno
    async def setattr(
        self,
        inode: InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        node, changes, caller = self.node(inode), changes_of(attr, fields), self.callers.of(ctx)
        with self.changing(node):
            if changes.size is not None:
                self.active.check(_truncation(node.attributes, changes.size), node.handle)
            if self.active.change(node.handle, changes) is not None:
                # Answered from memory: in the kernel, who waits for this holds the inode's lock.
                self.in_background("setattr", lambda: self.backend.setattr(node.handle, changes, caller))
            else:
                await self.gathering.drain(node.handle)
                await set_attributes(self.backend, node, changes, caller)
        return self.entry(node)

    @answers_errno
    async def open(self, inode: InodeT, flags: FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        node, caller = self.node(inode), self.callers.of(ctx)
        if flags & os.O_TRUNC:
            await self._truncate(node, caller)
        elif self.active.state_of(node.handle) is FileState.ORDINARY:
            await self.refresh(node)
        return self._opened(node, caller, flags, ctx.pid)

    @answers_errno
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        parent, caller = self.node(parent_inode), self.callers.of(ctx)
        exclusive = bool(flags & os.O_EXCL)
        handle, attributes = await self.found(
            lambda: self.backend.create(parent.handle, name, mode & 0o7777, exclusive, caller)
        )
        entry = self.new_entry(parent, name, handle, attributes)
        node = self.node(entry.st_ino)
        if flags & os.O_TRUNC and attributes.size:
            # Another client made it meanwhile.
            try:
                await self._truncate(node, caller)
            except BaseException:
                self.inodes.forget(node.id, 1)
                raise
            entry = self.entry(node)
        return self._opened(node, caller, flags, ctx.pid), entry

    @answers_errno
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        file = self.files[fh]
        await self.gathering.drain(file.node.handle)
        return await self.backend.read(file.node.handle, off, size, file.caller)

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        file = self.files.get(fh)
        # Small writes cost what we do for them: 90 us of this process each, 157 us by way of `_write`. Whether the file
        # has become swap is asked when they are sent.
        if (
            file is not None
            and not file.direct
            and not file.has_untold_write_err()
            and not self.active.knows(file.node.handle)
            and self.gathering.append(file.node.handle, off, buf, file.caller)
        ):
            return len(buf)
        return await self._write(fh, off, buf)

    @answers_errno
    async def _write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        file = self.files[fh]
        node = file.node
        with self.changing(node):
            self.active.check(Operation.WRITE, node.handle)
            await before_write(self.backend, node, file.caller)
            await self.gathering.write(node, off, buf, file.caller)
            if file.direct:
                await self.gathering.drain(node.handle)
            file.tell_writer()
        return len(buf)

    @answers_errno
    async def flush(self, fh: FileHandleT) -> None:
        file = self.files[fh]
        if not file.writable:
            return
        try:
            await self._flush(file)
        except trio.Cancelled:
            # Who closes is dead; the data is to get there nevertheless.
            self.in_background("flush", lambda: self._flush(file))
            raise

    @answers_errno
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        file = self.files[fh]
        await self.gathering.commit(file.node, file.caller)
        file.check_and_advance_wb_err()

    @answers_errno
    async def release(self, fh: FileHandleT) -> None:
        file = self.files.pop(fh)
        node = file.node
        self.inodes.closed(node)
        if node.opened == 0:
            # Nobody is left whom close has not told.
            node.wb_err.seen = max(node.wb_err.seen, node.wb_err.told_by_close)
        if node.opened == 0 and node.hidden is not None:
            await remove_hidden(self.backend, node, file.caller)
        self.inodes.release(node)

    @answers_errno
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        numbers = self.statistics = await self.patiently(
            self.inodes.root, lambda: self.backend.statistics(self.backend.root, self.callers.of(ctx)), self.statistics
        )
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = _BLOCK_BYTES
        data.f_blocks = numbers.total_bytes // _BLOCK_BYTES
        data.f_bfree = numbers.free_bytes // _BLOCK_BYTES
        data.f_bavail = numbers.available_bytes // _BLOCK_BYTES
        data.f_files, data.f_ffree, data.f_favail = numbers.total_files, numbers.free_files, numbers.available_files
        data.f_namemax = numbers.name_bytes_max
        return data

    async def watch_open_files(self) -> None:
        """Look, as often as attributes grow old, for what others changed in them; until cancelled."""
        while True:
            await trio.sleep(self.cache_seconds)
            for node in {file.node for file in self.files.values()}:
                with contextlib.suppress(OSError):
                    await self.seen(node.handle, await self.refresh(node))

    async def _flush(self, file: OpenFile) -> None:
        await self.gathering.commit(file.node, file.caller)
        # Descriptors of a child that calls exec(2) or ends close unheard; its parent's fsync must not succeed.
        file.tell_closer()

    async def _truncate(self, node: Node, caller: Caller) -> None:
        with self.changing(node):
            self.active.check(Operation.OPEN_TRUNCATE, node.handle)
            await self.gathering.drain(node.handle)
            await set_attributes(self.backend, node, SetAttributes(size=0), caller)

    def _opened(self, node: Node, caller: Caller, flags: int, pid: int) -> pyfuse3.FileInfo:
        fh = FileHandleT(next(self.numbers))
        writable, direct = flags & os.O_ACCMODE != os.O_RDONLY, bool(flags & os.O_DIRECT)
        self.files[fh] = OpenFile(node, caller, writable, direct, pid, node.wb_err.sample(), node.wb_err.sample())
        self.inodes.opened(node)
        if self.active.state_of(node.handle) is not FileState.ORDINARY:
            # No page cache stands beside the pages of swap, and no shared mapping can be made.
            return pyfuse3.FileInfo(fh=fh, direct_io=True)
        return pyfuse3.FileInfo(fh=fh, keep_cache=self.pages.are_good(node))


_BLOCK_BYTES = 4096


def _truncation(attributes: Attributes, size: int) -> Operation:
    if size > attributes.size:
        return Operation.TRUNCATE_LARGER
    return Operation.TRUNCATE_SAME if size == attributes.size else Operation.TRUNCATE_SMALLER
