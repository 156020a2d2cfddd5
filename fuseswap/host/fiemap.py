"""Where the blocks of a local file lie, from the kernel by FS_IOC_FIEMAP (fs/ioctl.c)."""

import fcntl
import struct

from fuseswap.swap.extents import Mapping

_FIEMAP = 0xC020660B
_SYNC = 1
"""FIEMAP_FLAG_SYNC: what is still to be allocated is first."""
_LAST = 0x1
_INLINE = 0x200
_SHARED = 0x2000

_HEAD = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQQQIIII")
_EXTENTS_PER_CALL = 512


def mappings(descriptor: int, size_bytes: int) -> tuple[Mapping, ...]:
    """The first `size_bytes` of an open file, holes included, in order.

    OSError: EOPNOTSUPP where the file system cannot tell.
    """
    found: list[Mapping] = []
    end = 0
    for logical, physical, length, flags in _extents(descriptor, size_bytes):
        if logical > end:
            found.append(Mapping(end, logical - end, None))
        found.append(Mapping(logical, length, physical, bool(flags & _INLINE), bool(flags & _SHARED)))
        end = logical + length
    if end < size_bytes:
        found.append(Mapping(end, size_bytes - end, None))
    return tuple(found)


def _extents(descriptor: int, size_bytes: int) -> list[tuple[int, int, int, int]]:
    """(logical, physical, length, flags) of each struct fiemap_extent, in bytes."""
    extents: list[tuple[int, int, int, int]] = []
    start = 0
    while start < size_bytes:
        head = _HEAD.pack(start, size_bytes - start, _SYNC, 0, _EXTENTS_PER_CALL, 0)
        buffer = bytearray(head + bytes(_EXTENT.size * _EXTENTS_PER_CALL))
        fcntl.ioctl(descriptor, _FIEMAP, buffer)
        count = _HEAD.unpack_from(buffer)[3]
        for index in range(count):
            logical, physical, length, _, _, flags, *_ = _EXTENT.unpack_from(buffer, _HEAD.size + index * _EXTENT.size)
            extents.append((logical, physical, length, flags))
        if count == 0 or extents[-1][3] & _LAST:
            break
        start = extents[-1][0] + extents[-1][2]
    return extents
