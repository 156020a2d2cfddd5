"""The one-file mount that only the loop device sees: every message but READ and WRITE, answered from memory.

Pure. Nothing here can wait or fail for want of memory or of a server, so no metadata operation can ever
stand between the kernel and its swap. At most one handle may write at a time, the loop device's own;
every other open for writing is refused.
"""

import errno
import os
import stat
from typing import Final

from fuseswap.engine import fuse_wire as wire
from fuseswap.engine.fuse_wire import FuseRequest, InitFlag, Opcode, OpenFlag
from fuseswap.swap.units import PAGE_SIZE

REQUIRED_FLAGS: Final = InitFlag.ASYNC_DIO | InitFlag.MAX_PAGES | InitFlag.BIG_WRITES
WANTED_FLAGS: Final = REQUIRED_FLAGS | InitFlag.ASYNC_READ | InitFlag.ATOMIC_O_TRUNC | InitFlag.ABORT_ERROR

BACKGROUND_MAX: Final = 256
"""Asynchronous requests that the kernel may have under way: twice the loop device's nr_requests of 128."""

_CHANGES: Final = frozenset(
    {
        Opcode.SYMLINK,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.LINK,
        Opcode.CREATE,
        Opcode.RENAME2,
    }
)

_OPEN_FLAGS: Final = OpenFlag.DIRECT_IO | OpenFlag.PARALLEL_DIRECT_WRITES | OpenFlag.NOFLUSH


class UnsupportedKernel(Exception):
    """This kernel's FUSE cannot carry swap safely."""


class PrivateFile:
    """The directory and its file `name` of `size_bytes`; requests are at most `transfer_bytes_max` long."""

    def __init__(self, name: bytes, size_bytes: int, transfer_bytes_max: int) -> None:
        self._name = name
        self._size_bytes = size_bytes
        self._transfer_bytes_max = transfer_bytes_max
        self._next_handle = 1
        self._handles: set[int] = set()
        self.write_handle = 0
        """The handle that swap I/O must carry; 0 while none is granted."""

    def is_open(self, handle: int) -> bool:
        """Whether `handle` came from an OPEN that has not been released."""
        return handle in self._handles

    def answer(self, request: FuseRequest) -> bytes | None:
        """The answer to `request`, None where the kernel expects none.

        MalformedRequest if its body is too short; UnsupportedKernel from INIT, where the kernel lacks what
        keeps swap safe: without FUSE_ASYNC_DIO a short write would be reported as whole (lo_rw_aio_complete).
        """
        if request.opcode in wire.UNANSWERED:
            return None
        body = self._body(request)
        if isinstance(body, int):
            return wire.error_answer(request.unique, body)
        return wire.body_answer(request.unique, body)

    def _body(self, request: FuseRequest) -> bytes | int:
        match request.opcode:
            case Opcode.INIT:
                return self._init(request)
            case Opcode.LOOKUP:
                if request.node != wire.ROOT_NODE or wire.parse_name(request) != self._name:
                    return errno.ENOENT
                return wire.entry_body(wire.FILE_NODE, self._attributes(wire.FILE_NODE))
            case Opcode.GETATTR:
                if request.node not in (wire.ROOT_NODE, wire.FILE_NODE):
                    return errno.ENOENT
                return wire.attr_body(self._attributes(request.node))
            case Opcode.OPEN:
                return self._open(request)
            case Opcode.RELEASE:
                self._release(wire.parse_handle(request))
                return 0
            case Opcode.OPENDIR:
                return wire.open_body(0, OpenFlag(0))
            case Opcode.READDIR:
                return self._readdir(request)
            case Opcode.STATFS:
                return wire.statfs_body(self._size_bytes // PAGE_SIZE)
            case Opcode.FSYNC | Opcode.FLUSH | Opcode.RELEASEDIR | Opcode.DESTROY:
                # Nothing to flush: each answered WRITE already lies on stable storage.
                return 0
            case Opcode.FALLOCATE:
                # A discard of the loop device arrives like this, whoever asked for it.
                return errno.EOPNOTSUPP
            case Opcode.SETATTR:
                return errno.ETXTBSY if wire.parse_setattr_size(request) else errno.EPERM
            case opcode if opcode in _CHANGES:
                return errno.EPERM
            case _:
                # The kernel remembers ENOSYS and asks no more.
                return errno.ENOSYS

    def _init(self, request: FuseRequest) -> bytes:
        offer = wire.parse_init(request)
        if offer.major != wire.PROTOCOL_MAJOR or offer.minor < wire.PROTOCOL_MINOR_MIN:
            wanted = f"{wire.PROTOCOL_MAJOR}.{wire.PROTOCOL_MINOR_MIN}"
            raise UnsupportedKernel(f"this kernel's FUSE is {offer.major}.{offer.minor}; {wanted} is needed")
        missing = REQUIRED_FLAGS & ~InitFlag(offer.flags & REQUIRED_FLAGS)
        if missing:
            raise UnsupportedKernel(f"this kernel's FUSE lacks {missing!r}, without which writes may be lost")
        return wire.init_body(
            offer.minor,
            WANTED_FLAGS & InitFlag(offer.flags & WANTED_FLAGS),
            readahead_bytes_max=0,
            background_max=BACKGROUND_MAX,
            transfer_bytes_max=self._transfer_bytes_max,
        )

    def _attributes(self, node: int) -> bytes:
        if node == wire.ROOT_NODE:
            return wire.attributes(node, stat.S_IFDIR | 0o700, 0, 2)
        return wire.attributes(node, stat.S_IFREG | 0o600, self._size_bytes, 1)

    def _open(self, request: FuseRequest) -> bytes | int:
        flags = wire.parse_open_flags(request)
        if request.node == wire.ROOT_NODE:
            return errno.EISDIR
        if request.node != wire.FILE_NODE:
            return errno.ENOENT
        if flags & os.O_TRUNC:
            return errno.ETXTBSY
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if writes and self.write_handle:
            return errno.ETXTBSY
        if writes and not flags & os.O_DIRECT:
            return errno.EINVAL
        handle = self._next_handle
        self._next_handle += 1
        self._handles.add(handle)
        if writes:
            self.write_handle = handle
        return wire.open_body(handle, _OPEN_FLAGS)

    def _release(self, handle: int) -> None:
        self._handles.discard(handle)
        if handle == self.write_handle:
            self.write_handle = 0

    def _readdir(self, request: FuseRequest) -> bytes:
        offset, size = wire.parse_readdir(request)
        entry = wire.dirent(wire.FILE_NODE, self._name, stat.S_IFREG, 1)
        return entry if offset == 0 and len(entry) <= size else b""
