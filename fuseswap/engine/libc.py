"""The calls that Python's library lacks: mount(2), connect(2) with AF_UNSPEC, mlockall(2), prctl(2).

One module, through ctypes, so that the engine needs nothing besides the standard library.
"""

import ctypes
import os
import socket
import struct
from pathlib import Path
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.connect.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_libc.mlockall.argtypes = [ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_libc.malloc_trim.argtypes = [ctypes.c_size_t]

MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2
PR_SET_NAME: Final = 15
PR_SET_IO_FLUSHER: Final = 57
PR_GET_IO_FLUSHER: Final = 58

UNSPECIFIED: Final = struct.pack("<H14x", socket.AF_UNSPEC)
"""The sockaddr that dissolves a TCP connection and leaves the socket, its bound port included."""


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def mount_fuse(device: int, directory: str, source: str, read_bytes_max: int) -> None:
    """Mount the FUSE connection of the open /dev/fuse `device`; OSError as mount(2)."""
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,max_read={read_bytes_max}"
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    _check(_libc.mount(source.encode(), directory.encode(), b"fuse.fuseswap-engine", flags, options.encode()))


def socket_address(family: int, host: str, port: int) -> bytes:
    """A sockaddr_in, or a sockaddr_in6 (v4-mapped where `host` is IPv4), for `connect`."""
    if family == socket.AF_INET:
        return struct.pack("<H", family) + struct.pack(">H4s8x", port, socket.inet_pton(family, host))
    address, _, zone = host.partition("%")
    if ":" not in address:
        address = f"::ffff:{address}"
    scope = socket.if_nametoindex(zone) if zone else 0
    packed = socket.inet_pton(socket.AF_INET6, address)
    return struct.pack("<H", family) + struct.pack(">HI16s", port, 0, packed) + struct.pack("=I", scope)


def connect(descriptor: int, address: bytes) -> int:
    """connect(2): 0 or the errno (EINPROGRESS on a non-blocking socket)."""
    if _libc.connect(descriptor, address, len(address)) == 0:
        return 0
    return ctypes.get_errno()


def lock_memory(flags: int) -> None:
    """mlockall(2); OSError EPERM or ENOMEM without CAP_IPC_LOCK."""
    _check(_libc.mlockall(flags))


def set_io_flusher() -> bool:
    """PR_SET_IO_FLUSHER, read back: whether this thread allocates without I/O. Needs CAP_SYS_RESOURCE."""
    _libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    return bool(_libc.prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) == 1)


def set_title(name: str, title: str) -> None:
    """Make ps show `title` and the 15 bytes of comm `name`; the argument memory is overwritten in place."""
    text = ctypes.create_string_buffer(name.encode()[:15])
    _libc.prctl(PR_SET_NAME, ctypes.addressof(text), 0, 0, 0)
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    room = end - start
    if room < 2:
        return
    # A last byte that is not NUL tells the kernel (get_mm_proctitle) to end the title at its first NUL.
    data = title.encode()[: room - 2].ljust(room - 1, b"\0") + b"\1"
    ctypes.memmove(start, data, room)
