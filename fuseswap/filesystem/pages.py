"""The kernel's page cache of ordinary files: whether it shows what the server has.

Without FUSE_AUTO_INVAL_DATA the kernel drops no page because a modification time has changed, so that what this
mount writes stays cached. What others change is for us to find, by size, modification and change time: at open
(close-to-open), whenever attributes are asked for, and now and then while a file is open, for who reads from the
page cache asks nobody. A write of ours is told from theirs by what the server says it found before it
(wcc_data, RFC 1813 2.6; nfs_wcc_update_inode of fs/nfs/inode.c).
"""

import contextlib

import pyfuse3
import trio
from pyfuse3 import InodeT

from fuseswap.filesystem.gathering import Gathering
from fuseswap.filesystem.inodes import NO_VERSION, Node


class Pages:
    """Of all files of a mount."""

    def __init__(self, gathering: Gathering) -> None:
        self._gathering = gathering

    def are_good(self, node: Node) -> bool:
        """At open, with the attributes just asked for: whether the kernel may keep its pages. It drops them if not."""
        known, node.cached = node.cached, node.attributes.version
        if known is not None and known != node.cached:
            # Else the kernel would go by the old size until its copy of the attributes expires.
            pyfuse3.invalidate_inode(InodeT(node.id), attr_only=True)
        return known == node.cached

    async def check(self, node: Node) -> None:
        """With attributes just asked for: the kernel drops pages of another state of the file."""
        now = node.attributes.version
        if node.cached in (None, now) or self._gathering.has(node.handle):
            return
        node.cached = NO_VERSION
        # In a thread: the kernel waits for READs that are under way, which are ours to answer.
        with contextlib.suppress(OSError):
            await trio.to_thread.run_sync(_drop, node.id, abandon_on_cancel=True)
        if node.cached is NO_VERSION:
            node.cached = now


def _drop(id: int) -> None:
    pyfuse3.invalidate_inode(InodeT(id))
