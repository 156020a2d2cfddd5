"""The FUSE structs against declarations of their own, from include/uapi/linux/fuse.h 7.45."""

import ctypes
import stat
from ctypes import c_int32, c_uint16, c_uint32, c_uint64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseswap.engine import fuse_wire as wire
from fuseswap.engine.fuse_wire import FuseRequest, InitFlag, MalformedRequest, OpenFlag

WORD64 = st.integers(min_value=0, max_value=2**64 - 1)
WORD32 = st.integers(min_value=0, max_value=2**32 - 1)


class InHeader(ctypes.LittleEndianStructure):
    _fields_ = (
        ("len", c_uint32),
        ("opcode", c_uint32),
        ("unique", c_uint64),
        ("nodeid", c_uint64),
        ("uid", c_uint32),
        ("gid", c_uint32),
        ("pid", c_uint32),
        ("total_extlen", c_uint16),
        ("padding", c_uint16),
    )


class WriteIn(ctypes.LittleEndianStructure):
    _fields_ = (
        ("header", InHeader),
        ("fh", c_uint64),
        ("offset", c_uint64),
        ("size", c_uint32),
        ("write_flags", c_uint32),
        ("lock_owner", c_uint64),
        ("flags", c_uint32),
        ("padding", c_uint32),
    )


class OutHeader(ctypes.LittleEndianStructure):
    _fields_ = (("len", c_uint32), ("error", c_int32), ("unique", c_uint64))


class InitIn(ctypes.LittleEndianStructure):
    _fields_ = (
        ("major", c_uint32),
        ("minor", c_uint32),
        ("max_readahead", c_uint32),
        ("flags", c_uint32),
        ("flags2", c_uint32),
        ("unused", c_uint32 * 11),
    )


class InitOut(ctypes.LittleEndianStructure):
    _fields_ = (
        ("major", c_uint32),
        ("minor", c_uint32),
        ("max_readahead", c_uint32),
        ("flags", c_uint32),
        ("max_background", c_uint16),
        ("congestion_threshold", c_uint16),
        ("max_write", c_uint32),
        ("time_gran", c_uint32),
        ("max_pages", c_uint16),
        ("map_alignment", c_uint16),
        ("flags2", c_uint32),
        ("max_stack_depth", c_uint32),
        ("request_timeout", c_uint16),
        ("unused", c_uint16 * 11),
    )


class Attr(ctypes.LittleEndianStructure):
    _fields_ = (
        ("ino", c_uint64),
        ("size", c_uint64),
        ("blocks", c_uint64),
        ("atime", c_uint64),
        ("mtime", c_uint64),
        ("ctime", c_uint64),
        ("atimensec", c_uint32),
        ("mtimensec", c_uint32),
        ("ctimensec", c_uint32),
        ("mode", c_uint32),
        ("nlink", c_uint32),
        ("uid", c_uint32),
        ("gid", c_uint32),
        ("rdev", c_uint32),
        ("blksize", c_uint32),
        ("flags", c_uint32),
    )


class EntryOut(ctypes.LittleEndianStructure):
    _fields_ = (
        ("nodeid", c_uint64),
        ("generation", c_uint64),
        ("entry_valid", c_uint64),
        ("attr_valid", c_uint64),
        ("entry_valid_nsec", c_uint32),
        ("attr_valid_nsec", c_uint32),
        ("attr", Attr),
    )


class AttrOut(ctypes.LittleEndianStructure):
    _fields_ = (
        ("attr_valid", c_uint64),
        ("attr_valid_nsec", c_uint32),
        ("dummy", c_uint32),
        ("attr", Attr),
    )


class OpenOut(ctypes.LittleEndianStructure):
    _fields_ = (("fh", c_uint64), ("open_flags", c_uint32), ("backing_id", c_int32))


class Statfs(ctypes.LittleEndianStructure):
    _fields_ = (
        ("blocks", c_uint64),
        ("bfree", c_uint64),
        ("bavail", c_uint64),
        ("files", c_uint64),
        ("ffree", c_uint64),
        ("bsize", c_uint32),
        ("namelen", c_uint32),
        ("frsize", c_uint32),
        ("padding", c_uint32),
        ("spare", c_uint32 * 6),
    )


