"""The transport's rules against a server that does as it is told (`fake_server`), on real sockets, in one thread."""

import errno
import gc
import os
import random
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fuseswap.engine import limits, sockets
from fuseswap.engine import transport as transport_module
from fuseswap.engine.limits import SECOND_NS
from fuseswap.engine.transport import Transport
from fuseswap.swap.counters import Level, Word
from fuseswap.swap.plug import Plug
from fuseswap.swap.requests import Request
from fuseswap.swap.target import Address, NfsTarget
from tests.engine import nfs_codec as codec
from tests.engine.fake_server import FakeServer, Step, fails, reset, says, sends, silent
from tests.engine.nfs_codec import Arguments
from tests.kit.proxy import frame

PAGE = 4096
PAGES = 64
MILLISECOND_NS = SECOND_NS // 1000


class Rig:
    """A plug and its transport, turned as the engine turns them, and the servers between the turns."""

    def __init__(
        self,
        *servers: FakeServer,
        addresses: tuple[Address, ...] = (),
        slots: int = 4,
        transfer_bytes_max: int = 16 * PAGE,
    ) -> None:
        self.servers = servers
        self.words = memoryview(bytearray(8 * 64)).cast("Q")
        self.log: list[tuple[Level, str]] = []
        self.remember = True
        self.answers: dict[Request, tuple[int, bytes]] = {}
        self.plug = Plug(slots, transfer_bytes_max, transfer_bytes_max)
        target = NfsTarget(
            addresses or tuple(Address(server.host, server.port) for server in servers),
            b"the file's handle",
            0,
            0,
            "tester",
            transfer_bytes_max,
            transfer_bytes_max,
        )
        self.transport = Transport(target, self.plug, slots, self._answer, self.words, self._log)
        self.epoll = select.epoll()
        self.epoll.register(self.transport.fileno(), transport_module.EVENTS)

    def close(self) -> None:
        self.epoll.close()
        self.transport.close()

    def _log(self, level: Level, text: str) -> None:
        if self.remember:
            self.log.append((level, text))

    def _answer(self, requests: list[Request]) -> None:
        for request in requests:
            data = b"".join(request.pieces)
            if self.remember:
                assert request not in self.answers
                assert request.is_write or request.error or len(data) == request.length
            self.answers[request] = request.error, data

    def submit(self, request: Request) -> Request:
        if self.plug.submit(request):
            self._answer([request])
        return request

    def read(self, page: int, pages: int = 1) -> Request:
        size = pages * PAGE
        return self.submit(Request(1, False, page * PAGE, size, memoryview(bytearray(size))))

    def write(self, page: int, data: bytes) -> Request:
        return self.submit(Request(1, True, page * PAGE, len(data), memoryview(data)))

    def turn(self) -> None:
        for server in self.servers:
            server.serve()
        self.transport.tick(time.monotonic_ns())
        while (call := self.plug.next_call()) is not None:
            self.transport.send(call)
        self.transport.flush()
        for _, events in self.epoll.poll(0.0005, 2):
            self.transport.on_event(events)

    def until(self, holds: Callable[[], object], *, seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"not within {seconds} s; the log: {self.log}"
            self.turn()

    def finish(self, *requests: Request, seconds: float = 10) -> list[int]:
        """errno of each request, once all are answered."""
        self.until(lambda: all(request in self.answers for request in requests), seconds=seconds)
        return [self.answers[request][0] for request in requests]

    def connect(self) -> None:
        self.until(lambda: self.words[Word.CONNECTED])

    def said(self, text: str) -> list[Level]:
        return [level for level, line in self.log if text in line]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, milliseconds in (
        ("BACKOFF_FIRST_NS", 1),
        ("BACKOFF_MAX_NS", 4),
        ("RETRY_NS", 1),
        ("STALE_WAIT_NS", 200),
    ):
        monkeypatch.setattr(limits, name, milliseconds * MILLISECOND_NS)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(PAGES * PAGE) as server:
        server.memory[:] = random.Random(1).randbytes(PAGES * PAGE)
        yield server


@pytest.fixture
def make_rig() -> Iterator[Callable[..., Rig]]:
    with ExitStack() as stack:

        def make(*servers: FakeServer, **options: object) -> Rig:
            rig = Rig(*servers, **options)  # type: ignore[arg-type]
            stack.callback(rig.close)
            return rig

        yield make


@pytest.fixture
def rig(server: FakeServer, make_rig: Callable[..., Rig]) -> Rig:
    return make_rig(server)


def pages(byte: int, count: int = 1) -> bytes:
    return bytes([byte]) * (count * PAGE)


# --- the plain way ---


def test_pages_go_out_and_come_back(rig: Rig, server: FakeServer) -> None:
    before = bytes(server.memory)
    written = rig.write(3, pages(3, 2))
    fetched = rig.read(10, 4)

    assert rig.finish(written, fetched) == [0, 0]
    assert rig.answers[fetched][1] == before[10 * PAGE : 14 * PAGE]
    assert bytes(server.memory) == before[: 3 * PAGE] + pages(3, 2) + before[5 * PAGE :]
    assert server.connections[0].source_port == rig.transport.port == rig.words[Word.SOURCE_PORT]
    assert rig.transport.port < 1024
    assert rig.transport.lost_reason == ""
    assert rig.words[Word.REPLY_NS]


def test_replies_may_come_in_any_order(rig: Rig, server: FakeServer) -> None:
    held: list[Arguments] = []

    def hold(call: Arguments, _: object) -> bytes:
        held.append(call)
        if len(held) < 4:
            return b""
        return b"".join(frame(server.perform(call)) for call in reversed(held))

    server.script = [hold] * 4
    requests = [rig.read(page) for page in (1, 5, 9, 13)]

    assert rig.finish(*requests) == [0] * 4
    for request in requests:
        assert rig.answers[request][1] == server.memory[request.offset : request.offset + PAGE]


def test_replies_in_fragments_with_verifiers_and_without_attributes(rig: Rig, server: FakeServer) -> None:
    def odd(call: Arguments, _: object) -> bytes:
        if call.procedure == codec.WRITE:
            server.perform(call)
            results = codec.write_result(call.count, before=False, after=False)
        else:
            data = bytes(server.memory[call.offset : call.offset + call.count])
            results = codec.read_result(data, attributes=False)
        return frame(codec.accepted(call.xid, results, verifier=b"verifier"), fragment_bytes=61)

    server.otherwise = odd
    written, fetched = rig.write(0, pages(7, 3)), rig.read(7, 3)

    assert rig.finish(written, fetched) == [0, 0]
    assert rig.answers[fetched][1] == server.memory[7 * PAGE : 10 * PAGE]
    assert server.memory[: 3 * PAGE] == pages(7, 3)


def test_what_is_larger_than_the_server_takes_goes_in_parts(server: FakeServer, make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(server, transfer_bytes_max=2 * PAGE)
    data = random.Random(2).randbytes(16 * PAGE)
    written, fetched = rig.write(0, data), rig.read(20, 15)

    assert rig.finish(written, fetched) == [0, 0]
    assert server.memory[: 16 * PAGE] == data
    assert rig.answers[fetched][1] == server.memory[20 * PAGE : 35 * PAGE]
    assert max(call.count for _, call in server.calls) == 2 * PAGE


# --- wait and try again ---

TRY_AGAIN: dict[str, Step] = {
    "JUKEBOX": fails(codec.NFS3ERR_JUKEBOX),
    "SYSTEM_ERR": says(lambda call: codec.accepted(call.xid, accept_stat=codec.SYSTEM_ERR)),
    "PROG_UNAVAIL": says(lambda call: codec.accepted(call.xid, accept_stat=codec.PROG_UNAVAIL)),
    "AUTH_ERROR": says(lambda call: codec.auth_error(call.xid)),
}


@pytest.mark.parametrize("step", TRY_AGAIN.values(), ids=TRY_AGAIN.keys())
def test_a_server_that_is_starting_is_asked_again(rig: Rig, server: FakeServer, step: Step) -> None:
    server.script = [step] * 30
    requests = rig.write(1, pages(1)), rig.read(2), rig.write(40, pages(2, 3))

    assert rig.finish(*requests) == [0, 0, 0]
    assert server.memory[PAGE : 2 * PAGE] == pages(1)
    assert rig.words[Word.SERVER_RETRIES] == 30
    assert rig.words[Word.SERVER_ERRORS] == 0
    assert len(server.connections) == 1


def test_a_verdict_is_asked_for_again_under_a_new_xid(rig: Rig, server: FakeServer) -> None:
    """A reply cache would repeat its JUKEBOX for as long as it knows the xid (nfsd_cache_lookup)."""
    cache: dict[int, bytes] = {}

    def caching(call: Arguments, _: object) -> bytes:
        if call.xid not in cache:
            fresh = codec.failure(call, codec.NFS3ERR_JUKEBOX) if len(cache) < 3 else server.perform(call)
            cache[call.xid] = frame(fresh)
        return cache[call.xid]

    server.otherwise = caching

    assert rig.finish(rig.write(1, pages(1)), seconds=2) == [0]
    assert len(cache) == 4


def test_rejections_are_logged_once_not_for_every_call(rig: Rig, server: FakeServer) -> None:
    server.script = [TRY_AGAIN["SYSTEM_ERR"]] * 20
    rig.finish(*(rig.write(page, pages(page)) for page in range(0, 8, 2)))

    assert rig.said("SYSTEM_ERR") == [Level.WARNING]


def unstable(server: FakeServer) -> Step:
    def reply(call: Arguments) -> bytes:
        server.perform(call)
        return codec.accepted(call.xid, codec.write_result(call.count, committed=codec.UNSTABLE))

    return says(reply)


def test_unstable_is_no_success_but_may_pass(rig: Rig, server: FakeServer) -> None:
    server.script = [unstable(server)] * 4

    assert rig.finish(rig.write(1, pages(1))) == [0]
    assert rig.words[Word.SERVER_RETRIES] == 4


def test_unstable_for_ever_is_an_error(rig: Rig, server: FakeServer) -> None:
    server.otherwise = unstable(server)

    assert rig.finish(rig.write(1, pages(1))) == [errno.EIO]
    assert len(server.calls) == transport_module.UNSTABLE_TRIES + 1
    assert rig.said("FILE_SYNC") == [Level.ERROR]


def test_waiting_for_a_slow_server_does_not_use_up_the_tries_of_unstable(rig: Rig, server: FakeServer) -> None:
    server.script = [*[TRY_AGAIN["JUKEBOX"]] * 10, *[TRY_AGAIN["SYSTEM_ERR"]] * 10, unstable(server)]

    assert rig.finish(rig.write(1, pages(1))) == [0]


def test_a_call_that_waits_when_the_connection_is_lost_is_sent_once(
    rig: Rig, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "RETRY_NS", 50 * MILLISECOND_NS)
    server.script = [TRY_AGAIN["JUKEBOX"]]
    request = rig.write(1, pages(1))
    rig.until(lambda: rig.words[Word.SERVER_RETRIES])
    server.connections[0].close(reset=True)
    assert rig.finish(request) == [0]
    over = time.monotonic() + 0.1
    rig.until(lambda: time.monotonic() > over)

    assert [number for number, _ in server.calls] == [0, 1]
    assert rig.words[Word.UNKNOWN_REPLIES] == 0


@pytest.mark.parametrize("status", [codec.NFS3ERR_STALE, codec.NFS3ERR_BADHANDLE])
def test_a_stale_handle_may_come_back(rig: Rig, server: FakeServer, status: int) -> None:
    server.script = [fails(status)] * 10
    requests = rig.write(1, pages(1)), rig.read(5)

    assert rig.finish(*requests) == [0, 0]


def test_a_handle_that_stays_stale_is_an_error(rig: Rig, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALE_WAIT_NS", 50 * MILLISECOND_NS)
    server.otherwise = fails(codec.NFS3ERR_STALE)
    began = time.monotonic()
    requests = rig.write(1, pages(1)), rig.read(5)

    assert rig.finish(*requests) == [errno.EIO] * 2
    assert time.monotonic() - began >= 0.05
    assert rig.said("NFS3ERR_STALE") == [Level.ERROR] * 2

    server.otherwise = server.honest
    assert rig.finish(rig.write(1, pages(1))) == [0]


# --- definite errors ---


@pytest.mark.parametrize("status", [codec.NFS3ERR_NOSPC, codec.NFS3ERR_DQUOT, codec.NFS3ERR_ROFS, codec.NFS3ERR_IO, 99])
@pytest.mark.parametrize("is_write", [True, False], ids=["write", "read"])
def test_an_error_fails_exactly_the_pages_concerned(
    server: FakeServer, make_rig: Callable[..., Rig], status: int, is_write: bool
) -> None:
    rig = make_rig(server, slots=1)
    bad_page = 13 * PAGE

    def judge(call: Arguments, connection: object) -> bytes:
        if call.offset <= bad_page < call.offset + call.count:
            return frame(codec.failure(call, status))
        return frame(server.perform(call))

    server.otherwise = judge
    rig.connect()
    # The only slot is taken by the first, so that the others meet in one call.
    requests = [rig.write(page, pages(page)) if is_write else rig.read(page) for page in (0, 10, 11, 12, 13, 14)]

    assert rig.finish(*requests) == [0, 0, 0, 0, errno.EIO, 0]
    assert max(call.count for _, call in server.calls) == 5 * PAGE
    assert rig.words[Word.SERVER_ERRORS] == 2
    assert Level.ERROR in rig.said("at 53248")
    if is_write:
        assert server.memory[10 * PAGE : 13 * PAGE] == pages(10) + pages(11) + pages(12)
    else:
        assert rig.answers[requests[5]][1] == server.memory[14 * PAGE : 15 * PAGE]


@pytest.mark.parametrize("accept_stat", [2, 3, codec.GARBAGE_ARGS])
def test_a_server_that_cannot_do_it_is_an_error(rig: Rig, server: FakeServer, accept_stat: int) -> None:
    server.otherwise = says(lambda call: codec.accepted(call.xid, accept_stat=accept_stat))

    assert rig.finish(rig.write(1, pages(1)), rig.read(3)) == [errno.EIO] * 2


# --- short replies ---


@pytest.mark.parametrize("count", [PAGE, 3 * PAGE, 1000, 999, 5])
def test_short_replies_are_continued(rig: Rig, server: FakeServer, count: int) -> None:
    server.script = [server.short(count)] * 40
    data = random.Random(3).randbytes(7 * PAGE)
    written, fetched = rig.write(0, data), rig.read(30, 8)

    assert rig.finish(written, fetched) == [0, 0]
    assert server.memory[: 7 * PAGE] == data
    assert rig.answers[fetched][1] == server.memory[30 * PAGE : 38 * PAGE]
    assert rig.plug.short_replies > 2


def test_a_write_of_nothing_is_an_error(rig: Rig, server: FakeServer) -> None:
    server.script = [server.short(0)]

    assert rig.finish(rig.write(1, pages(1))) == [errno.EIO]


@pytest.mark.parametrize("got", [0, 1000, PAGE])
def test_a_file_that_ends_inside_the_range_is_an_error(rig: Rig, server: FakeServer, got: int) -> None:
    def ends(call: Arguments) -> bytes:
        end = call.offset + got
        return codec.accepted(call.xid, codec.read_result(bytes(server.memory[call.offset : end]), eof=True))

    server.script = [says(ends)]

    assert rig.finish(rig.read(1, 3)) == [errno.EIO]


# --- bad records, lost connections ---


def check_sent_again(rig: Rig, server: FakeServer, *, connections: int = 2) -> None:
    """What was outstanding was sent again: same xids, same bytes, same source port, as a new stream."""
    assert len(server.connections) == connections
    assert {connection.source_port for connection in server.connections} == {rig.transport.port}
    first = {call.xid: call for number, call in server.calls if number == 0}
    second = {call.xid: call for number, call in server.calls if number == 1}
    assert first
    assert second
    assert set(first) & set(second)
    for xid in set(first) & set(second):
        assert first[xid] == second[xid]
    assert rig.words[Word.RECONNECTS] == connections - 1


BAD_RECORDS: dict[str, Step] = {
    "garbage": sends(b"\xffHTTP/1.1 400 Bad Request\r\n"),
    "noise": says(lambda call: b"short"),
    "a call": says(lambda call: codec.words(call.xid, 0, 2, 100003)),
    "cut": says(lambda call: codec.accepted(call.xid, codec.write_result(PAGE))[:-9]),
    "too much written": says(lambda call: codec.accepted(call.xid, codec.write_result(call.count + 1))),
    "too much read": says(lambda call: codec.accepted(call.xid, codec.read_result(bytes(call.count + 4)))),
    "a huge record": sends(codec.words(1 << 31 | 1 << 30)),
    "an empty fragment": sends(codec.words(0)),
}


@pytest.mark.parametrize("step", BAD_RECORDS.values(), ids=BAD_RECORDS.keys())
def test_a_bad_record_drops_the_connection(rig: Rig, server: FakeServer, step: Step) -> None:
    server.script = [step]
    reads = step is BAD_RECORDS["too much read"]
    request = rig.read(3) if reads else rig.write(3, pages(5))

    assert rig.finish(request) == [0]
    assert rig.words[Word.BAD_RECORDS] == 1
    assert rig.said("bad reply") == [Level.WARNING]
    check_sent_again(rig, server)


def test_an_answer_to_no_call_is_ignored_and_counted(rig: Rig, server: FakeServer) -> None:
    def wrong_first(call: Arguments, _: object) -> bytes:
        wrong = frame(codec.accepted(call.xid ^ 1 << 20, codec.write_result(PAGE)))
        return wrong + frame(server.perform(call))

    server.script = [wrong_first]

    assert rig.finish(rig.write(3, pages(5))) == [0]
    assert rig.words[Word.UNKNOWN_REPLIES] == 1
    assert len(server.connections) == 1


def test_a_second_answer_is_ignored_and_counted(rig: Rig, server: FakeServer) -> None:
    server.otherwise = lambda call, connection: 2 * frame(server.perform(call))
    requests = [rig.read(page) for page in range(0, 20, 2)]

    assert rig.finish(*requests) == [0] * 10
    rig.until(lambda: rig.words[Word.UNKNOWN_REPLIES] == 10)
    assert len(server.connections) == 1


def test_a_reply_before_its_call_has_been_sent_is_bad(
    server: FakeServer, make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "SEND_BUFFER_BYTES", 1)
    size = 4 << 20
    server.memory = bytearray(size)
    rig = make_rig(server, transfer_bytes_max=size)
    rig.until(lambda: server.connections)
    server.read_bytes = 64
    request = rig.write(0, bytes(size))
    rig.until(lambda: len(server.connections[0].incoming) > 256)
    (xid,) = struct.unpack_from(">I", server.connections[0].incoming, 4)
    server.connections[0].outgoing += frame(codec.accepted(xid, codec.write_result(size)))
    rig.until(lambda: rig.words[Word.BAD_RECORDS])
    assert request not in rig.answers
    server.read_bytes = 1 << 20

    assert rig.finish(request) == [0]
    assert rig.said("has not been sent") == [Level.WARNING]


@pytest.mark.parametrize("how", ["close", "reset", "reply and close", "half a reply and close"])
def test_a_closed_connection_is_made_again(rig: Rig, server: FakeServer, how: str) -> None:
    half: Step = lambda call, connection: server.honest(call, connection)[:50]  # noqa: E731
    last = {
        "close": server.and_close(silent),
        "reset": reset,
        "reply and close": server.and_close(server.honest),
        "half a reply and close": server.and_close(half),
    }[how]
    server.script = [silent, last]
    requests = [rig.write(page, pages(page)) for page in (1, 5, 9, 13)]

    assert rig.finish(*requests) == [0] * 4
    check_sent_again(rig, server)
    assert rig.said("lost the server") == [Level.WARNING]
    assert rig.said("again") == [Level.NOTICE]
    assert rig.words[Word.DISCONNECTED_NS] == 0


def test_a_server_that_closes_at_once_but_takes_everything_is_left(rig: Rig, server: FakeServer) -> None:
    """Its end of the stream comes together with the connection itself."""

    def half_closed(connection: object) -> None:
        if len(server.connections) == 1:
            server.connections[0].socket.shutdown(socket.SHUT_WR)

    server.on_accept = half_closed
    server.script = [silent]

    assert rig.finish(rig.write(1, pages(1)), seconds=5) == [0]


def test_a_server_that_is_down_is_waited_for(rig: Rig, server: FakeServer) -> None:
    rig.connect()
    rig.until(lambda: server.connections)
    server.refuse()
    requests = [rig.write(page, pages(page)) for page in range(0, 20, 2)]
    rig.until(lambda: rig.transport.lost_reason == os.strerror(errno.ECONNREFUSED))
    assert not rig.words[Word.CONNECTED]
    assert rig.words[Word.DISCONNECTED_NS]
    deadline = time.monotonic() + 0.05
    rig.until(lambda: time.monotonic() > deadline)
    assert not rig.answers
    server.listen()

    assert rig.finish(*requests) == [0] * 10
    assert server.connections[0].source_port == server.connections[1].source_port
    assert len(rig.log) == 2  # lost, and there again: not a line for each attempt


def test_attempts_grow_rarer(server: FakeServer, make_rig: Callable[..., Rig]) -> None:
    backoffs = []
    server.refuse()
    rig = make_rig(server)
    now = time.monotonic_ns()

    def waits_anew() -> bool:
        return rig.transport._state == transport_module._WAITING and rig.transport._due_ns > now

    for _ in range(6):
        rig.until(waits_anew)
        backoffs.append(rig.transport._backoff_ns)
        now = rig.transport._due_ns

    assert backoffs[-1] == 4 * MILLISECOND_NS
    assert backoffs == sorted(backoffs)


def test_a_silent_server_is_left_when_a_call_takes_too_long(
    rig: Rig, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CALL_LIMIT_NS", 50 * MILLISECOND_NS)
    server.script = [silent] * 2
    requests = rig.write(1, pages(1)), rig.read(5)

    assert rig.finish(*requests) == [0, 0]
    assert rig.words[Word.TIMEOUTS] == 1
    check_sent_again(rig, server)


def test_other_replies_do_not_excuse_a_lost_one(rig: Rig, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CALL_LIMIT_NS", 50 * MILLISECOND_NS)
    server.script = [silent]
    lost = rig.write(1, pages(1))
    rig.until(lambda: server.calls)
    while lost not in rig.answers:
        rig.finish(rig.read(5), seconds=2)

    assert rig.answers[lost] == (0, b"")
    assert rig.words[Word.TIMEOUTS] == 1


def test_due_is_when_something_is_to_be_done(rig: Rig, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.connect()
    assert rig.transport.due() == 0
    monkeypatch.setattr(limits, "RETRY_NS", 100 * MILLISECOND_NS)
    server.script = [silent, fails(codec.NFS3ERR_JUKEBOX)]
    first = rig.write(1, pages(1))
    rig.until(lambda: server.calls)
    far = rig.transport.due()
    assert 50 * SECOND_NS < far - time.monotonic_ns() <= 60 * SECOND_NS
    second = rig.write(5, pages(1))
    rig.until(lambda: rig.words[Word.SERVER_RETRIES])
    assert 0 < rig.transport.due() - time.monotonic_ns() <= 100 * MILLISECOND_NS
    assert rig.finish(second) == [0]
    assert first not in rig.answers
    assert rig.transport.due() == far


@pytest.mark.parametrize("allowed", [True, False])
def test_it_sends_and_connects_as_a_real_time_task_where_allowed(
    rig: Rig, server: FakeServer, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    changes: list[int] = []

    def set_scheduler(_pid: int, policy: int, _param: os.sched_param) -> None:
        if not allowed:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        changes.append(policy)

    monkeypatch.setattr(os, "sched_setscheduler", set_scheduler)
    rig.words[Word.REALTIME] = 1
    assert rig.finish(rig.write(1, pages(1)), rig.read(5)) == [0, 0]
    sends = len(changes)
    server.script = [silent]
    request = rig.write(1, pages(1))
    rig.until(lambda: server.calls[2:])
    server.connections[0].close()
    assert rig.finish(request) == [0]
    # connect(2) twice, once to dissolve what was lost, and the calls before and after.
    assert len(changes) >= sends + 8 or not allowed
    assert rig.words[Word.REALTIME] == allowed
    assert len(changes) >= 4 if allowed else not changes
    assert changes == [os.SCHED_FIFO, os.SCHED_OTHER] * (len(changes) // 2)
    assert rig.said("real-time") == ([] if allowed else [Level.WARNING])


# --- addresses ---


def free_port(host: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("live", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("dead", ["127.0.0.1", "::1", "2001:db8::1"])
def test_the_second_address_serves_when_the_first_is_dead(
    make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, live: str, dead: str
) -> None:
    monkeypatch.setattr(limits, "CONNECT_LIMIT_NS", SECOND_NS)
    with FakeServer(PAGES * PAGE, host=live) as server:
        addresses = Address(dead, free_port("127.0.0.1")), Address(live, server.port)
        rig = make_rig(server, addresses=addresses)

        assert rig.finish(rig.write(1, pages(1)), rig.read(3)) == [0, 0]
        assert rig.words[Word.ADDRESS_INDEX] == 1
        assert server.connections[0].source_port == rig.transport.port
        server.connections[0].close(reset=True)
        assert rig.finish(rig.write(2, pages(1))) == [0]
        assert server.connections[-1].source_port == rig.transport.port
        assert any(f"connected to {live} port {server.port} again" in text for _, text in rig.log)


def test_a_loss_leads_back_to_the_server_that_served(server: FakeServer, make_rig: Callable[..., Rig]) -> None:
    with FakeServer(PAGES * PAGE) as stranger:
        stranger.otherwise = fails(codec.NFS3ERR_STALE)
        rig = make_rig(server, stranger)

        assert rig.finish(rig.write(1, pages(1))) == [0]
        server.connections[0].close(reset=True)
        assert rig.finish(rig.read(1)) == [0]
        assert not stranger.connections


def test_a_server_that_does_not_know_the_file_is_left_for_the_next(make_rig: Callable[..., Rig]) -> None:
    with FakeServer(PAGES * PAGE) as stranger, FakeServer(PAGES * PAGE) as server:
        stranger.otherwise = fails(codec.NFS3ERR_STALE)
        rig = make_rig(stranger, server)

        assert rig.finish(rig.write(1, pages(1)), rig.read(3)) == [0, 0]
        assert rig.words[Word.ADDRESS_INDEX] == 1


def test_on_a_kernel_without_ipv6_the_ipv4_address_serves(
    server: FakeServer, make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    class WithoutIPv6(socket.socket):
        def __init__(self, family: int, kind: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, kind)

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", WithoutIPv6)
        rig = make_rig(server, addresses=(Address("::1", server.port), Address("127.0.0.1", server.port)))
    server.script = [reset]

    assert rig.finish(rig.write(1, pages(1))) == [0]
    assert rig.words[Word.ADDRESS_INDEX] == 1
    assert {connection.source_port for connection in server.connections} == {rig.transport.port}


def test_an_address_that_takes_no_connection_is_given_up(
    server: FakeServer, make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CONNECT_LIMIT_NS", 50 * MILLISECOND_NS)
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = full.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        rig = make_rig(server, addresses=(Address("127.0.0.1", port), Address("127.0.0.1", server.port)))

        assert rig.finish(rig.write(1, pages(1))) == [0]


def test_without_the_right_to_low_ports_the_source_port_stays_too(
    server: FakeServer, make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unprivileged(socket.socket):
        def bind(self, address: tuple[str, int]) -> None:  # type: ignore[override]
            if 0 < address[1] < 1024:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Unprivileged)
    rig = make_rig(server)
    server.script = [reset]

    assert rig.finish(rig.write(1, pages(1))) == [0]
    assert rig.transport.port >= 1024
    check_sent_again(rig, server)


# --- edge-triggered, in small pieces ---


def mixed_load(rig: Rig, server: FakeServer, count: int, *, seconds: float) -> None:
    """Writes and reads of 1 to 16 pages on all slots, held against a flat model."""
    rng = random.Random(4)
    model = bytearray(server.memory)
    for _ in range(count):
        size = rng.randint(1, 16)
        written_page, read_page = rng.randint(0, 31 - size), rng.randint(32, PAGES - size)
        data = rng.randbytes(size * PAGE)
        written, fetched = rig.write(written_page, data), rig.read(read_page, size)
        model[written_page * PAGE : written_page * PAGE + len(data)] = data
        if rng.random() < 0.5:
            assert rig.finish(written, fetched, seconds=seconds) == [0, 0]
        else:
            assert rig.finish(fetched, seconds=seconds) == [0]
        assert rig.answers[fetched][1] == model[read_page * PAGE : (read_page + size) * PAGE]
    rig.until(lambda: not rig.plug.statistics().unfinished_requests, seconds=seconds)
    assert server.memory == model


def test_tiny_send_buffer_and_a_server_that_takes_little(
    server: FakeServer, make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "SEND_BUFFER_BYTES", 1)
    monkeypatch.setattr(sockets, "RECEIVE_BUFFER_BYTES", 1)
    server.read_bytes = 1700
    server.write_bytes = 1100
    mixed_load(make_rig(server), server, 20, seconds=20)
    assert len(server.connections) == 1


def test_replies_that_come_byte_by_byte(server: FakeServer, make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(server)
    server.write_bytes = 1
    requests = [rig.write(page, pages(page)) for page in range(0, 8, 2)]

    assert rig.finish(*requests) == [0] * 4
    assert len(server.connections) == 1


def test_a_reply_and_the_end_of_the_stream_in_one_event(rig: Rig, server: FakeServer) -> None:
    """Both lie in the socket before the engine looks; no further edge tells of the end."""
    rig.connect()
    outstanding: list[Arguments] = []

    def last_words(call: Arguments, connection: object) -> bytes:
        if not outstanding:
            outstanding.append(call)
            return b""
        server.connections[0].closing = True
        return frame(server.perform(call))

    server.script = [last_words] * 2
    requests = rig.write(1, pages(1)), rig.write(5, pages(5))

    assert rig.finish(*requests, seconds=5) == [0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_a_load_through_every_fault(server: FakeServer, make_rig: Callable[..., Rig], seed: int) -> None:
    rng = random.Random(seed)
    steps: list[Step] = [
        *TRY_AGAIN.values(),
        *(BAD_RECORDS[name] for name in ("garbage", "noise", "cut", "a huge record")),
        server.short(PAGE),
        server.short(999),
        server.and_close(silent),
        server.and_close(server.honest),
        server.and_close(lambda call, connection: server.honest(call, connection)[:50]),
        reset,
        lambda call, connection: 2 * server.honest(call, connection),
    ]

    def faulty(call: Arguments, connection: object) -> bytes:
        step = rng.choice(steps) if rng.random() < 0.1 else server.honest
        return step(call, connection)  # type: ignore[arg-type]

    server.otherwise = faulty
    rig = make_rig(server)
    mixed_load(rig, server, 150, seconds=20)
    assert rig.words[Word.RECONNECTS] > 3
    assert rig.words[Word.SERVER_ERRORS] == 0
    assert {connection.source_port for connection in server.connections} == {rig.transport.port}


# --- a thousand reconnects ---


def resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


def test_a_thousand_reconnects_leave_nothing(rig: Rig, server: FakeServer) -> None:
    """The descriptor stays the same one; memory, descriptors and objects stay as many."""
    rig.remember = server.remember = False
    server.otherwise = lambda call, connection: (reset if call.offset == PAGE else server.honest)(call, connection)
    descriptor = rig.transport.fileno()
    data = pages(1)

    def reconnect(count: int) -> None:
        goal = rig.words[Word.RECONNECTS] + count
        request = rig.write(1, data)
        while rig.words[Word.RECONNECTS] < goal:
            rig.turn()
        server.script = [server.honest]
        rig.finish(request)
        rig.answers.clear()

    def facts() -> tuple[int, int, int, int]:
        gc.collect()
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        return descriptors, len(gc.get_objects()), sys.getallocatedblocks(), resident_pages()

    reconnect(100)
    descriptors, objects, blocks, resident = facts()
    reconnect(1000)
    after = facts()

    assert rig.transport.fileno() == descriptor
    assert after[0] == descriptors
    assert abs(after[1] - objects) <= 5
    assert abs(after[2] - blocks) <= 50
    assert after[3] - resident <= 16


def test_a_server_that_drops_every_connection_is_not_hurried_after(rig: Rig, server: FakeServer) -> None:
    server.otherwise = server.and_close(silent)
    request = rig.write(1, pages(1))
    rig.until(lambda: len(server.connections) == 8)
    assert rig.transport._backoff_ns == limits.BACKOFF_MAX_NS
    server.otherwise = server.honest
    assert rig.finish(request) == [0]
    server.connections[-1].close(reset=True)
    rig.until(lambda: not rig.words[Word.CONNECTED])
    assert rig.transport._backoff_ns == 2 * limits.BACKOFF_FIRST_NS
