"""The server's side of NFSv3 READ and WRITE, written from RFC 5531, 4506 and 1813 and from nothing in fuseswap."""

import struct
from typing import Final

import attrs

READ: Final = 6
WRITE: Final = 7

OK: Final = 0
NFS3ERR_IO: Final = 5
NFS3ERR_NOSPC: Final = 28
NFS3ERR_ROFS: Final = 30
NFS3ERR_DQUOT: Final = 69
NFS3ERR_STALE: Final = 70
NFS3ERR_BADHANDLE: Final = 10001
NFS3ERR_JUKEBOX: Final = 10008

SUCCESS: Final = 0
PROG_UNAVAIL: Final = 1
GARBAGE_ARGS: Final = 4
SYSTEM_ERR: Final = 5

UNSTABLE: Final = 0
FILE_SYNC: Final = 2

ATTRIBUTES: Final = bytes(range(84))
PRE_ATTRIBUTES: Final = bytes(range(100, 124))


class Reader:
    """XDR, read strictly: nothing may be missing and nothing may be left."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def word(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def hyper(self) -> int:
        return int.from_bytes(self.take(8), "big")

    def opaque(self) -> bytes:
        length = self.word()
        data = self.take(length)
        assert self.take(-length % 4) == bytes(-length % 4)
        return data

    def take(self, count: int) -> bytes:
        data = self._data[self._at : self._at + count]
        assert len(data) == count, "the call ends early"
        self._at += count
        return data

    def end(self) -> None:
        assert self._at == len(self._data), "the call goes on behind its arguments"


@attrs.frozen
class Arguments:
    """A READ or WRITE call as a server sees it."""

    xid: int
    procedure: int
    handle: bytes
    offset: int
    count: int
    stable: int = 0
    data: bytes = b""
    uid: int = 0
    gid: int = 0
    machine: bytes = b""


def decode_call(record: bytes) -> Arguments:
    """AssertionError for what a strict server would answer with GARBAGE_ARGS or not at all."""
    reader = Reader(record)
    xid, kind, rpc_version, program, version, procedure = (reader.word() for _ in range(6))
    assert (kind, rpc_version, program, version) == (0, 2, 100003, 3)
    assert procedure in (READ, WRITE)
    assert reader.word() == 1, "AUTH_SYS"
    credential = Reader(reader.opaque())
    credential.word()
    machine = credential.opaque()
    assert len(machine) <= 255
    uid, gid, groups = credential.word(), credential.word(), credential.word()
    assert groups == 0
    credential.end()
    assert (reader.word(), reader.opaque()) == (0, b""), "AUTH_NONE verifier"
    handle = reader.opaque()
    offset, count = reader.hyper(), reader.word()
    stable, data = 0, b""
    if procedure == WRITE:
        stable, data = reader.word(), reader.opaque()
        assert count == len(data)
    reader.end()
    return Arguments(xid, procedure, handle, offset, count, stable, data, uid, gid, machine)


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def opaque(data: bytes) -> bytes:
    return words(len(data)) + data + bytes(-len(data) % 4)


def accepted(xid: int, results: bytes = b"", *, accept_stat: int = SUCCESS, verifier: bytes = b"") -> bytes:
    """A reply message; `results` follow accept_stat."""
    return words(xid, 1, 0, 0) + opaque(verifier) + words(accept_stat) + results


def auth_error(xid: int, auth_stat: int = 5) -> bytes:
    return words(xid, 1, 1, 1, auth_stat)


def rpc_mismatch(xid: int) -> bytes:
    return words(xid, 1, 1, 0, 2, 2)


def optional(data: bytes, present: bool) -> bytes:
    return words(1) + data if present else words(0)


def write_result(
    count: int,
    *,
    committed: int = FILE_SYNC,
    status: int = OK,
    before: bool = True,
    after: bool = True,
    verifier: bytes = b"verifier",
) -> bytes:
    """WRITE3res."""
    wcc = optional(PRE_ATTRIBUTES, before) + optional(ATTRIBUTES, after)
    if status:
        return words(status) + wcc
    return words(status) + wcc + words(count, committed) + verifier


def read_result(data: bytes, *, eof: bool = False, status: int = OK, attributes: bool = True) -> bytes:
    """READ3res."""
    head = words(status) + optional(ATTRIBUTES, attributes)
    if status:
        return head
    return head + words(len(data), eof) + opaque(data)


def failure(call: Arguments, status: int) -> bytes:
    """The reply with an nfsstat3."""
    results = write_result(0, status=status) if call.procedure == WRITE else read_result(b"", status=status)
    return accepted(call.xid, results)
