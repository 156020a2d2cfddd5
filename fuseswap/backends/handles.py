"""System calls that Python's os module does not have, for `local`: file handles, directories by position, and
acting as somebody else in one thread."""

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from typing import Final

from fuseswap.backends.protocol import Caller, Handle

_AT_EMPTY_PATH: Final = 0x1000
_HANDLE_BYTES_MAX: Final = 128
"""MAX_HANDLE_SZ."""

_HEAD: Final = struct.Struct("=Ii")
"""handle_bytes and handle_type of struct file_handle."""

_DIRENT: Final = struct.Struct("=QqHB")
"""struct linux_dirent64, without the name."""

_DIRECTORY_BYTES: Final = 1 << 15
_SETGROUPS: Final = {"x86_64": 116, "aarch64": 159}

_libc = ctypes.CDLL(None, use_errno=True)


def handle_of(fd: int) -> Handle:
    """name_to_handle_at(2) of an open file: type and bytes. EOPNOTSUPP where the file system has none."""
    buffer = ctypes.create_string_buffer(_HEAD.size + _HANDLE_BYTES_MAX)
    _HEAD.pack_into(buffer, 0, _HANDLE_BYTES_MAX, 0)
    mount_id = ctypes.c_int()
    _check(_libc.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount_id), _AT_EMPTY_PATH))
    length, kind = _HEAD.unpack_from(buffer)
    return struct.pack("=i", kind) + buffer.raw[_HEAD.size : _HEAD.size + length]


def open_by_handle(mount_fd: int, handle: Handle, flags: int) -> int:
    """open_by_handle_at(2). ESTALE if the file is gone, EPERM without CAP_DAC_READ_SEARCH."""
    if not 4 < len(handle) <= 4 + _HANDLE_BYTES_MAX:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    (kind,) = struct.unpack_from("=i", handle)
    buffer = ctypes.create_string_buffer(_HEAD.pack(len(handle) - 4, kind) + handle[4:])
    try:
        return _check(_libc.open_by_handle_at(mount_fd, buffer, flags))
    except OSError as error:
        if error.errno == errno.EINVAL:
            # A handle that this file system never made.
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None
        raise


def read_directory(fd: int) -> list[tuple[int, int, bytes]]:
    """getdents64(2): inode number, position behind it, and name of the next entries; empty at the end."""
    buffer = ctypes.create_string_buffer(_DIRECTORY_BYTES)
    length = _check(_libc.getdents64(fd, buffer, _DIRECTORY_BYTES))
    raw = buffer.raw[:length]
    entries = []
    start = 0
    while start < length:
        inode, position, size, _ = _DIRENT.unpack_from(raw, start)
        name = raw[start + _DIRENT.size : start + size].split(b"\0", 1)[0]
        entries.append((inode, position, name))
        start += size
    return entries


@contextlib.contextmanager
def acting_as(caller: Caller) -> Iterator[None]:
    """File system ids and groups of this thread are the caller's (setfsuid(2) drops the capabilities too)."""
    if caller.uid == 0 or os.geteuid() != 0:
        yield
        return
    before = os.getgroups()
    _set_groups(caller.groups)
    _libc.setfsgid(caller.gid)
    _libc.setfsuid(caller.uid)
    try:
        yield
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(os.getegid())
        _set_groups(tuple(before))


def _set_groups(groups: tuple[int, ...]) -> None:
    # The C library's setgroups() is for all threads; the system call is for one.
    array = (ctypes.c_uint32 * len(groups))(*groups)
    _check(_libc.syscall(_SETGROUPS[platform.machine()], len(groups), array))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
