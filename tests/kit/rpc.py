"""ONC RPC calls by hand (RFC 5531), for what libnfs does not say: which answer a server gives to whom."""

import socket
import struct
from typing import Final

LAST_FRAGMENT: Final = 1 << 31
NFS_PROGRAM: Final = 100003
MOUNT_PROGRAM: Final = 100005

UNSTABLE: Final = 0
FILE_SYNC: Final = 2


class Rejected(Exception):
    """The server denied the call, or accepted it without success."""


def opaque(data: bytes) -> bytes:
    """Variable-length opaque data (RFC 4506 section 4.10)."""
    return struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)


def call_record(xid: int, program: int, procedure: int, arguments: bytes = b"") -> bytes:
    """A whole record: a call of version 3 as root by AUTH_SYS."""
    credential = struct.pack(">I", 0) + opaque(b"test") + struct.pack(">3I", 0, 0, 0)
    body = struct.pack(">7I", xid, 0, 2, program, 3, procedure, 1) + opaque(credential) + bytes(8) + arguments
    return struct.pack(">I", LAST_FRAGMENT | len(body)) + body


def receive_record(connection: socket.socket) -> bytes:
    """The next record without its marks. Errors: ConnectionError at the end of the stream."""
    record = b""
    while True:
        (mark,) = struct.unpack(">I", _receive(connection, 4))
        record += _receive(connection, mark & ~LAST_FRAGMENT)
        if mark & LAST_FRAGMENT:
            return record


def call(port: int, program: int, procedure: int, arguments: bytes = b"", *, source_port: int | None = None) -> bytes:
    """One call to loopback on a connection of its own; the results. Errors: Rejected, OSError."""
    source = ("", source_port) if source_port is not None else None
    with socket.create_connection(("127.0.0.1", port), timeout=5, source_address=source) as connection:
        connection.sendall(call_record(1, program, procedure, arguments))
        reply = receive_record(connection)
    xid, message, denied, _, verifier_bytes = struct.unpack_from(">5I", reply)
    if (xid, message, denied) != (1, 1, 0):
        raise Rejected(reply.hex())
    (accepted,) = struct.unpack_from(">I", reply, 20 + verifier_bytes)
    if accepted:
        raise Rejected(reply.hex())
    return reply[24 + verifier_bytes :]


def mount(port: int, path: str, *, source_port: int | None = None) -> bytes:
    """MNT (RFC 1813 section 5.2.1): the root file handle. Errors: Rejected with the status."""
    result = call(port, MOUNT_PROGRAM, 1, opaque(path.encode()), source_port=source_port)
    (status,) = struct.unpack_from(">I", result)
    if status:
        raise Rejected(f"MNT status {status}")
    (length,) = struct.unpack_from(">I", result, 4)
    return result[8 : 8 + length]


def stable_how(call: bytes) -> int:
    """Of a WRITE call (RFC 1813 section 3.3.7), behind credential, verifier, handle, offset and count."""
    at = 24
    for _ in ("credential", "verifier"):
        (length,) = struct.unpack_from(">I", call, at + 4)
        at += 8 + length
    (handle_bytes,) = struct.unpack_from(">I", call, at)
    (stable,) = struct.unpack_from(">I", call, at + 4 + handle_bytes + 12)
    return int(stable)


def _receive(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError("the peer ended the connection")
        data += part
    return bytes(data)
