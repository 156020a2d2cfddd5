"""The engine's own connection to the NFS server: calls out, replies in, and the same socket for ever.

A lost server is a wait. The socket is made, bound and registered once; after a loss it is dissolved with
connect(AF_UNSPEC) and connected again: reconnecting opens nothing and needs no memory, the source port stays,
and the server's duplicate-request cache still knows the calls, which are sent again with their xids.

| the server says | the engine does |
|---|---|
| nothing (lost, time limit, bad record) | connects again with back-off, sends all outstanding calls again |
| JUKEBOX, SYSTEM_ERR, PROG_UNAVAIL, authentication rejected | waits, asks again, without limit |
| committed less than FILE_SYNC | asks again, UNSTABLE_TRIES times, then EIO |
| STALE, BADHANDLE | asks again, at the next address if there is one, for STALE_WAIT_NS, then EIO |
| any other error | EIO |

*Sending again* keeps the xid, so that the server's duplicate-request cache can recognize a call that it has done.
*Asking again* takes a new one, because that cache would repeat its old verdict.

May wait: never. May allocate: small Python objects only. May fail: only `__init__`.
"""

import errno
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from fuseswap.engine import hardening, libc, limits
from fuseswap.engine.rpc_wire import (
    REPLY_HEADER_BYTES_MAX,
    BadRecord,
    CallTemplates,
    RecordBuffer,
    RpcVerdict,
    Stable,
    Status,
    parse_read_result,
    parse_reply,
    parse_write_result,
)
from fuseswap.engine.sockets import make_socket
from fuseswap.swap.counters import Level, Word
from fuseswap.swap.plug import Plug
from fuseswap.swap.requests import Call, Request
from fuseswap.swap.target import NfsTarget

UNSTABLE_TRIES: Final = 5
QUIET_NS: Final = 60_000_000_000
"""A rejection is logged when there was none for this long."""

IOV_MAX: Final = 256
"""Pieces of one sendmsg: the kernel copies their list into memory that it allocates, here at most one page."""
EVENTS: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
"""What the socket must be registered for. Without EPOLLRDHUP an end of the stream that comes together with the
last reply would be missed: a short read ends the turn, and no further edge tells of it."""

_BROADCAST: Final = libc.socket_address(socket.AF_INET6, "255.255.255.255", 1)
_WAITING, _CONNECTING, _UP = range(3)

# As plain integers: looking up an enumeration's member costs 0.15 us in Python 3.11.
_FILE_SYNC: Final = int(Stable.FILE_SYNC)
_REALTIME: Final = int(Word.REALTIME)
_REPLY_NS: Final = int(Word.REPLY_NS)


