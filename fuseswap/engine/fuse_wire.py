"""The FUSE kernel protocol (include/uapi/linux/fuse.h, 7.31 and later), as far as a one-file mount needs it.

Pure: bytes in, values out. Whatever bytes `parse_request` is given, it returns a `FuseRequest` or raises
`MalformedRequest`, which says whether the kernel can be answered.

All integers are in the machine's byte order; only little-endian machines are served.
"""

import struct
from enum import IntEnum, IntFlag
from typing import Final

from attrs import frozen

IN_HEADER: Final = struct.Struct("<IIQQIIIHH")
"""fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
OUT_HEADER: Final = struct.Struct("<IiQ")
"""fuse_out_header: len, error (negative errno), unique."""
TRANSFER_IN: Final = struct.Struct("<IIQQ16xQQII16x")
"""fuse_in_header and fuse_read_in or fuse_write_in: len, opcode, unique, nodeid, fh, offset, size, flags."""
WRITE_ANSWER: Final = struct.Struct("<IiQII")
"""fuse_out_header and fuse_write_out: len, error, unique, size, padding."""

_INIT_IN: Final = struct.Struct("<IIII")
_INIT_OUT: Final = struct.Struct("<IIIIHHIIHHIIH22x")
_ATTR: Final = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY_OUT: Final = struct.Struct("<QQQQII")
_ATTR_OUT: Final = struct.Struct("<QII")
_OPEN_IN: Final = struct.Struct("<II")
_OPEN_OUT: Final = struct.Struct("<QIi")
_FH: Final = struct.Struct("<Q")
_DIRENT: Final = struct.Struct("<QQII")
_SETATTR_IN: Final = struct.Struct("<I84x")
_READDIR_IN: Final = struct.Struct("<QQI")
_STATFS_OUT: Final = struct.Struct("<QQQQQIIII24x")

ROOT_NODE: Final = 1
FILE_NODE: Final = 2
FILE_VALID_SECONDS: Final = 3600
PROTOCOL_MAJOR: Final = 7
PROTOCOL_MINOR_MIN: Final = 31
PROTOCOL_MINOR: Final = 45
NAME_BYTES_MAX: Final = 255
_FATTR_SIZE: Final = 1 << 3


class Opcode(IntEnum):
    """enum fuse_opcode: those that a one-file mount knows."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    RENAME2 = 45


UNANSWERED: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})
"""Messages to which the kernel expects no answer."""


class InitFlag(IntFlag):
    """FUSE_INIT flags that decide how swap I/O travels."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    ASYNC_DIO = 1 << 15
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22


class OpenFlag(IntFlag):
    """FOPEN_* flags of an OPEN answer."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NOFLUSH = 1 << 5
    PARALLEL_DIRECT_WRITES = 1 << 6


class MalformedRequest(ValueError):
    """Bytes that are no FUSE request; `unique` is 0 if not even an answer is possible."""

    def __init__(self, text: str, unique: int = 0) -> None:
        super().__init__(text)
        self.unique = unique


@frozen
class FuseRequest:
    """A parsed message that is neither READ nor WRITE; `body` is what follows the header."""

    opcode: int
    unique: int
    node: int
    body: bytes


@frozen
class InitRequest:
    """FUSE_INIT: what the kernel offers."""

    major: int
    minor: int
    readahead_bytes_max: int
    flags: int


def parse_request(data: bytes | bytearray | memoryview) -> FuseRequest:
    """The message in `data`, which must be exactly one read of /dev/fuse."""
    data = bytes(data)
    if len(data) < IN_HEADER.size:
        raise MalformedRequest(f"a message of {len(data)} bytes has no header")
    length, opcode, unique, node, _uid, _gid, _pid, _ext, _padding = IN_HEADER.unpack_from(data)
    if length != len(data):
        raise MalformedRequest(f"a message of {len(data)} bytes says that it has {length}", unique)
    return FuseRequest(opcode, unique, node, data[IN_HEADER.size :])


