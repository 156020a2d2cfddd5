#!/usr/bin/env python3
"""A stable write against an unstable one, when the server is killed.

Shows: an NFS server that answers two WRITEs, one FILE_SYNC and one UNSTABLE, and is killed (SIGKILL) and started
again. What it had answered as FILE_SYNC is there; the other is gone, though its answer was a success. An ordinary
client knows: it keeps its copy until COMMIT, sees that the write verifier has changed, and writes again. Swap
cannot: it sends no COMMIT, and when its WRITE is answered the page in memory becomes somebody else's. So fuseswap
asks for FILE_SYNC, and takes no less for an answer (patch 22 of the 2022 series; RFC 1813 sections 3.3.7, 3.3.21).

Leaves out: most of NFS. The server is the few lines of `serve`: it keeps UNSTABLE data in its own memory, as a server's
kernel keeps them in its page cache. That is why no real nfs-ganesha is killed here: its UNSTABLE data survive the
end of its process, in the page cache of its machine; a power failure takes them all the same.

Needs neither root nor a server: examples/stable.py
"""

import multiprocessing
import os
import socket
import struct
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

from fuseswap.engine.rpc_wire import CallTemplates, Stable, parse_read_result, parse_reply, parse_write_result
from fuseswap.swap.target import NfsTarget
from fuseswap.swap.units import PAGE_SIZE

READ, WRITE = 6, 7
HANDLE = b"swapfile"
NO_ATTRIBUTES = bytes(4)


# --- the server ---


def serve(disk: Path, listener: socket.socket, ready: Connection) -> None:
    """Answer READ and WRITE of one file until killed. The disk is a file; all else is this process's memory."""
    verifier = os.urandom(8)  # a new one for each life (RFC 1813 3.3.7, writeverf3)
    cache: dict[int, bytes] = {}
    ready.send("ready")
    connection, _ = listener.accept()
    with disk.open("r+b", buffering=0) as file:
        while (head := connection.recv(4, socket.MSG_WAITALL)) != b"":
            call = connection.recv(struct.unpack(">I", head)[0] & 0x7FFFFFFF, socket.MSG_WAITALL)
            xid, procedure, arguments = take_call(call)
            if procedure == WRITE:
                offset, count, stable = struct.unpack_from(">QII", arguments)
                data = arguments[20 : 20 + count]
                if stable == Stable.FILE_SYNC:
                    os.pwrite(file.fileno(), data, offset)
                    os.fsync(file.fileno())
                else:
                    cache[offset] = data
                result = struct.pack(">I", 0) + 2 * NO_ATTRIBUTES + struct.pack(">II", count, stable) + verifier
            else:
                offset, count = struct.unpack_from(">QI", arguments)
                data = cache.get(offset, os.pread(file.fileno(), count, offset))
                result = struct.pack(">I", 0) + NO_ATTRIBUTES + struct.pack(">III", len(data), 0, len(data)) + data
            reply = struct.pack(">IIIIII", xid, 1, 0, 0, 0, 0) + result
            connection.sendall(struct.pack(">I", 1 << 31 | len(reply)) + reply)


def take_call(call: bytes) -> tuple[int, int, bytes]:
    """Of an RPC call (RFC 5531): xid, procedure, and the arguments behind the file handle."""
    xid, procedure = struct.unpack_from(">I16xI", call)
    position = 24
    for _ in ("credential", "verifier"):
        (length,) = struct.unpack_from(">4xI", call, position)
        position += 8 + (length + 3 & ~3)
    (length,) = struct.unpack_from(">I", call, position)
    return xid, procedure, call[position + 4 + (length + 3 & ~3) :]


# --- the client: the engine's own call templates and parsers ---


class Client:
    """One page at a time."""

    def __init__(self, port: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.templates = CallTemplates(NfsTarget((), HANDLE, 0, 0, "client", PAGE_SIZE, PAGE_SIZE))
        self.read_header, self.write_header = self.templates.buffers()
        self.xid = 0

    def write(self, page: int, data: bytes, stable: Stable) -> Stable:
        """WRITE; how the server says it has stored it."""
        self.xid += 1
        self.templates.fill_write(self.write_header, self.xid, page * PAGE_SIZE, len(data))
        struct.pack_into(">I", self.write_header, len(self.write_header) - 8, stable)
        _, _, committed = parse_write_result(*self.call(self.write_header + data))
        return Stable(committed)

    def read(self, page: int) -> bytes:
        """READ of a page."""
        self.xid += 1
        self.templates.fill_read(self.read_header, self.xid, page * PAGE_SIZE, PAGE_SIZE)
        results = self.call(self.read_header)
        _, position, length, _ = parse_read_result(*results)
        return bytes(results[0][position : position + length])

    def call(self, message: bytes | bytearray) -> tuple[memoryview, int, int]:
        """Send a call; its reply, and where the results lie in it."""
        self.connection.sendall(message)
        (mark,) = struct.unpack(">I", self.connection.recv(4, socket.MSG_WAITALL))
        length = mark & 0x7FFFFFFF
        reply = memoryview(self.connection.recv(length, socket.MSG_WAITALL))
        _, _, position = parse_reply(reply, 0, length)
        return reply, position, length


def start_server(disk: Path, listener: socket.socket) -> multiprocessing.Process:
    """A server that is ready."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(disk, listener, theirs), daemon=True)
    server.start()
    ours.recv()
    return server


def main() -> None:
    """Write twice, kill, look."""
    pages = {Stable.FILE_SYNC: os.urandom(PAGE_SIZE), Stable.UNSTABLE: os.urandom(PAGE_SIZE)}
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as listener:
        disk = Path(directory, "disk")
        disk.write_bytes(bytes(2 * PAGE_SIZE))
        server = start_server(disk, listener)
        client = Client(listener.getsockname()[1])
        for page, (stable, data) in enumerate(pages.items()):
            committed = client.write(page, data, stable)
            same = client.read(page) == data
            print(f"page {page}: WRITE {stable.name:9} answered, committed {committed.name:9} read back: ", end="")
            print("the same" if same else "DIFFERENT")
        server.kill()
        server.join()
        client.connection.close()
        print("the server is killed, and started again")
        server = start_server(disk, listener)
        client = Client(listener.getsockname()[1])
        for page, (stable, data) in enumerate(pages.items()):
            same = client.read(page) == data
            print(f"page {page}: written {stable.name:9} read back: {'the same' if same else 'LOST'}")
        client.connection.close()
        server.kill()
        server.join()


if __name__ == "__main__":
    main()
