"""Attributes as pyfuse3 wants them."""

import errno
import os
from typing import Final

import pyfuse3

from fuseswap.backends.protocol import Attributes, FileType, SetAttributes
from fuseswap.filesystem.inodes import Node
from fuseswap.swap.units import SECTOR_SIZE

_BLOCK_BYTES: Final = 4096
_NLINK_MAX: Final = (1 << 32) - 1

TYPE_MASK: Final = 0o170000


def entry_of(node: Node, attributes: Attributes, seconds: float) -> pyfuse3.EntryAttributes:
    """An answer to LOOKUP, GETATTR and their like, good for `seconds`."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(node.id)
    entry.generation = node.generation
    entry.entry_timeout = entry.attr_timeout = seconds
    entry.st_mode = pyfuse3.ModeT(attributes.type.value | attributes.mode)
    entry.st_nlink = min(attributes.nlink, _NLINK_MAX)
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = _rdev(attributes)
    entry.st_size = attributes.size
    entry.st_blksize = _BLOCK_BYTES
    entry.st_blocks = -(-attributes.used // SECTOR_SIZE)
    entry.st_atime_ns = attributes.atime_ns
    entry.st_mtime_ns = attributes.mtime_ns
    entry.st_ctime_ns = attributes.ctime_ns
    return entry


def changes_of(entry: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> SetAttributes:
    """What SETATTR asks for. The mode's type bits are not among it."""
    return SetAttributes(
        mode=entry.st_mode & 0o7777 if fields.update_mode else None,
        uid=entry.st_uid if fields.update_uid else None,
        gid=entry.st_gid if fields.update_gid else None,
        size=entry.st_size if fields.update_size else None,
        atime_ns=entry.st_atime_ns if fields.update_atime else None,
        mtime_ns=entry.st_mtime_ns if fields.update_mtime else None,
    )


def type_of(mode: int) -> FileType:
    """The type in a mode; OSError EINVAL if it is none."""
    try:
        return FileType(mode & TYPE_MASK)
    except ValueError:
        raise OSError(errno.EINVAL, f"file type {mode & TYPE_MASK:o}") from None


def device_numbers(rdev: int) -> tuple[int, int]:
    """(major, minor) of a dev_t."""
    return os.major(rdev), os.minor(rdev)


def _rdev(attributes: Attributes) -> int:
    if attributes.type not in (FileType.BLOCK, FileType.CHARACTER):
        return 0
    # FUSE carries 12 bits of major and 20 of minor number (new_encode_dev).
    return os.makedev(attributes.rdev[0] & 0xFFF, attributes.rdev[1] & 0xFFFFF)
