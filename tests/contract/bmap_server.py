"""A file system of files without data: a header page, a size, and the answers to bmap.

FUSE on a block device answers bmap (FUSE_BMAP), and such files have no swap_activate: swapon takes
generic_swapfile_activate's walk over any layout that a test can think of.
"""

import ctypes
import errno
import os
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import define, frozen

from fuseswap.engine import fuse_wire as wire
from fuseswap.engine.fuse_wire import FuseRequest, InitFlag, Opcode, OpenFlag
from fuseswap.swap.units import PAGE_SIZE

_LIBC = ctypes.CDLL(None, use_errno=True)
_BMAP = 37
_BMAP_IN = struct.Struct("<QI4x")
_BMAP_OUT = struct.Struct("<Q")
_READ_IN = struct.Struct("<QQI")
_MNT_DETACH = 2
_TRANSFER_BYTES_MAX = 1 << 17
_FIRST_NODE = 2


@frozen
class MappedFile:
    """What the server knows of a file: block n lies at blocks[n], 0 is nowhere."""

    size_bytes: int
    header_page: bytes
    blocks: Sequence[int]


@define
class BmapServer:
    """Files are named by their number, and stay. Mutable: `add` adds."""

    point: Path
    descriptor: int
    files: list[MappedFile]
    probes: list[int]
    """The blocks that the kernel has asked for."""

    def add(self, file: MappedFile) -> Path:
        self.files.append(file)
        self.probes.clear()
        return self.point / str(len(self.files) - 1)

    def serve(self) -> None:
        """Answer until the mount is gone."""
        while True:
            try:
                data = os.read(self.descriptor, _TRANSFER_BYTES_MAX + PAGE_SIZE)
            except OSError:
                return
            request = wire.parse_request(data)
            if request.opcode in wire.UNANSWERED:
                continue
            body = self._body(request)
            if isinstance(body, int):
                os.write(self.descriptor, wire.error_answer(request.unique, body))
            else:
                os.write(self.descriptor, wire.body_answer(request.unique, body))

    def _body(self, request: FuseRequest) -> bytes | int:
        match request.opcode:
            case Opcode.INIT:
                return wire.init_body(
                    wire.parse_init(request).minor,
                    InitFlag.BIG_WRITES,
                    readahead_bytes_max=0,
                    background_max=12,
                    transfer_bytes_max=_TRANSFER_BYTES_MAX,
                )
            case Opcode.LOOKUP:
                node = int(wire.parse_name(request)) + _FIRST_NODE
                return wire.entry_body(node, self._attributes(node))
            case Opcode.GETATTR:
                return wire.attr_body(self._attributes(request.node))
            case Opcode.OPEN:
                return wire.open_body(1, OpenFlag(0))
            case Opcode.READ:
                _, offset, length = _READ_IN.unpack_from(request.body)
                return self._file(request).header_page[offset : offset + length]
            case _ if request.opcode == _BMAP:
                block, block_bytes = _BMAP_IN.unpack_from(request.body)
                assert block_bytes == PAGE_SIZE
                self.probes.append(block)
                return _BMAP_OUT.pack(self._file(request).blocks[block])
            case Opcode.FLUSH | Opcode.RELEASE | Opcode.FSYNC | Opcode.DESTROY:
                return 0
            case _:
                return errno.ENOSYS

    def _file(self, request: FuseRequest) -> MappedFile:
        return self.files[request.node - _FIRST_NODE]

    def _attributes(self, node: int) -> bytes:
        if node == wire.ROOT_NODE:
            return wire.attributes(node, stat.S_IFDIR | 0o755, 0, 2)
        return wire.attributes(node, stat.S_IFREG | 0o600, self.files[node - _FIRST_NODE].size_bytes, 1)


@contextmanager
def bmap_server(directory: Path) -> Iterator[BmapServer]:
    """Mount on `directory`/bmap; at the end the connection is aborted and nothing remains."""
    image, point = directory / "bmap.img", directory / "bmap"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    point.mkdir()
    loop = _output("losetup", "--find", "--show", "--sector-size", str(PAGE_SIZE), str(image))
    descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,blksize={PAGE_SIZE}".encode()
        if _LIBC.mount(loop.encode(), bytes(point), b"fuseblk", 0, options):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(point))
        server = BmapServer(point, descriptor, [], [])
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            _LIBC.umount2(bytes(point), _MNT_DETACH)
            thread.join(10)
            assert not thread.is_alive()
    finally:
        os.close(descriptor)
        _output("losetup", "--detach", loop)


def _output(*command: str) -> str:
    done = subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.stdout.strip()
