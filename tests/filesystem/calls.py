"""System calls, and what tests ask of them; functions of a module, so that another user's process can make them."""

import contextlib
import ctypes
import errno
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

CLOCK_REALTIME_COARSE = 5
"""Of clock_gettime(2): what file times are taken from."""

TYPES = ("regular", "directory", "fifo", "socket", "character", "block", "symlink")


def make(path: Path, type: str, mode: int = 0o644) -> None:
    """A file of this type."""
    if type == "regular":
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, mode))
    elif type == "directory":
        path.mkdir(mode)
    elif type == "symlink":
        path.symlink_to("target")
    elif type == "socket":
        # Through a descriptor: sun_path holds 108 bytes.
        directory = os.open(path.parent, os.O_PATH)
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
    else:
        kinds = {"fifo": stat.S_IFIFO, "character": stat.S_IFCHR, "block": stat.S_IFBLK}
        os.mknod(path, kinds[type] | mode, os.makedev(1, 3))


def opens(path: Path, flags: int, mode: int = 0o666) -> None:
    """open(2) and close(2)."""
    os.close(os.open(path, flags, mode))


def writes(path: Path, content: bytes = b"x", flags: int = os.O_WRONLY) -> int:
    """Open, write, close."""
    with contextlib.closing(os.fdopen(os.open(path, flags), "wb", buffering=0)) as file:
        return file.write(content)


def ftruncates(path: Path, size: int, flags: int = os.O_RDWR) -> None:
    """Open, ftruncate(2), close."""
    fd = os.open(path, flags)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def links(path: Path, new: Path) -> None:
    """link(2) of the name itself."""
    os.link(path, new, follow_symlinks=False)


def links_symbolically(path: Path, target: bytes) -> None:
    """symlink(2)."""
    os.symlink(target, bytes(path))  # noqa: PTH211  (of bytes)


def changes_mode(path: Path, mode: int) -> None:
    """chmod(2), but not through a link, which may lead anywhere."""
    if not path.is_symlink():
        path.chmod(mode)


def looks(path: Path) -> tuple[int | str, ...]:
    """Attributes that do not depend on the file system."""
    found = path.lstat()
    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    return (oct(found.st_mode), found.st_nlink, found.st_uid, found.st_gid, size)


def lists(path: Path) -> list[str]:
    """Names, sorted."""
    return sorted(os.listdir(path))  # noqa: PTH208  (fails when it is called)


def reads(path: Path) -> bytes:
    """The contents of a regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(descriptor, 1 << 20)
    finally:
        os.close(descriptor)


def uses_without_permission(path: Path) -> bytes:
    """Make a file that nobody may open, write it, cut it, and read it."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR, 0)
    try:
        os.write(fd, b"content")
        os.fsync(fd)
        os.ftruncate(fd, 4)
        return os.pread(fd, 10, 0)
    finally:
        os.close(fd)


def touches(path: Path, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2) with seconds and nanoseconds, UTIME_NOW and UTIME_OMIT among them; no link is followed."""
    times = (ctypes.c_long * 4)(*atime, *mtime)
    if _libc.utimensat(-100, os.fsencode(path), times, 0x100) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_libc = ctypes.CDLL(None, use_errno=True)


def remove(path: Path) -> None:
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def outcome(call: Callable[..., object], *arguments: Any) -> int:
    """The errno that the call ends with; 0 if it succeeds."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno or -1
    return 0


def named(number: int) -> str:
    """To be read in a failed comparison."""
    return errno.errorcode.get(number, str(number))


def tick() -> None:
    """Until file times are later than now."""
    now = time.time_ns()
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= now:
        time.sleep(0.001)