def _unpack(layout: struct.Struct, request: FuseRequest) -> tuple[int, ...]:
    if len(request.body) < layout.size:
        raise MalformedRequest(f"opcode {request.opcode} with {len(request.body)} bytes", request.unique)
    return layout.unpack_from(request.body)


def parse_init(request: FuseRequest) -> InitRequest:
    """fuse_init_in."""
    return InitRequest(*_unpack(_INIT_IN, request))


def parse_name(request: FuseRequest) -> bytes:
    """The NUL-terminated name of a LOOKUP."""
    name, terminator, _rest = request.body.partition(b"\0")
    if not terminator or not name:
        raise MalformedRequest("a name without end", request.unique)
    return name


def parse_open_flags(request: FuseRequest) -> int:
    """The open(2) flags of fuse_open_in."""
    return _unpack(_OPEN_IN, request)[0]


def parse_setattr_size(request: FuseRequest) -> bool:
    """Whether a SETATTR is a truncate (FATTR_SIZE in fuse_setattr_in.valid)."""
    return bool(_unpack(_SETATTR_IN, request)[0] & _FATTR_SIZE)


def parse_handle(request: FuseRequest) -> int:
    """The fh that begins fuse_release_in, fuse_flush_in and fuse_fsync_in."""
    return _unpack(_FH, request)[0]


def parse_readdir(request: FuseRequest) -> tuple[int, int]:
    """offset and size of a READDIR."""
    _fh, offset, size = _unpack(_READDIR_IN, request)
    return offset, size


def error_answer(unique: int, errno: int) -> bytes:
    """An answer without a body: errno, or 0 for success."""
    return OUT_HEADER.pack(OUT_HEADER.size, -errno, unique)


def body_answer(unique: int, body: bytes) -> bytes:
    """A successful answer with a body."""
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def init_body(
    minor: int, flags: InitFlag, *, readahead_bytes_max: int, background_max: int, transfer_bytes_max: int
) -> bytes:
    """fuse_init_out (64 bytes); `transfer_bytes_max` becomes max_write and, in pages, max_pages."""
    return _INIT_OUT.pack(
        PROTOCOL_MAJOR,
        min(minor, PROTOCOL_MINOR),
        readahead_bytes_max,
        flags,
        background_max,
        background_max * 3 // 4,
        transfer_bytes_max,
        1,
        transfer_bytes_max // 4096,
        0,
        0,
        0,
        0,
    )


def attributes(node: int, mode: int, size_bytes: int, nlink: int) -> bytes:
    """fuse_attr (88 bytes), owned by root, without times."""
    return _ATTR.pack(node, size_bytes, size_bytes // 512, 0, 0, 0, 0, 0, 0, mode, nlink, 0, 0, 0, 4096, 0)


def entry_body(node: int, attribute_bytes: bytes) -> bytes:
    """fuse_entry_out."""
    return _ENTRY_OUT.pack(node, 0, FILE_VALID_SECONDS, FILE_VALID_SECONDS, 0, 0) + attribute_bytes


def attr_body(attribute_bytes: bytes) -> bytes:
    """fuse_attr_out."""
    return _ATTR_OUT.pack(FILE_VALID_SECONDS, 0, 0) + attribute_bytes


def open_body(handle: int, flags: OpenFlag) -> bytes:
    """fuse_open_out."""
    return _OPEN_OUT.pack(handle, flags, 0)


def dirent(node: int, name: bytes, type_mode: int, next_offset: int) -> bytes:
    """fuse_dirent, padded to 8 bytes."""
    data = _DIRENT.pack(node, next_offset, len(name), type_mode >> 12) + name
    return data + bytes(-len(data) % 8)


def statfs_body(pages: int) -> bytes:
    """fuse_statfs_out of a file system that holds one file of `pages` pages and nothing else."""
    return _STATFS_OUT.pack(pages, 0, 0, 2, 0, 4096, NAME_BYTES_MAX, 4096, 0)
