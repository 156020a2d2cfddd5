"""Names: looking up, making, linking, renaming and removing them."""

import errno
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import FileNameT, FlagT, InodeT, ModeT

from fuseswap.backends.protocol import Caller, FileType
from fuseswap.filesystem.entries import device_numbers, type_of
from fuseswap.filesystem.inodes import Node
from fuseswap.filesystem.removal import hide, reveal
from fuseswap.filesystem.serving import Serving
from fuseswap.filesystem.translate import answers_errno
from fuseswap.swap.rules import FileState, Operation


class NameOperations(Serving):
    """LOOKUP, FORGET, MKNOD, MKDIR, SYMLINK, LINK, READLINK, UNLINK, RMDIR, RENAME."""

    @answers_errno
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self.node(parent_inode)
        known = self.inodes.by_name(parent, name)
        if known is not None and self.active.attributes_of(known.handle) is not None:
            self.inodes.told(known, parent, name)
            return self.entry(known)
        caller = self.callers.of(ctx)
        if known is None:
            handle, attributes = await self.found(lambda: self.backend.lookup(parent.handle, name, caller))
        else:
            remembered = (known.handle, known.attributes)
            handle, attributes = await self.patiently(
                known, lambda: self.found(lambda: self.backend.lookup(parent.handle, name, caller)), remembered
            )
        await self.seen(handle, attributes)
        return self.new_entry(parent, name, handle, attributes)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, count in inode_list:
            self.inodes.forget(inode, count)

    @answers_errno
    async def readlink(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> FileNameT:
        target = await self.backend.readlink(self.node(inode).handle, self.callers.of(ctx))
        return FileNameT(target)

    @answers_errno
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent, caller, type = self.node(parent_inode), self.callers.of(ctx), type_of(mode)
        if type is FileType.REGULAR:
            made = await self.backend.create(parent.handle, name, mode & 0o7777, True, caller)
        else:
            made = await self.backend.mknod(parent.handle, name, type, mode & 0o7777, device_numbers(rdev), caller)
        return self.new_entry(parent, name, *made)

    @answers_errno
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self.node(parent_inode)
        made = await self.backend.mkdir(parent.handle, name, mode & 0o7777, self.callers.of(ctx))
        return self.new_entry(parent, name, *made)

    @answers_errno
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self.node(parent_inode)
        made = await self.backend.symlink(parent.handle, name, target, self.callers.of(ctx))
        return self.new_entry(parent, name, *made)

    @answers_errno
    async def link(
        self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        node, parent = self.node(inode), self.node(new_parent_inode)
        await self.gathering.drain(node.handle)
        attributes = await self.backend.link(node.handle, parent.handle, new_name, self.callers.of(ctx))
        return self.new_entry(parent, new_name, node.handle, attributes)

    @answers_errno
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext) -> None:
        parent, caller = self.node(parent_inode), self.callers.of(ctx)
        with self.changing(None):
            victim = await self._victim(Operation.UNLINK, parent, name, caller)
            if victim is not None and _needs_hiding(victim):
                await self._hide(parent, name, victim, caller)
            else:
                await self.backend.unlink(parent.handle, name, caller)
                self.inodes.unnamed(parent, name)

    @answers_errno
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: pyfuse3.RequestContext) -> None:
        await self.backend.rmdir(self.node(parent_inode).handle, name, self.callers.of(ctx))

    @answers_errno
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        old_parent, new_parent, caller = self.node(parent_inode_old), self.node(parent_inode_new), self.callers.of(ctx)
        if flags:
            # An active file on either side is EPERM before the flags are EINVAL, as in may_delete.
            await self._victim(Operation.RENAME_SOURCE, old_parent, name_old, caller)
            if flags & pyfuse3.RENAME_EXCHANGE:
                await self._victim(Operation.RENAME_TARGET, new_parent, name_new, caller)
            # NFSv3's RENAME replaces, and knows neither NOREPLACE nor EXCHANGE.
            raise OSError(errno.EINVAL, f"rename flags {flags:#x}")
        with self.changing(None):
            await self._rename(old_parent, name_old, new_parent, name_new, caller)

    async def _rename(
        self, old_parent: Node, name_old: bytes, new_parent: Node, name_new: bytes, caller: Caller
    ) -> None:
        moved = await self._victim(Operation.RENAME_SOURCE, old_parent, name_old, caller)
        target = await self._victim(Operation.RENAME_TARGET, new_parent, name_new, caller)
        hidden = target is not None and target is not moved and _needs_hiding(target)
        if hidden:
            assert target is not None
            await self._hide(new_parent, name_new, target, caller)
        try:
            await self.backend.rename(old_parent.handle, name_old, new_parent.handle, name_new, caller)
        except OSError:
            if hidden:
                assert target is not None
                await reveal(self.backend, self.inodes, new_parent, name_new, target, caller)
            raise
        if (node := self.inodes.by_name(old_parent, name_old)) is not None:
            self.inodes.unnamed(old_parent, name_old)
            self.inodes.named(node, new_parent, name_new)

    async def _hide(self, parent: Node, name: bytes, node: Node, caller: Caller) -> None:
        hidden = self.hidden_names.new(node.attributes.fileid)
        await hide(self.backend, self.inodes, parent, name, node, hidden, caller)

    async def _victim(self, operation: Operation, parent: Node, name: bytes, caller: Caller) -> Node | None:
        """The node behind a name that is to go, if it matters. OSError EPERM if the table refuses."""
        known = self.inodes.by_name(parent, name)
        if known is not None and self.active.state_of(known.handle) is not FileState.ORDINARY:
            self.active.check(operation, known.handle)
        if not self.active and not self.inodes.open_files:
            return None
        try:
            # The server is asked: another client may have put another file there, or another name of one here.
            handle, attributes = await self.backend.lookup(parent.handle, name, caller)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        self.active.check(operation, handle)
        node = self.inodes.of_handle(handle)
        if node is not None:
            node.attributes = attributes
        return node


def _needs_hiding(node: Node) -> bool:
    return node.opened > 0 and node.attributes.nlink <= 1 and node.attributes.type is not FileType.DIRECTORY
