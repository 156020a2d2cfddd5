"""Directories read."""

import errno
import logging
import os

import pyfuse3
from pyfuse3 import FileHandleT, FileNameT, InodeT

from fuseswap.backends.protocol import Attributes, Entry, Handle
from fuseswap.filesystem.active import ROOT
from fuseswap.filesystem.directories import OpenDirectory
from fuseswap.filesystem.entries import entry_of
from fuseswap.filesystem.serving import Serving
from fuseswap.filesystem.translate import answers_errno

log = logging.getLogger(__name__)


class ListingOperations(Serving):
    """OPENDIR, READDIRPLUS, RELEASEDIR, FSYNCDIR."""

    @answers_errno
    async def opendir(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileHandleT:
        fh = FileHandleT(next(self.numbers))
        self.directories[fh] = OpenDirectory(self.node(inode), self.callers.of(ctx), ctx.pid)
        return fh

    @answers_errno
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory = self.directories[fh]
        if start_id == 0:
            directory.rewind()
        node = directory.node
        for position, name, dot in ((1, b".", node), (2, b"..", node.parent or node)):
            # The two are not counted as told: no FORGET gives them back (fuse_direntplus_link, fs/fuse/readdir.c).
            if start_id < position and not pyfuse3.readdir_reply(token, FileNameT(name), self.entry(dot), position):
                return
        async for position, entry in directory.entries(self.backend, max(start_id, 2)):
            if self.hidden_names.is_left_over(entry.name) and await self._cleared(directory, entry.name):
                continue
            known = await self._complete(directory, entry)
            if known is None:
                continue
            child = self.inodes.learn(*known)
            if child.opened and self.active.attributes_of(child.handle) is None:
                # The page of entries may be older than what was written since.
                await self.seen(child.handle, await self.drained_attributes(child.handle))
            answer = entry_of(child, self.active.pin(child.handle, child.attributes), self.cache_seconds)
            if not pyfuse3.readdir_reply(token, FileNameT(entry.name), answer, position):
                self.inodes.release(child)
                return
            self.inodes.told(child, node, entry.name)

    @answers_errno
    async def releasedir(self, fh: FileHandleT) -> None:
        del self.directories[fh]

    @answers_errno
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """NFSv3 has each change of a directory on stable storage before its reply (RFC 1813 section 4.8)."""

    async def _cleared(self, directory: OpenDirectory, name: bytes) -> bool:
        """Whether a name that a killed process left is gone now: who may not remove it sees it."""
        if self.read_only:
            return False
        try:
            await self.backend.unlink(directory.node.handle, name, directory.caller)
        except OSError as error:
            return error.errno == errno.ENOENT
        log.info("removed %s of a process that is no more", os.fsdecode(name))
        return True

    async def _complete(self, directory: OpenDirectory, entry: Entry) -> tuple[Handle, Attributes] | None:
        """Handle and attributes of an entry, asked for if the server left them out; None if it is gone."""
        if entry.handle is not None and entry.attributes is not None:
            return entry.handle, entry.attributes
        try:
            return await self._looked_up(directory, entry.name)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    async def _looked_up(self, directory: OpenDirectory, name: bytes) -> tuple[Handle, Attributes]:
        try:
            return await self.backend.lookup(directory.node.handle, name, directory.caller)
        except PermissionError:
            # Who may read a directory but not search it sees its names; pyfuse3 tells them with attributes only.
            # They are no way in: the kernel asks for search permission itself.
            return await self.backend.lookup(directory.node.handle, name, ROOT)