class Transport:
    """Sends the plug's calls to one file on one server and tells the plug what came of them."""

    def __init__(
        self,
        target: NfsTarget,
        plug: Plug,
        slots: int,
        answer: Callable[[list[Request]], None],
        words: memoryview,
        log: Callable[[Level, str], None],
    ) -> None:
        self._plug = plug
        self._answer = answer
        self._words = words
        self._log = log
        self._target = target
        self._templates = CallTemplates(target)
        self._headers = [self._templates.buffers() for _ in range(slots)]
        self._free_slots = list(range(slots))
        self._calls: dict[int, Call] = {}
        self._delayed: list[tuple[int, int]] = []
        self._xid = int.from_bytes(os.urandom(4))
        self._queue: list[bytearray | memoryview] = []
        self._queued_bytes = 0
        self._stream_queued = 0
        self._stream_sent = 0
        self._writable = False
        record_bytes_max = target.read_bytes_max + REPLY_HEADER_BYTES_MAX
        self._records = RecordBuffer(memoryview(bytearray(2 * record_bytes_max)), record_bytes_max)
        self._receive_memory = self._records.memory
        self._state = _WAITING
        self._now = time.monotonic_ns()
        self._reply_ns = 0
        self._due_ns = 0
        self._backoff_ns = limits.BACKOFF_FIRST_NS
        self._address_index = 0
        self._lost_reason = ""
        self._up_since_ns = 0
        self._rejected_ns = -QUIET_NS
        self._socket, self._addresses = make_socket(target)
        self.port = int(self._socket.getsockname()[1])
        words[Word.SOURCE_PORT] = self.port
        words[Word.DISCONNECTED_NS] = time.monotonic_ns()

    def fileno(self) -> int:
        """The socket's descriptor: register it once, for `EVENTS`."""
        return self._socket.fileno()

    @property
    def lost_reason(self) -> str:
        """Why there was no connection the last time one was lost or failed."""
        return self._lost_reason

    def send(self, call: Call) -> None:
        """Take over a call that `Plug.next_call` gave; `flush` sends it."""
        call.slot = self._free_slots.pop()
        call.attempts = 0
        call.stale_since = 0
        self._name(call)
        if self._state == _UP:
            self._enqueue(call)

    def _name(self, call: Call) -> None:
        self._xid = call.xid = self._xid + 1 & 0xFFFFFFFF
        self._calls[call.xid] = call

    def _enqueue(self, call: Call) -> None:
        queue = self._queue
        read_header, write_header = self._headers[call.slot]
        if call.is_write:
            self._templates.fill_write(write_header, call.xid, call.offset, call.length)
            queue.append(write_header)
            size = len(write_header) + call.length
            queue += call.payload()
        else:
            self._templates.fill_read(read_header, call.xid, call.offset, call.length)
            queue.append(read_header)
            size = len(read_header)
        self._queued_bytes += size
        self._stream_queued += size
        call.stream_end = self._stream_queued
        call.deadline = self._now + limits.CALL_LIMIT_NS

    def flush(self) -> None:
        """Send as much of what is queued as the socket takes."""
        if self._queue and self._writable:
            self._enter_realtime()
            self._send_queue()
            self._leave_realtime()

    def _enter_realtime(self) -> None:
        if self._words[_REALTIME]:
            try:
                hardening.enter_realtime()
            except OSError as error:
                # Allowed at the start; a cgroup without real-time runtime may take it away.
                self._words[_REALTIME] = 0
                self._log(Level.WARNING, f"no longer real-time while it sends: {error.strerror}")

    def _leave_realtime(self) -> None:
        if self._words[_REALTIME]:
            hardening.leave_realtime()

    def _send_queue(self) -> None:
        queue = self._queue
        while queue and self._writable:
            try:
                sent = self._socket.sendmsg(queue if len(queue) <= IOV_MAX else queue[:IOV_MAX])
            except BlockingIOError:
                self._writable = False
                return
            except OSError as error:
                self._lose(error.strerror or str(error))
                return
            self._stream_sent += sent
            self._queued_bytes -= sent
            if not self._queued_bytes:
                queue.clear()
                return
            _drop_sent(queue, sent)

    def on_event(self, events: int) -> None:
        """The socket's epoll events (edge-triggered)."""
        self._now = time.monotonic_ns()
        if self._state == _CONNECTING:
            code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._lose(os.strerror(code))
                return
            if not events & select.EPOLLOUT or events & select.EPOLLHUP:
                return
            self._established()
        if self._state == _UP:
            if events & select.EPOLLOUT:
                self._writable = True
            ended = events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)
            if ended or events & select.EPOLLIN:
                self._receive(bool(ended))
                self._words[_REPLY_NS] = self._reply_ns

    def _receive(self, ended: bool) -> None:
        records = self._records
        receive_into = self._socket.recv_into
        try:
            while self._state == _UP:
                room = records.room()
                count: int = receive_into(room)
                if not count:
                    self._lose("closed by the server")
                    return
                records.received(count)
                while (record := records.next_record()) is not None:
                    self._reply(record[0], record[1])
                if count < len(room) and not ended:
                    return
        except BlockingIOError:
            return
        except BadRecord as bad:
            self._words[Word.BAD_RECORDS] += 1
            self._lose(f"bad reply: {bad}")
        except OSError as error:
            self._lose(error.strerror or str(error))

    def _reply(self, start: int, end: int) -> None:
        memory = self._receive_memory
        xid, verdict, position = parse_reply(memory, start, end)
        call = self._calls.get(xid)
        if call is None or not call.stream_end:
            self._words[Word.UNKNOWN_REPLIES] += 1
            return
        if call.stream_end > self._stream_sent:
            raise BadRecord("a reply to a call that has not been sent")
        self._reply_ns = now = self._now
        if verdict:
            self._rejected(call, verdict, now)
        elif call.is_write:
            status, count, committed = parse_write_result(memory, position, end)
            if status:
                self._nfs_error(call, status, now)
            elif count > call.length:
                raise BadRecord(f"{count} bytes written of {call.length}")
            elif committed != _FILE_SYNC:
                self._unstable(call, now)
            else:
                self._forget(call)
                # In XDR data are padded to 4 bytes, so what goes on behind an odd count starts a little earlier.
                self._answer(self._plug.wrote(call, count & -4))
        else:
            status, position, length, eof = parse_read_result(memory, position, end)
            if status:
                self._nfs_error(call, status, now)
            elif length > call.length:
                raise BadRecord(f"{length} bytes read of {call.length}")
            else:
                self._forget(call)
                self._answer(self._plug.fetched(call, memory[position : position + length], eof))

    def _forget(self, call: Call) -> None:
        del self._calls[call.xid]
        self._free_slots.append(call.slot)

    def _fail(self, call: Call, reason: str) -> None:
        verb = "WRITE" if call.is_write else "READ"
        self._words[Word.SERVER_ERRORS] += 1
        self._log(Level.ERROR, f"{verb} of {call.length} bytes at {call.offset}: {reason}")
        self._forget(call)
        self._answer(self._plug.failed(call, errno.EIO))

    def _retry(self, call: Call, now: int) -> None:
        self._words[Word.SERVER_RETRIES] += 1
        call.stream_end = 0
        call.deadline = 0
        del self._calls[call.xid]
        self._name(call)
        self._delayed.append((now + limits.RETRY_NS, call.xid))

    def _rejected(self, call: Call, verdict: int, now: int) -> None:
        if verdict in (RpcVerdict.SYSTEM_ERR, RpcVerdict.PROG_UNAVAIL, RpcVerdict.AUTH_ERROR):
            if now - self._rejected_ns >= QUIET_NS:
                self._log(Level.WARNING, f"the server answers {RpcVerdict(verdict).name}: asking again")
            self._rejected_ns = now
            self._retry(call, now)
        else:
            self._fail(call, f"the server answers {RpcVerdict(verdict).name}")

    def _nfs_error(self, call: Call, status: int, now: int) -> None:
        if status == Status.JUKEBOX:
            self._retry(call, now)
            return
        if status in (Status.STALE, Status.BADHANDLE):
            call.stale_since = call.stale_since or now
            if now - call.stale_since < limits.STALE_WAIT_NS:
                self._retry(call, now)
                if len(self._addresses) > 1:
                    self._next_address()
                    self._lose("it does not know the file")
                return
        known = status in Status._value2member_map_
        self._fail(call, f"NFS3ERR_{Status(status).name}" if known else f"nfsstat3 {status}")

    def _unstable(self, call: Call, now: int) -> None:
        if call.attempts < UNSTABLE_TRIES:
            call.attempts += 1
            self._retry(call, now)
        else:
            self._fail(call, "the server does not write to stable storage (FILE_SYNC)")

    def tick(self, now: int) -> None:
        """Do what is due at `now` (CLOCK_MONOTONIC, ns), and send by that clock until the next event or tick."""
        self._now = now
        if self._state != _UP:
            if now >= self._due_ns:
                if self._state == _CONNECTING:
                    self._lose("connecting took too long")
                else:
                    self._connect(now)
            return
        if self._delayed and self._delayed[0][0] <= now:
            waiting = [entry for entry in self._delayed if entry[0] > now]
            for _when, xid in self._delayed[: len(self._delayed) - len(waiting)]:
                call = self._calls[xid] = self._calls.pop(xid)
                self._enqueue(call)
            self._delayed = waiting
        deadline = self._first_deadline()
        if deadline and now >= deadline:
            self._words[Word.TIMEOUTS] += 1
            self._lose(f"no reply for {limits.CALL_LIMIT_NS // limits.SECOND_NS} seconds")

    def due(self) -> int:
        """When to call `tick` again, 0 if nothing is pending."""
        if self._state != _UP:
            return self._due_ns
        deadline = self._first_deadline()
        if self._delayed:
            return min(self._delayed[0][0], deadline) if deadline else self._delayed[0][0]
        return deadline

    def _first_deadline(self) -> int:
        for call in self._calls.values():
            if call.deadline:
                return call.deadline
        return 0

    def _connect(self, now: int) -> None:
        self._state = _CONNECTING
        self._due_ns = now + limits.CONNECT_LIMIT_NS
        if ":" in self._target.addresses[self._address_index].host:
            # After an IPv4 peer the socket would send its SYN by IPv4's road for ever. A connect that fails at
            # once, as one to the broadcast address does, takes it back to IPv6's (tcp_v6_connect).
            self._call_connect(_BROADCAST)
        code = self._call_connect(self._addresses[self._address_index])
        if code == 0:
            self._established()
        elif code not in (errno.EINPROGRESS, errno.EINTR):
            self._lose(os.strerror(code))

    def _call_connect(self, address: bytes) -> int:
        """0 or the errno. It sends a SYN, or the reset that ends a live connection (tcp_send_active_reset)."""
        self._enter_realtime()
        code = libc.connect(self._socket.fileno(), address)
        self._leave_realtime()
        return code

    def _established(self) -> None:
        words = self._words
        self._state = _UP
        self._writable = True
        self._up_since_ns = self._now
        words[Word.CONNECTED] = 1
        words[Word.ADDRESS_INDEX] = self._address_index
        words[Word.DISCONNECTED_NS] = 0
        if self._lost_reason:
            words[Word.RECONNECTS] += 1
            words[Word.RETRANSMISSIONS] += len(self._calls)
            address = self._target.addresses[self._address_index]
            self._log(Level.NOTICE, f"connected to {address.host} port {address.port} again")
        self._lost_reason = ""
        self._delayed.clear()
        for call in self._calls.values():
            self._enqueue(call)
        self.flush()

    def _lose(self, reason: str) -> None:
        now = time.monotonic_ns()
        words = self._words
        self._call_connect(libc.UNSPECIFIED)
        if self._state == _UP:
            words[Word.CONNECTED] = 0
            words[Word.DISCONNECTED_NS] = now
            self._log(Level.WARNING, f"lost the server: {reason}; waiting for it")
            # A server that takes connections and does nothing with them is no reason to hurry.
            if self._reply_ns >= self._up_since_ns or now - self._up_since_ns > limits.BACKOFF_MAX_NS:
                self._backoff_ns = limits.BACKOFF_FIRST_NS
        else:
            self._next_address()
        self._lost_reason = reason
        self._state = _WAITING
        self._writable = False
        self._queue.clear()
        self._queued_bytes = 0
        self._stream_queued = self._stream_sent = 0
        self._records.reset()
        # Jitter from the clock, so that a fleet of machines does not return to a server in one beat.
        self._due_ns = now + self._backoff_ns // 2 + now // 1000 % self._backoff_ns
        self._backoff_ns = min(2 * self._backoff_ns, limits.BACKOFF_MAX_NS)

    def _next_address(self) -> None:
        # Only from here: the address that served is tried first after a loss, for not every address of a name
        # need lead to a server that has the file.
        self._address_index = (self._address_index + 1) % len(self._addresses)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _drop_sent(queue: list[bytearray | memoryview], sent: int) -> None:
    index = 0
    while sent >= len(queue[index]):
        sent -= len(queue[index])
        index += 1
    if sent:
        queue[index] = memoryview(queue[index])[sent:]
    del queue[:index]