class Dirent(ctypes.LittleEndianStructure):
    _fields_ = (("ino", c_uint64), ("off", c_uint64), ("namelen", c_uint32), ("type", c_uint32))


def message(opcode: int, body: bytes, *, unique: int = 7, node: int = 2) -> bytes:
    header = InHeader(len=40 + len(body), opcode=opcode, unique=unique, nodeid=node)
    return bytes(header) + body


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_request_or_malformed(data: bytes) -> None:
    try:
        request = wire.parse_request(data)
    except MalformedRequest as error:
        assert error.unique == (InHeader.from_buffer_copy(data).unique if len(data) >= 40 else 0)
    else:
        assert len(data) == InHeader.from_buffer_copy(data).len
        assert request.body == data[40:]


@given(
    opcode=WORD32,
    unique=WORD64,
    node=WORD64,
    body=st.binary(max_size=100),
    as_type=st.sampled_from([bytes, bytearray, memoryview]),
)
def test_a_message_of_its_length_is_taken_apart(
    opcode: int, unique: int, node: int, body: bytes, as_type: type[bytes]
) -> None:
    data = as_type(message(opcode, body, unique=unique, node=node))

    assert wire.parse_request(data) == FuseRequest(opcode, unique, node, body)


@given(cut=st.integers(min_value=-40, max_value=40).filter(bool))
def test_a_length_that_is_not_the_message_s_is_malformed(cut: int) -> None:
    whole = message(14, bytes(40))
    data = whole[:cut] if cut < 0 else whole + bytes(cut)

    with pytest.raises(MalformedRequest):
        wire.parse_request(data)


@given(unique=WORD64, handle=WORD64, offset=WORD64, size=WORD32, opcode=WORD32, node=WORD64)
def test_transfers_lie_where_the_kernel_puts_them(
    unique: int, handle: int, offset: int, size: int, opcode: int, node: int
) -> None:
    header = InHeader(len=80, opcode=opcode, unique=unique, nodeid=node)
    data = bytes(WriteIn(header=header, fh=handle, offset=offset, size=size, write_flags=9))

    assert wire.TRANSFER_IN.size == len(data) == 80
    assert wire.TRANSFER_IN.unpack(data) == (80, opcode, unique, node, handle, offset, size, 9)


@given(body=st.binary(max_size=80))
def test_bodies_too_short_are_malformed_and_answerable(body: bytes) -> None:
    request = FuseRequest(0, 7, 2, body)
    for parse, size in (
        (wire.parse_init, 16),
        (wire.parse_open_flags, 8),
        (wire.parse_handle, 8),
        (wire.parse_readdir, 20),
    ):
        if len(body) < size:
            with pytest.raises(MalformedRequest) as error:
                parse(request)
            assert error.value.unique == 7
        else:
            parse(request)


@given(body=st.binary(max_size=300))
def test_a_name_ends_with_nul(body: bytes) -> None:
    request = FuseRequest(1, 7, 1, body)
    if b"\0" not in body or body.startswith(b"\0"):
        with pytest.raises(MalformedRequest):
            wire.parse_name(request)
    else:
        assert wire.parse_name(request) == body.split(b"\0")[0]


@given(major=WORD32, minor=WORD32, readahead=WORD32, flags=WORD32)
def test_the_kernel_s_offer(major: int, minor: int, readahead: int, flags: int) -> None:
    body = bytes(InitIn(major=major, minor=minor, max_readahead=readahead, flags=flags))

    assert wire.parse_init(FuseRequest(26, 1, 0, body)) == wire.InitRequest(major, minor, readahead, flags)


