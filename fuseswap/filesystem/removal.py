"""Removing names of files that are open: silly rename (nfs_sillyrename, fs/nfs/unlink.c).

NFSv3 knows no open files: a removed file is gone at once. So the last name of an open file becomes a hidden
one, and goes when the file is closed.
"""

import logging
import os

from fuseswap.backends.protocol import Backend, Caller
from fuseswap.filesystem.inodes import InodeTable, Node

log = logging.getLogger(__name__)


async def hide(backend: Backend, inodes: InodeTable, parent: Node, name: bytes, node: Node, caller: Caller) -> None:
    """Give an open file a hidden name in the place of its last one."""
    hidden = b".nfs%016x%s" % (node.attributes.fileid, os.urandom(4).hex().encode())
    await backend.rename(parent.handle, name, parent.handle, hidden, caller)
    node.hidden = (parent.handle, hidden)
    inodes.named(node, parent, hidden)


async def reveal(backend: Backend, inodes: InodeTable, parent: Node, name: bytes, node: Node, caller: Caller) -> None:
    """Take `hide` back."""
    assert node.hidden is not None
    directory, hidden = node.hidden
    await backend.rename(directory, hidden, parent.handle, name, caller)
    node.hidden = None
    inodes.named(node, parent, name)


async def remove_hidden(backend: Backend, node: Node, caller: Caller) -> None:
    """The file is closed: its hidden name goes."""
    if node.hidden is None:
        return
    (directory, name), node.hidden = node.hidden, None
    try:
        await backend.unlink(directory, name, caller)
    except OSError as error:
        log.warning("%s stays: %s", os.fsdecode(name), error.strerror)
