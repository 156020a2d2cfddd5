"""Calls and replies against a codec of the tests' own (`nfs_codec`), and streams cut at every byte."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuseswap.engine.rpc_wire import (
    REPLY_HEADER_BYTES_MAX,
    BadRecord,
    CallTemplates,
    RecordBuffer,
    RpcVerdict,
    Status,
    opaque,
    parse_read_result,
    parse_reply,
    parse_write_result,
)
from fuseswap.swap.target import Address, NfsTarget
from tests.engine import nfs_codec as server
from tests.kit.proxy import frame, take_record

WORD32 = st.integers(0, 2**32 - 1)
WORD64 = st.integers(0, 2**64 - 1)
VERIFIERS = st.binary(max_size=400)


def target(handle: bytes = b"handle", machine: str = "host", uid: int = 0, gid: int = 0) -> NfsTarget:
    return NfsTarget((Address("127.0.0.1", 2049),), handle, uid, gid, machine, 1 << 20, 1 << 20)


# --- calls ---


@given(
    handle=st.binary(min_size=1, max_size=64),
    machine=st.text(max_size=300),
    uid=WORD32,
    gid=WORD32,
    calls=st.lists(st.tuples(st.booleans(), WORD32, WORD64, st.binary(max_size=8)), min_size=1, max_size=6),
)
def test_calls_are_what_a_strict_server_expects(
    handle: bytes, machine: str, uid: int, gid: int, calls: list[tuple[bool, int, int, bytes]]
) -> None:
    templates = CallTemplates(target(handle, machine, uid, gid))
    read, write = templates.buffers()
    for is_write, xid, offset, piece in calls:
        data = piece * 512
        if is_write:
            templates.fill_write(write, xid, offset, len(data))
            stream = bytearray(write + data)
        else:
            templates.fill_read(read, xid, offset, len(data))
            stream = bytearray(read)
        record = take_record(stream)
        assert record is not None
        assert not stream
        call = server.decode_call(record)
        assert (call.xid, call.handle, call.offset, call.count) == (xid, handle, offset, len(data))
        assert (call.uid, call.gid, call.machine) == (uid, gid, machine.encode()[:255])
        if is_write:
            assert (call.procedure, call.stable, call.data) == (server.WRITE, server.FILE_SYNC, data)
        else:
            assert call.procedure == server.READ


def test_slots_do_not_share_their_headers() -> None:
    templates = CallTemplates(target())
    first, second = templates.buffers(), templates.buffers()
    templates.fill_read(first[0], 1, 0, 4096)
    templates.fill_read(second[0], 2, 8192, 4096)

    assert server.decode_call(bytes(first[0][4:])).xid == 1


@given(data=st.binary(max_size=70))
def test_opaque(data: bytes) -> None:
    reader = server.Reader(opaque(data))
    assert reader.opaque() == data
    reader.end()


# --- replies ---


def somewhere(data: bytes) -> tuple[memoryview, int, int]:
    """The record among other bytes, which must not be looked at."""
    return memoryview(b"\xff" * 5 + data + b"\xff" * 200), 5, 5 + len(data)


@given(xid=WORD32, verifier=VERIFIERS, accept=st.integers(0, 5), results=st.binary(max_size=40))
def test_accepted_replies(xid: int, verifier: bytes, accept: int, results: bytes) -> None:
    record = server.accepted(xid, results, accept_stat=accept, verifier=verifier)
    memory, start, end = somewhere(record)

    assert parse_reply(memory, start, end) == (xid, accept, end - len(results))


@given(xid=WORD32, auth_stat=WORD32)
def test_denied_replies(xid: int, auth_stat: int) -> None:
    memory, start, end = somewhere(server.auth_error(xid, auth_stat))
    assert parse_reply(memory, start, end)[:2] == (xid, RpcVerdict.AUTH_ERROR)

    memory, start, end = somewhere(server.rpc_mismatch(xid))
    assert parse_reply(memory, start, end)[:2] == (xid, RpcVerdict.RPC_MISMATCH)


@given(verifier_bytes=st.integers(401, 2**32 - 1))
def test_a_verifier_beyond_the_rfc_is_bad(verifier_bytes: int) -> None:
    record = server.words(1, 1, 0, 0, verifier_bytes) + bytes(500)
    memory, start, end = somewhere(record)

    with pytest.raises(BadRecord):
        parse_reply(memory, start, end)


@given(count=WORD32, committed=st.integers(0, 2), before=st.booleans(), after=st.booleans(), verifier=VERIFIERS)
def test_write_results(count: int, committed: int, before: bool, after: bool, verifier: bytes) -> None:
    results = server.write_result(count, committed=committed, before=before, after=after)
    memory, start, end = somewhere(server.accepted(1, results, verifier=verifier))

    assert parse_write_result(memory, parse_reply(memory, start, end)[2], end) == (0, count, committed)


@given(data=st.binary(max_size=300), eof=st.booleans(), attributes=st.booleans(), verifier=VERIFIERS)
def test_read_results(data: bytes, eof: bool, attributes: bool, verifier: bytes) -> None:
    results = server.read_result(data, eof=eof, attributes=attributes)
    memory, start, end = somewhere(server.accepted(1, results, verifier=verifier))
    status, position, length, at_end = parse_read_result(memory, parse_reply(memory, start, end)[2], end)

    assert (status, at_end) == (0, eof)
    assert bytes(memory[position : position + length]) == data


@given(status=st.integers(1, 2**32 - 1), one=st.booleans(), other=st.booleans())
def test_nfs_errors(status: int, one: bool, other: bool) -> None:
    memory, start, end = somewhere(server.write_result(0, status=status, before=one, after=other))
    assert parse_write_result(memory, start, end) == (status, 0, 0)

    memory, start, end = somewhere(server.read_result(b"", status=status, attributes=one))
    assert parse_read_result(memory, start, end)[0] == status


WRITE_REPLY = server.accepted(1, server.write_result(4096), verifier=b"12345")
READ_REPLY = server.accepted(1, server.read_result(bytes(4096)), verifier=b"12345")


@pytest.mark.parametrize("record", [WRITE_REPLY, READ_REPLY], ids=["write", "read"])
def test_a_reply_cut_at_any_byte_is_bad(record: bytes) -> None:
    parse = parse_write_result if record is WRITE_REPLY else parse_read_result
    for length in range(len(record)):
        memory, start, end = somewhere(record[:length])
        with pytest.raises(BadRecord):
            parse(memory, parse_reply(memory, start, end)[2], end)


@pytest.mark.parametrize(
    "results",
    [
        server.words(0, 2),  # attributes_follow is a boolean
        server.words(0, 0, 4096, 2, 4096) + bytes(4096),  # so is eof
        server.words(0, 0, 4096, 0, 4092) + bytes(4096),  # count and length differ
        server.words(0, 0, 8192, 0, 8192) + bytes(4096),  # more than there is
    ],
)
def test_read_results_that_contradict_themselves_are_bad(results: bytes) -> None:
    memory, start, end = somewhere(results)
    with pytest.raises(BadRecord):
        parse_read_result(memory, start, end)


@pytest.mark.parametrize("results", [server.words(0, 2), server.words(0, 0, 2), server.words(0, 0, 0, 4096, 3, 0, 0)])
def test_write_results_that_contradict_themselves_are_bad(results: bytes) -> None:
    memory, start, end = somewhere(results)
    with pytest.raises(BadRecord):
        parse_write_result(memory, start, end)


@st.composite
def damaged_replies(draw: st.DrawFn) -> bytes:
    """A reply of which a few words or bytes are wrong, which is longer, shorter, or nothing but noise."""
    record = bytearray(draw(st.sampled_from([WRITE_REPLY, READ_REPLY[:300], server.auth_error(1), b""])))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(record) - 4, 0)))
        record[at : at + 4] = draw(st.sampled_from([bytes(4), b"\xff" * 4, server.words(1), b"\x7f\xff\xff\xff"]))
    cut = draw(st.integers(0, len(record)))
    return bytes(record[:cut]) + draw(st.binary(max_size=40))


@given(record=damaged_replies())
@settings(max_examples=1000)
def test_nothing_but_bad_record_is_raised(record: bytes) -> None:
    memory, start, end = somewhere(record)
    try:
        xid, verdict, position = parse_reply(memory, start, end)
    except BadRecord:
        return
    assert 0 <= xid < 2**32
    RpcVerdict(verdict)
    assert start < position <= end
    for parse in (parse_write_result, parse_read_result):
        try:
            result = parse(memory, position, end)
        except BadRecord:
            continue
        if parse is parse_read_result and not result[0]:
            assert position <= result[1] <= result[1] + result[2] <= end


def test_every_status_has_the_number_of_the_rfc() -> None:
    assert (Status.IO, Status.NOSPC, Status.ROFS) == (server.NFS3ERR_IO, server.NFS3ERR_NOSPC, server.NFS3ERR_ROFS)
    assert (Status.DQUOT, Status.STALE) == (server.NFS3ERR_DQUOT, server.NFS3ERR_STALE)
    assert (Status.BADHANDLE, Status.JUKEBOX) == (server.NFS3ERR_BADHANDLE, server.NFS3ERR_JUKEBOX)


# --- streams ---

RECORD_MAX = 60


def buffer(size: int = 2 * RECORD_MAX, record_max: int = RECORD_MAX) -> RecordBuffer:
    return RecordBuffer(memoryview(bytearray(size)), record_max)


def feed(records: RecordBuffer, stream: bytes) -> list[bytes]:
    """Put the stream in, as much at a time as there is room for, and take the records out."""
    taken = []
    while stream:
        room = records.room()
        assert len(room)
        count = min(len(room), len(stream))
        room[:count] = stream[:count]
        stream = stream[count:]
        records.received(count)
        while (record := records.next_record()) is not None:
            taken.append(bytes(records.memory[record[0] : record[1]]))
    return taken


RECORDS = st.lists(st.binary(min_size=1, max_size=RECORD_MAX), max_size=8)


def stream_of(records: list[bytes], sizes: list[int]) -> bytes:
    return b"".join(frame(record, fragment_bytes=size) for record, size in zip(records, sizes, strict=True))


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    records = draw(RECORDS)
    sizes = [draw(st.integers(1, RECORD_MAX)) for _ in records]
    return records, stream_of(records, sizes)


@given(sent=streams(), data=st.data(), memory_bytes=st.integers(RECORD_MAX + 4, 3 * RECORD_MAX))
@settings(max_examples=500)
def test_records_survive_any_fragments_and_any_parts(
    sent: tuple[list[bytes], bytes], data: st.DataObject, memory_bytes: int
) -> None:
    wanted, stream = sent
    records = buffer(memory_bytes)
    taken = []
    while stream:
        count = data.draw(st.integers(1, len(stream)))
        taken += feed(records, stream[:count])
        stream = stream[count:]

    assert taken == wanted


def test_a_stream_cut_at_every_byte() -> None:
    wanted = [b"a", b"bcdefgh" * 8, b"ijklm" * 12, b"n" * 60]
    stream = stream_of(wanted, [1, 56, 7, 1])
    for cut in range(len(stream) + 1):
        records = buffer()
        assert feed(records, stream[:cut]) + feed(records, stream[cut:]) == wanted
    assert [record for index in range(len(stream)) for record in feed(records, stream[index : index + 1])] == wanted


@given(sent=streams(), cut=st.floats(0, 1))
def test_a_new_connection_forgets_the_old_one(sent: tuple[list[bytes], bytes], cut: float) -> None:
    wanted, stream = sent
    records = buffer()
    feed(records, stream[: int(cut * len(stream))])
    records.reset()

    assert feed(records, stream) == wanted


@given(noise=st.binary(min_size=1, max_size=500))
@settings(max_examples=500)
def test_noise_is_bad_or_waits_for_more(noise: bytes) -> None:
    records = buffer()
    try:
        taken = feed(records, noise)
    except BadRecord:
        return
    assert all(len(record) <= RECORD_MAX for record in taken)


@pytest.mark.parametrize("length", [RECORD_MAX + 1, 2**31 - 1])
def test_a_record_too_long_is_bad_before_it_has_come(length: int) -> None:
    with pytest.raises(BadRecord, match=str(length)):
        feed(buffer(), server.words(1 << 31 | length))
    with pytest.raises(BadRecord):
        feed(buffer(), server.words(10) + bytes(10) + server.words(1 << 31 | length - 10))


def test_the_largest_record_fits_wherever_it_begins() -> None:
    for before in range(1, RECORD_MAX):
        wanted = [b"x" * before, b"y" * RECORD_MAX, b"z" * RECORD_MAX]
        for memory_bytes in (RECORD_MAX + 4, 2 * RECORD_MAX, 2 * RECORD_MAX + 7):
            assert feed(buffer(memory_bytes), stream_of(wanted, [before, 9, RECORD_MAX])) == wanted


def test_an_empty_last_fragment_ends_a_record_and_another_empty_one_is_bad() -> None:
    assert feed(buffer(), server.words(3) + b"abc" + server.words(1 << 31)) == [b"abc"]
    with pytest.raises(BadRecord, match="empty"):
        feed(buffer(), server.words(0))


def test_memory_must_hold_a_record() -> None:
    with pytest.raises(ValueError, match="smaller than a record"):
        buffer(RECORD_MAX + 3)
    records = buffer()
    with pytest.raises(ValueError, match="more bytes"):
        records.received(len(records.room()) + 1)


def test_a_record_stays_until_room_is_asked_for() -> None:
    records = buffer()
    stream = frame(b"first" * 4) + frame(b"second" * 4)
    records.room()[: len(stream)] = stream
    records.received(len(stream))
    first = records.next_record()
    second = records.next_record()

    assert first is not None
    assert second is not None
    assert bytes(records.memory[slice(*first)]) == b"first" * 4
    assert bytes(records.memory[slice(*second)]) == b"second" * 4


def test_a_record_in_fragments_of_one_byte_costs_its_length_not_its_square() -> None:
    size = (1 << 20) + REPLY_HEADER_BYTES_MAX
    records = buffer(2 * size, size)
    record = bytes(range(256)) * 4096
    began = time.process_time()

    assert feed(records, frame(record, fragment_bytes=1)) == [record]
    assert time.process_time() - began < 5  # it was 16 s when every fragment moved what followed it