@given(
    minor=st.integers(min_value=31, max_value=200),
    pages=st.integers(min_value=1, max_value=256),
    background=st.integers(min_value=1, max_value=2**16 - 1),
)
def test_the_answer_to_init(minor: int, pages: int, background: int) -> None:
    body = wire.init_body(
        minor, InitFlag.ASYNC_DIO, readahead_bytes_max=3, background_max=background, transfer_bytes_max=pages * 4096
    )
    out = InitOut.from_buffer_copy(body)

    assert len(body) == ctypes.sizeof(InitOut) == 64
    assert (out.major, out.minor, out.max_readahead) == (7, min(minor, 45), 3)
    assert (out.flags, out.flags2, out.time_gran) == (InitFlag.ASYNC_DIO, 0, 1)
    assert (out.max_write, out.max_pages) == (pages * 4096, pages)
    assert out.max_background == background
    assert out.congestion_threshold <= background


@given(size_bytes=st.integers(min_value=0, max_value=2**50).map(lambda pages: pages & -4096))
def test_attributes(size_bytes: int) -> None:
    data = wire.attributes(2, stat.S_IFREG | 0o600, size_bytes, 1)
    attr = Attr.from_buffer_copy(data)

    assert len(data) == ctypes.sizeof(Attr) == 88
    assert (attr.ino, attr.size, attr.blocks) == (2, size_bytes, size_bytes // 512)
    assert (attr.mode, attr.nlink, attr.uid, attr.gid, attr.blksize) == (0o100600, 1, 0, 0, 4096)

    entry = EntryOut.from_buffer_copy(wire.entry_body(2, data))
    assert len(wire.entry_body(2, data)) == ctypes.sizeof(EntryOut)
    assert (entry.nodeid, entry.entry_valid, entry.attr_valid) == (2, 3600, 3600)
    assert bytes(entry.attr) == data

    answer = AttrOut.from_buffer_copy(wire.attr_body(data))
    assert len(wire.attr_body(data)) == ctypes.sizeof(AttrOut)
    assert (answer.attr_valid, bytes(answer.attr)) == (3600, data)


@given(handle=WORD64, pages=st.integers(min_value=0, max_value=2**52))
def test_open_and_statfs(handle: int, pages: int) -> None:
    opened = OpenOut.from_buffer_copy(wire.open_body(handle, OpenFlag.DIRECT_IO | OpenFlag.NOFLUSH))
    assert (opened.fh, opened.open_flags, opened.backing_id) == (handle, 0x21, 0)

    body = wire.statfs_body(pages)
    statfs = Statfs.from_buffer_copy(body)
    assert len(body) == ctypes.sizeof(Statfs) == 80
    assert (statfs.blocks, statfs.bfree, statfs.bavail, statfs.bsize, statfs.frsize) == (pages, 0, 0, 4096, 4096)


@given(name=st.binary(min_size=1, max_size=255))
def test_a_directory_entry_is_padded_to_eight_bytes(name: bytes) -> None:
    data = wire.dirent(2, name, stat.S_IFREG, 1)
    entry = Dirent.from_buffer_copy(data)

    assert len(data) % 8 == 0
    assert 0 <= len(data) - 24 - len(name) < 8
    assert (entry.ino, entry.off, entry.namelen, entry.type) == (2, 1, len(name), 8)
    assert data[24 : 24 + len(name)] == name


@given(unique=WORD64, number=st.integers(min_value=0, max_value=511), body=st.binary(max_size=90))
def test_answers_say_their_length(unique: int, number: int, body: bytes) -> None:
    error = OutHeader.from_buffer_copy(wire.error_answer(unique, number))
    assert (error.len, error.error, error.unique) == (16, -number, unique)

    data = wire.body_answer(unique, body)
    answer = OutHeader.from_buffer_copy(data)
    assert (answer.len, answer.error, answer.unique) == (len(data), 0, unique)
    assert data[16:] == body

    assert wire.WRITE_ANSWER.size == 24
    assert wire.WRITE_ANSWER.pack(24, 0, unique, 4096, 0)[:16] == wire.OUT_HEADER.pack(24, 0, unique)


def test_flags_are_the_header_s() -> None:
    assert [flag.value for flag in InitFlag] == [1, 8, 0x20, 0x8000, 0x200000, 0x400000]
    assert [flag.value for flag in OpenFlag] == [1, 2, 0x20, 0x40]
