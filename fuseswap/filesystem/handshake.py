"""FUSE_INIT, with what pyfuse3 does not let a file system ask for.

libfuse answers FUSE_INIT by itself, and pyfuse3 hands on three of its flags. So for this one message libfuse gets
a socket in the place of /dev/fuse, and what it answers goes to the kernel amended. Layouts are those of
linux/fuse.h: fuse_init_in behind a fuse_in_header, fuse_init_out behind a fuse_out_header.
"""

import os
import socket
import struct
from pathlib import Path
from typing import Final

import pyfuse3
import trio

_DEVICE: Final = "/dev/fuse"
_MESSAGE_BYTES: Final = 1 << 16
"""The kernel wants room for 8 KiB at least (FUSE_MIN_READ_BUFFER)."""

_OFFERED_FLAGS: Final = struct.Struct("=I"), 40 + 12
_ANSWER_FLAGS: Final = struct.Struct("=IHH"), 16 + 12
"""flags, max_background and congestion_threshold."""

_AUTO_INVAL_DATA: Final = 1 << 12
"""See pages.py. Left out, a file's pages still go when its size is not what the kernel believes."""

_PARALLEL_DIROPS: Final = 1 << 18
"""Lookups and listings of one directory need not wait for each other."""

_HANDLE_KILLPRIV_V2: Final = 1 << 28
"""Who writes takes set-user-ID away, here or on the server. Without it the kernel asks for the extended attribute
security.capability before each write(2), which doubles the requests of whoever writes."""

_BACKGROUND_MAX: Final = 64
"""Read-ahead of all files together; 12 by default, which is three readers."""


async def negotiate(*, auto_invalidation: bool) -> None:
    """Between pyfuse3.init and the pyfuse3.main that serves. OSError if the mount is gone already.

    With `auto_invalidation` the kernel drops the pages of a file whose modification time has changed.
    """
    descriptor = _descriptor()
    device = os.dup(descriptor)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        try:
            offer = os.read(device, _MESSAGE_BYTES)
            os.dup2(theirs.fileno(), descriptor, inheritable=False)
            answer = await _answer(ours, offer)
            os.dup2(device, descriptor, inheritable=False)
            os.write(device, amended(answer, offer, auto_invalidation=auto_invalidation))
        finally:
            os.close(device)


def amended(answer: bytes, offer: bytes, *, auto_invalidation: bool) -> bytes:
    """The answer to `offer` with our wishes in it, as far as the kernel offers them."""
    layout, offset = _OFFERED_FLAGS
    (offered,) = layout.unpack_from(offer, offset)
    layout, offset = _ANSWER_FLAGS
    if len(answer) < offset + layout.size:
        return answer  # a bare error
    flags, _, _ = layout.unpack_from(answer, offset)
    flags |= offered & (_PARALLEL_DIROPS | _HANDLE_KILLPRIV_V2)
    if not auto_invalidation:
        flags &= ~_AUTO_INVAL_DATA
    result = bytearray(answer)
    layout.pack_into(result, offset, flags, _BACKGROUND_MAX, _BACKGROUND_MAX * 3 // 4)
    return bytes(result)


async def _answer(ours: socket.socket, offer: bytes) -> bytes:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        ours.send(offer)
        await trio.lowlevel.wait_readable(ours)
        answer = ours.recv(_MESSAGE_BYTES)
        nursery.cancel_scope.cancel()
    return answer


def _descriptor() -> int:
    """libfuse's; this process has one mount."""
    (found,) = (int(link.name) for link in Path("/proc/self/fd").iterdir() if _target(link) == _DEVICE)
    return found


def _target(link: Path) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115
    except OSError:
        return ""  # the descriptor of the listing itself
