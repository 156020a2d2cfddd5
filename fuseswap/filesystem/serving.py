"""What all handlers share: the backend, the nodes, the guard, and how an answer is made."""

import contextlib
import errno
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar

import pyfuse3
import trio
from attrs import define
from pyfuse3 import InodeT

from fuseswap.backends.protocol import Attributes, Backend, Caller, Handle, Statistics
from fuseswap.filesystem.active import ROOT, ActiveFiles
from fuseswap.filesystem.callers import Callers
from fuseswap.filesystem.directories import OpenDirectory
from fuseswap.filesystem.entries import entry_of
from fuseswap.filesystem.gathering import Gathering
from fuseswap.filesystem.inodes import InodeTable, Node
from fuseswap.filesystem.options import MountOptions
from fuseswap.filesystem.pages import Pages
from fuseswap.filesystem.removal import HiddenNames
from fuseswap.filesystem.waiting import WaitingCalls
from fuseswap.swap.rules import FileState

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_SECONDS: Final = 1.0
"""How long the root, and a directory above an active file, wait for the server before memory answers for them:
with the server gone, umount(8) and the way to swapping off must stay open."""


@define(eq=False)
class OpenFile:
    """One open(2). Its reads and writes use the permissions of who opened it."""

    node: Node
    caller: Caller
    writable: bool
    direct: bool
    """O_DIRECT: the server has each write before it is answered."""
    pid: int
    """The thread that opened it. FUSE names it with every request, but pyfuse3 not with those of open files."""
    wb_err: int
    """How many of the node's failures its fsync has told."""
    write_err: int
    """How many its writes have told."""

    def has_untold_write_err(self) -> bool:
        """Whether `tell_writer` has something to say."""
        return max(self.write_err, self.wb_err) != self.node.wb_err.count

    def tell_writer(self) -> None:
        """OSError, once, of a write that failed; fsync and close tell it all the same.

        The kernel makes several WRITEs of one write(2), and drops the error of one where those before it succeeded.
        Its writeback of a mapping takes an error for the loss of those bytes: so tell after they have been stored.
        """
        known, self.write_err = max(self.write_err, self.wb_err), self.node.wb_err.count
        self.node.wb_err.check(known)

    def tell_closer(self) -> None:
        """OSError of a write that failed, as long as no fsync has told it."""
        if self.wb_err != self.node.wb_err.count:
            self.node.wb_err.told_by_close = self.node.wb_err.count
        self.node.wb_err.check(self.wb_err)

    def check_and_advance_wb_err(self) -> None:
        """OSError, once, of a write that failed (file_check_and_advance_wb_err, mm/filemap.c)."""
        known, self.wb_err = self.wb_err, self.node.wb_err.advance()
        self.node.wb_err.check(known)


@define(eq=False)
class _Change:
    node: Node | None


