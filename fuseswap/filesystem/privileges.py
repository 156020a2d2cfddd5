"""Changes that the kernel asks for, and that a server would refuse the caller or not make by itself.

Under default_permissions the kernel has decided who may do what. Two things it lets through are not the caller's
by the mode bits alone: who may write a file may set its times to now (setattr_prepare, fs/attr.c), and whoever
writes it or changes its owner takes its setuid and setgid bits (file_remove_privs, fs/inode.c; chown_common,
fs/open.c). A kernel that knows FUSE_HANDLE_KILLPRIV_V2 leaves that to us, an older one makes it a SETATTR of the mode.
"""

import contextlib
from typing import Final

from attrs import evolve

from fuseswap.backends.protocol import Attributes, Backend, Caller, FileType, SetAttributes
from fuseswap.filesystem.active import ROOT
from fuseswap.filesystem.inodes import Node

_SETUID: Final = 0o4000
_SETGID: Final = 0o2000
_GROUP_EXECUTES: Final = 0o010


async def set_attributes(backend: Backend, node: Node, changes: SetAttributes, caller: Caller) -> None:
    """SETATTR, and the truncation of O_TRUNC, as the kernel means them. Errors as the backend's `setattr`."""
    known = node.attributes
    if caller.uid not in (0, known.uid):
        if changes.atime_ns is not None and changes.mtime_ns is not None:
            # Times of its own choice the kernel allows the owner only; these are those of now.
            changes = evolve(changes, atime_ns=None, mtime_ns=None, touch=True)
        if changes.mode is not None and _only_drops_setid(known.mode, changes.mode):
            await _drop_setid(backend, node, changes.mode)
            changes = evolve(changes, mode=None)
            if changes == SetAttributes():
                return
    if changes.mode is None and (changes.uid, changes.gid) != (None, None) and known.type is FileType.REGULAR:
        if known.mode & (_SETUID | _SETGID):
            known = await _afresh(backend, node)
        mode = _without_setid(known, caller) & ~_bits_of_owner(known)
        changes = evolve(changes, mode=None if mode == known.mode else mode)
    node.attributes = await backend.setattr(node.handle, changes, caller)
    if changes.size is not None:
        await before_write(backend, node, caller)


async def before_write(backend: Backend, node: Node, caller: Caller) -> None:
    """`caller` changes the contents."""
    if _without_setid(node.attributes, caller) != node.attributes.mode:
        mode = _without_setid(await _afresh(backend, node), caller)
        if mode != node.attributes.mode:
            await _drop_setid(backend, node, mode)


async def _afresh(backend: Backend, node: Node) -> Attributes:
    """A mode goes to the server whole: what another client has taken from it must not come back."""
    node.attributes = await backend.getattr(node.handle, ROOT)
    return node.attributes


async def _drop_setid(backend: Backend, node: Node, mode: int) -> None:
    owner = Caller(node.attributes.uid, node.attributes.gid)
    # Where the owner is root and squashed, it is left to the server, which does it with the change itself.
    with contextlib.suppress(PermissionError):
        node.attributes = await backend.setattr(node.handle, SetAttributes(mode=mode), owner)


def _only_drops_setid(before: int, after: int) -> bool:
    return before & after == after and (before ^ after) & ~(_SETUID | _SETGID) == 0


def _bits_of_owner(attributes: Attributes) -> int:
    """Those that go with a change of owner or group, whoever makes it."""
    return _SETUID | _SETGID if attributes.mode & _GROUP_EXECUTES else _SETUID


def _without_setid(attributes: Attributes, caller: Caller) -> int:
    """The mode after a change by `caller` (setattr_should_drop_suidgid, fs/attr.c); root keeps the bits."""
    mode = attributes.mode
    if caller.uid == 0:
        return mode
    member = attributes.gid == caller.gid or attributes.gid in caller.groups
    if mode & _GROUP_EXECUTES or not member:
        mode &= ~_SETGID
    return mode & ~_SETUID
