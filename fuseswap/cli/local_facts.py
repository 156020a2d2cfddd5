"""What this machine's kernel knows of a file or device of its own, in the words of swap_activate."""

import errno
import fcntl
import os
import stat
import sys
from pathlib import Path

from attrs import evolve

from fuseswap.cli.failure import Failure
from fuseswap.host.fiemap import mappings
from fuseswap.host.mounts import mount_of, mounts
from fuseswap.host.swap import swaps
from fuseswap.swap.activation import DataRange, FileFacts
from fuseswap.swap.extents import Mapping
from fuseswap.swap.units import PAGE_SIZE, SECTOR_SIZE

_IOMAP = ("ext4", "xfs")
"""File systems whose ->swap_activate is iomap_swapfile_activate."""
_REFUSED = ("tmpfs", "ramfs", "overlay")
"""They have no ->read_folio or ->bmap that swapon could use; like FUSE they are refused with EINVAL."""
_TRANSFER_BYTES = 1 << 20
_BLKBSZGET = 0x80081270


def local_facts(path: str) -> FileFacts:
    """A file is opened as swapon opens it, for reading and writing, and nothing is changed. OSError.

    Failure for a file system with a ->swap_activate of its own kind: nothing is known of where the blocks lie.
    """
    status = os.stat(path)  # noqa: PTH116 (an empty path is no directory)
    known = FileFacts(
        mode=status.st_mode,
        size_bytes=status.st_size,
        allocated_bytes=status.st_blocks * SECTOR_SIZE,
        header_page=None,
        read_bytes_max=_TRANSFER_BYTES,
        write_bytes_max=_TRANSFER_BYTES,
        has_swap_rw=False,
        nlink=status.st_nlink,
        active=_is_swap(status),
    )
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        return known
    refused = 0
    try:
        # swapon takes a read-only device, too; and closing one after writing wakes udev.
        access = os.O_RDWR if stat.S_ISREG(status.st_mode) else os.O_RDONLY | os.O_EXCL
        descriptor = os.open(path, access | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EPERM, errno.EBUSY):
            raise
        refused = error.errno
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size_bytes = os.lseek(descriptor, 0, os.SEEK_END)
        found = _mappings(path, descriptor, status.st_mode, size_bytes)
        return evolve(
            known,
            size_bytes=size_bytes,
            header_page=os.pread(descriptor, PAGE_SIZE, 0),
            read_only=refused == errno.EROFS,
            immutable=refused == errno.EPERM,
            in_use=refused == errno.EBUSY and not known.active,
            block_bytes=_block_bytes(descriptor, status.st_mode) if found is not None else PAGE_SIZE,
            data_ranges=_data_ranges(descriptor, size_bytes) if stat.S_ISREG(status.st_mode) else None,
            mappings=found,
        )
    finally:
        os.close(descriptor)


def _is_swap(status: os.stat_result) -> bool:
    """Whether it is an active swap area, by whatever name."""
    for area in swaps():
        try:
            found = Path(area.path).stat()
        except OSError:
            continue
        if stat.S_ISBLK(found.st_mode) and stat.S_ISBLK(status.st_mode):
            if found.st_rdev == status.st_rdev:
                return True
        elif os.path.samestat(found, status):
            return True
    return False


def _mappings(path: str, descriptor: int, mode: int, size_bytes: int) -> tuple[Mapping, ...] | None:
    if stat.S_ISBLK(mode):
        return (Mapping(0, size_bytes, 0),)
    mount = mount_of(os.path.realpath(path), mounts())
    kind = mount.type if mount is not None else ""
    if kind in _IOMAP:
        return mappings(descriptor, size_bytes)
    if kind in _REFUSED or kind == "fuse" or kind.startswith("fuse."):
        return None
    raise Failure(f"{path} lies on {kind}, whose rules for swap are not known here: ask swapon {path}")


def _block_bytes(descriptor: int, mode: int) -> int:
    """What the smallest folio of the page cache is made for; a file system's statfs(2) tells it, too."""
    if stat.S_ISBLK(mode):
        answer = fcntl.ioctl(descriptor, _BLKBSZGET, bytes(4))
        return int.from_bytes(answer, sys.byteorder)
    return os.fstatvfs(descriptor).f_frsize


def _data_ranges(descriptor: int, size_bytes: int) -> tuple[DataRange, ...]:
    ranges = []
    offset = 0
    while offset < size_bytes:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        offset = os.lseek(descriptor, start, os.SEEK_HOLE)
        ranges.append(DataRange(start, offset))
    return tuple(ranges)