class Serving(pyfuse3.Operations):
    """State of one mount."""

    enable_writeback_cache = False
    supports_dot_lookup = False

    def __init__(
        self,
        backend: Backend,
        root: Attributes,
        statistics: Statistics,
        active: ActiveFiles,
        nursery: trio.Nursery,
        options: MountOptions,
    ) -> None:
        super().__init__()
        self.backend = backend
        self.inodes = InodeTable(backend.root, root)
        self.statistics = statistics
        """As the backend told them last."""
        self.active = active
        self.callers = Callers()
        self.cache_seconds = options.cache_seconds
        self.read_only = options.read_only
        self.hidden_names = HiddenNames()
        self.files: dict[int, OpenFile] = {}
        self.directories: dict[int, OpenDirectory] = {}
        self._changes: set[_Change] = set()
        self._changed = trio.lowlevel.ParkingLot()
        self.numbers = itertools.count(1)
        """Of open files and directories."""
        self.waiting = WaitingCalls()
        self.gathering = Gathering(backend, nursery, active.is_adopted)
        self.pages = Pages(self.gathering)
        self._nursery = nursery

    def asker(self, arguments: tuple[Any, ...]) -> int:
        """Who waits for a request: its context says so, or else who opened the file is taken for it."""
        if isinstance(arguments[-1], pyfuse3.RequestContext):
            return arguments[-1].pid
        opened = self.files.get(arguments[0]) or self.directories.get(arguments[0])
        return 0 if opened is None else opened.pid

    def node(self, inode: InodeT) -> Node:
        """The node the kernel means. ESTALE for one of a former life of this process."""
        node = self.inodes.get(inode)
        if node is None:
            raise OSError(errno.ESTALE, f"node {inode}")
        return node

    def entry(self, node: Node) -> pyfuse3.EntryAttributes:
        """An answer from what is known of `node`."""
        return entry_of(node, self.active.pin(node.handle, node.attributes), self.cache_seconds)

    def new_entry(self, parent: Node, name: bytes, handle: Handle, attributes: Attributes) -> pyfuse3.EntryAttributes:
        """An answer that tells the kernel of a name; FORGET will give it back."""
        node = self.inodes.learn(handle, attributes)
        self.inodes.told(node, parent, name)
        return self.entry(node)

    async def refresh(self, node: Node) -> Attributes:
        """The attributes as they are now: from memory if the file is active, else from the backend."""
        pinned = self.active.attributes_of(node.handle)
        if pinned is not None:
            return pinned
        attributes = await self.patiently(node, lambda: self.drained_attributes(node.handle), node.attributes)
        node.attributes = attributes
        return self.active.pin(node.handle, attributes)

    async def seen(self, handle: Handle, attributes: Attributes) -> None:
        """Before the kernel is told new attributes of a file that may be open: its pages are to go with the old."""
        node = self.inodes.of_handle(handle)
        if node is not None and node.opened and self.active.state_of(handle) is FileState.ORDINARY:
            node.attributes = attributes
            await self.pages.check(node)

    async def drained_attributes(self, handle: Handle) -> Attributes:
        """The backend's, with all that was written before: a size of earlier would cut off the kernel's pages."""
        return await self.gathering.drain(handle) or await self.backend.getattr(handle, ROOT)

    async def found(self, ask: Callable[[], Awaitable[tuple[Handle, Attributes]]]) -> tuple[Handle, Attributes]:
        """The file that the backend finds, with all that was written to it before."""
        writing = self.gathering.handles()
        handle, attributes = await ask()
        return handle, await self.drained_attributes(handle) if handle in writing else attributes

    async def patiently(self, node: Node, ask: Callable[[], Awaitable[T]], remembered: T) -> T:
        """The backend's answer; if it is late, what is remembered of the root or the way to an active file."""
        if node is not self.inodes.root and not self._leads_to_active(node):
            return await ask()
        with trio.move_on_after(PATIENCE_SECONDS):
            return await ask()
        return remembered

    @contextlib.contextmanager
    def changing(self, node: Node | None) -> Iterator[None]:
        """Around what changes the contents or size of `node`, or names of any file (None).

        It begins before the guard is asked, so that swap_activate sees what the guard has let through.
        """
        change = _Change(node)
        self._changes.add(change)
        try:
            yield
        finally:
            self._changes.discard(change)
            self._changed.unpark_all()

    async def drained(self, node: Node) -> None:
        """Every change under way that may concern `node` has ended, and what was written is on stable storage.

        OSError of a write that failed, if nobody was told of it yet; who has the file open is told nevertheless.
        """
        before = {change for change in self._changes if change.node in (node, None)}
        while before & self._changes:
            await self._changed.park()
        await self.gathering.commit(node, ROOT)
        known = node.wb_err.sample()
        node.wb_err.advance()
        node.wb_err.check(known)

    def in_background(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        """Do something that no request waits for; its failure is logged."""

        async def run() -> None:
            try:
                await work()
            except OSError as error:
                log.warning("%s: %s", what, error.strerror)

        self._nursery.start_soon(run)

    def _leads_to_active(self, node: Node) -> bool:
        for handle in self.active.handles():
            below = self.inodes.of_handle(handle)
            for _ in range(_DEPTH_MAX):
                if below is None or below is node:
                    break
                below = below.parent
            if below is node:
                return True
        return False


_DEPTH_MAX: Final = 2048
