"""Removing names of files that are open: silly rename (nfs_sillyrename, fs/nfs/unlink.c).

NFSv3 knows no open files: a removed file is gone at once. So the last name of an open file becomes a hidden
one, and goes when the file is closed.

A process that is killed leaves its hidden names behind. Each bears the mark of its machine and process, so a
later mount of the same machine removes it when it meets it in a directory, once that process is no more. The
names of other clients, the kernel's among them, are never touched.
"""

import hashlib
import itertools
import logging
import os
import re
from pathlib import Path
from typing import Final

from fuseswap.backends.protocol import Backend, Caller
from fuseswap.filesystem.inodes import InodeTable, Node

log = logging.getLogger(__name__)

_HIDDEN: Final = re.compile(rb"\.nfs[0-9a-f]{16}([0-9a-f]{16})([0-9a-f]{8})([0-9a-f]{12})[0-9a-f]{4,}")
"""fileid, machine, process id, its start in clock ticks after boot, a number."""


class HiddenNames:
    """Names given to removed files that are open."""

    def __init__(self) -> None:
        self._machine = _machine_mark()
        self._process = b"%08x%012x" % (os.getpid(), _start_ticks(os.getpid()) or 0)
        self._numbers = itertools.count()

    def new(self, fileid: int) -> bytes:
        """A name that no other file has or gets."""
        return b".nfs%016x%s%s%04x" % (fileid, self._machine, self._process, next(self._numbers))

    def is_left_over(self, name: bytes) -> bool:
        """Whether a process of this machine gave the name, and is no more."""
        found = _HIDDEN.fullmatch(name)
        return found is not None and found[1] == self._machine and _start_ticks(int(found[2], 16)) != int(found[3], 16)


async def hide(
    backend: Backend, inodes: InodeTable, parent: Node, name: bytes, node: Node, hidden: bytes, caller: Caller
) -> None:
    """Give an open file the name `hidden` in the place of its last one."""
    await backend.rename(parent.handle, name, parent.handle, hidden, caller)
    node.hidden = (parent.handle, hidden)
    inodes.unnamed(parent, name)
    inodes.named(node, parent, hidden)


async def reveal(backend: Backend, inodes: InodeTable, parent: Node, name: bytes, node: Node, caller: Caller) -> None:
    """Take `hide` back."""
    assert node.hidden is not None
    directory, hidden = node.hidden
    await backend.rename(directory, hidden, parent.handle, name, caller)
    node.hidden = None
    inodes.unnamed(parent, hidden)
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


def _machine_mark() -> bytes:
    """16 digits. Process ids mean something within their namespace only, so it is part of the mark."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    # Nobody can tell a machine without an id from another: what it leaves stays.
    machine = machine or os.urandom(16).hex()
    namespace = Path("/proc/self/ns/pid").readlink()
    return hashlib.sha256(f"{machine} {namespace}".encode()).hexdigest()[:16].encode()


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)); None without such a process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None
