"""System calls that Python lacks. Each raises OSError with the kernel's errno."""

import ctypes
import fcntl
import os
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]

FALLOC_KEEP_SIZE = 0x01
FALLOC_PUNCH_HOLE = 0x02
FALLOC_COLLAPSE_RANGE = 0x08
FALLOC_ZERO_RANGE = 0x10
FALLOC_INSERT_RANGE = 0x20
FALLOC_UNSHARE_RANGE = 0x40

RENAME_EXCHANGE = 2

MS_RDONLY = 1
MS_REMOUNT = 32

_AT_FDCWD = -100
_FIBMAP = 1
_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D
_FIDEDUPERANGE = 0xC0189436
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602


def _check(result: int, path: Path | None = None) -> int:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), str(path) if path else None)
    return result


def swapon(path: Path, flags: int = 0) -> None:
    """swapon(2). Without a priority in `flags` the kernel gives a negative one, lower than all others."""
    _check(_libc.swapon(bytes(path), flags), path)


def swapoff(path: Path) -> None:
    _check(_libc.swapoff(bytes(path)), path)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _check(_libc.fallocate64(fd, mode, offset, length))


def sync_file_range(fd: int) -> None:
    _check(_libc.sync_file_range(fd, 0, 0, 2))


def syncfs(fd: int) -> None:
    _check(_libc.syncfs(fd))


def exchange(one: Path, other: Path) -> None:
    _check(_libc.renameat2(_AT_FDCWD, bytes(one), _AT_FDCWD, bytes(other), RENAME_EXCHANGE), one)


def unmount(point: Path) -> None:
    _check(_libc.umount2(bytes(point), 0), point)


def remount(point: Path, read_only: bool) -> None:
    flags = MS_REMOUNT | (MS_RDONLY if read_only else 0)
    _check(_libc.mount(None, bytes(point), None, ctypes.c_ulong(flags), None), point)


def clone(source_fd: int, target_fd: int) -> None:
    fcntl.ioctl(target_fd, _FICLONE, source_fd)


def clone_range(source_fd: int, target_fd: int, offset: int, length: int) -> None:
    fcntl.ioctl(target_fd, _FICLONERANGE, struct.pack("=qQQQ", source_fd, offset, length, offset))


def dedupe(source_fd: int, target_fd: int, length: int) -> None:
    """FIDEDUPERANGE of one range; its own status is raised too. Ranges that differ are no error."""
    head = struct.pack("=QQHHI", 0, length, 1, 0, 0)
    answer = fcntl.ioctl(source_fd, _FIDEDUPERANGE, head + struct.pack("=qQQiI", target_fd, 0, 0, 0, 0))
    (status,) = struct.unpack_from("=i", answer, 24 + 24)
    if status < 0:
        raise OSError(-status, os.strerror(-status))


def bmap(fd: int, block: int) -> int:
    """FIBMAP: the physical block of a logical one, 0 for a hole."""
    answer = fcntl.ioctl(fd, _FIBMAP, struct.pack("=i", block))
    return int(struct.unpack("=i", answer)[0])


def get_flags(fd: int) -> int:
    answer = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, struct.pack("=q", 0))
    return int(struct.unpack("=q", answer)[0])


def set_flags(fd: int, flags: int) -> None:
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("=q", flags))
