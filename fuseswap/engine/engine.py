"""swap_rw as a loop: messages from /dev/fuse in, calls to the server out, answers back.

One thread, no tasks, no locks. Each turn reads what the kernel has, submits it to the plug, sends what has a
slot, and takes what the server answered. Once it serves, it makes these system calls and no others: readv and
write(v) on /dev/fuse, sendmsg and recvfrom on its socket, epoll_wait and sched_setscheduler, and after a
lost connection connect and getsockopt. Each other call might allocate memory below reclaim and so wait for the very
page it carries.

| step | may wait | may allocate | may fail with |
|---|---|---|---|
| reading /dev/fuse | no | small objects from the touched heap | ENODEV: the mount is gone, the loop ends |
| plug, reserve | no | small objects | - |
| sending, receiving | no | socket buffers, by the kernel, bounded | connection lost: a wait |
| answering | no | small objects | ENOENT: the request was aborted |
"""

import errno
import mmap
import os
import select
import struct
import time
from collections.abc import Callable
from typing import Final, Protocol

from fuseswap.engine import fuse_wire as wire
from fuseswap.engine import limits
from fuseswap.engine.fuse_wire import (
    FILE_NODE,
    OUT_HEADER,
    TRANSFER_IN,
    WRITE_ANSWER,
    MalformedRequest,
    Opcode,
)
from fuseswap.engine.private_file import PrivateFile, UnsupportedKernel
from fuseswap.engine.spin import Spin
from fuseswap.engine.transport import EVENTS
from fuseswap.swap.counters import Counters, Level, Stage, Word
from fuseswap.swap.plug import Plug
from fuseswap.swap.requests import Call, Request
from fuseswap.swap.reserve import Reserve
from fuseswap.swap.units import PAGE_SIZE

BATCH_MAX: Final = 64
"""Messages read in one turn, so that replies of the server never wait for long."""
PROBE_STEP_NS: Final = 10_000_000
READ_AGAIN_NS: Final = 10_000_000
READ_BUFFER_BYTES_MIN: Final = 8192
"""What the kernel demands of each read, however small the largest request is (FUSE_MIN_READ_BUFFER)."""

_TRANSFER_HEADER_BYTES: Final = 80

# As plain integers: looking up an enumeration's member costs 0.15 us in Python 3.11, eight times per page.
_READ: Final = int(Opcode.READ)
_WRITE: Final = int(Opcode.WRITE)
_READS: Final = int(Word.READS)
_READ_BYTES: Final = int(Word.READ_BYTES)
_WRITES: Final = int(Word.WRITES)
_WRITE_BYTES: Final = int(Word.WRITE_BYTES)
_READ_CALLS: Final = int(Word.READ_CALLS)
_WRITE_CALLS: Final = int(Word.WRITE_CALLS)
_WRITE_CALLS_4K: Final = int(Word.WRITE_CALLS_4K)
_PAGE_BITS: Final = (PAGE_SIZE - 1).bit_length()
_TRACE: Final = int(Word.TRACE)
_REQUESTS: Final = int(Word.REQUESTS)
_REQUESTS_HIGH: Final = int(Word.REQUESTS_HIGH)
_CALLS_IN_FLIGHT: Final = int(Word.CALLS_IN_FLIGHT)
_CALLS_IN_FLIGHT_HIGH: Final = int(Word.CALLS_IN_FLIGHT_HIGH)
_COVERED_READS: Final = int(Word.COVERED_READS)
_MERGED: Final = int(Word.MERGED)
_SHORT_REPLIES: Final = int(Word.SHORT_REPLIES)
_RESERVE_PAGES_USED: Final = int(Word.RESERVE_PAGES_USED)
_RESERVE_PAGES_HIGH: Final = int(Word.RESERVE_PAGES_HIGH)
_monotonic_ns: Final = time.monotonic_ns
_readv: Final = os.readv
_writev: Final = os.writev
_GONE: Final = (errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN)


class Target(Protocol):
    """Where calls go: `transport.Transport`, or `memory_target.MemoryTransport`."""

    @property
    def lost_reason(self) -> str: ...
    def fileno(self) -> int: ...
    def send(self, call: Call) -> None: ...
    def flush(self) -> None: ...
    def on_event(self, events: int) -> None: ...
    def tick(self, now: int) -> None: ...
    def due(self) -> int: ...


TargetFactory = Callable[[Plug, Callable[[list[Request]], None]], Target]


class Engine:
    """Serves one private file over the FUSE connection `device`."""

    def __init__(
        self,
        device: int,
        file: PrivateFile,
        size_bytes: int,
        counters: Counters,
        plug: Plug,
        reserve: Reserve[Request],
        make_target: TargetFactory,
        log: Callable[[Level, str], None],
    ) -> None:
        self._device = device
        self._file = file
        self._size_bytes = size_bytes
        self._words = counters.words
        self._counters = counters
        self._tracing = 0
        self._log = log
        self._plug = plug
        self._reserve = reserve
        self._target = make_target(plug, self._answer)
        self._arena = memoryview(mmap.mmap(-1, reserve.pages * PAGE_SIZE))
        self._header = bytearray(_TRANSFER_HEADER_BYTES)
        self._landing: tuple[int, int] | None = None
        self._iov = [memoryview(self._header), self._arena]
        if (missing := READ_BUFFER_BYTES_MIN - _TRANSFER_HEADER_BYTES - reserve.landing_pages * PAGE_SIZE) > 0:
            self._iov.append(memoryview(bytearray(missing)))
        self._out = bytearray(OUT_HEADER.size)
        self._write_out = bytearray(WRITE_ANSWER.size)
        self._requests = self._requests_max = 0
        # What the words say: storing in shared memory costs little, reading it back as much again.
        self._reads = self._read_bytes = self._writes = self._write_bytes = self._read_calls = 0
        self._spins = (Spin(), Spin())  # for the kernel's next request, for the server's next reply
        self._readable = False
        self._stalled = False
        self._gone = 0
        self._read_again_ns = 0
        self.initialized = False
        self._probes: dict[int, Request] = {}
        self._epoll = select.epoll(2)
        self._epoll_server = select.epoll(2)  # while /dev/fuse, which is level-triggered, is not to be read
        if self._target.fileno() >= 0:
            self._epoll.register(self._target.fileno(), EVENTS)
            self._epoll_server.register(self._target.fileno(), EVENTS)
        self._words[Word.RESERVE_PAGES] = reserve.pages
        self._words[Word.REQUESTS_MAX] = limits.REQUESTS_MAX

    # Before the mount

    def probe(self, limit_ns: int) -> str:
        """Read the header page and write it back, FILE_SYNC: "" if the server does both, else what is wrong.

        A server that is out of reach, or commits less than FILE_SYNC, is found before swap depends on it.
        """
        deadline = _monotonic_ns() + limit_ns
        for is_write, verb in ((False, "read"), (True, "write")):
            memory = self._arena[:PAGE_SIZE]
            request = Request(0, is_write, 0, PAGE_SIZE, memory)
            self._probes[id(request)] = request
            self._plug.submit(request)
            while id(request) in self._probes:
                if _monotonic_ns() > deadline:
                    why = self._target.lost_reason or "no reply"
                    return f"the server did not {verb} the header page in {limit_ns // 10**9} s: {why}"
                self._turn(min(deadline, _monotonic_ns() + PROBE_STEP_NS))
            if request.error:
                return f"the server did not {verb} the header page"
        return ""

    def attach(self) -> None:
        """Begin to listen to the kernel."""
        self._epoll.register(self._device, select.EPOLLIN)
        self._epoll_server.register(self._device, 0)  # EPOLLERR alone: the end of the connection

    def initialize(self, limit_ns: int) -> bool:
        """Serve until FUSE_INIT is answered; False if that takes longer than `limit_ns`.

        UnsupportedKernel if this kernel cannot carry swap safely.
        """
        deadline = _monotonic_ns() + limit_ns
        while not self.initialized and not self._gone and _monotonic_ns() < deadline:
            self._turn(_monotonic_ns() + PROBE_STEP_NS)
        return self.initialized

    def run(self) -> bool:
        """Serve until the mount is gone; True if its connection was aborted, and requests with it."""
        while not self._gone:
            self._turn(0)
        self._publish()
        return self._gone == errno.ECONNABORTED

    def _turn(self, wake_ns: int) -> None:
        self._tracing = self._words[_TRACE]
        now: int = _monotonic_ns()
        self._target.tick(now)
        if self._readable and not self._stalled:
            self._read_kernel()
        self._dispatch()
        due = self._target.due()
        if self._read_again_ns:
            if now >= self._read_again_ns:
                self._read_again_ns = 0
            elif not wake_ns or self._read_again_ns < wake_ns:
                wake_ns = self._read_again_ns
        if wake_ns and (not due or wake_ns < due):
            due = wake_ns
        more = self._readable and not self._stalled
        events = self._epoll.poll(0, 2) if more else self._wait(now, due)
        for descriptor, flags in events:
            if descriptor == self._device:
                self._readable = True
                if flags & select.EPOLLERR:
                    self._learn_end()
            else:
                self._target.on_event(flags)

    def _wait(self, begin: int, due: int) -> list[tuple[int, int]]:
        """What happens next, waiting from `begin` to `due` (0: for ever)."""
        poll = (self._epoll_server if self._stalled or self._read_again_ns else self._epoll).poll
        spin = self._spins[self._requests > 0]
        if limit := spin.limit_ns(self._requests):
            begin = _monotonic_ns()
            end = min(begin + limit, due or begin + limit)
            while (now := _monotonic_ns()) < end:
                if events := poll(0, 2):
                    spin.waited(now - begin)
                    return events
            if end == due:
                return poll(0, 2)
            spin.in_vain()
        self._publish()
        events = poll(max(due - begin, 0) / 1e9 if due else -1, 2)
        if events:
            spin.waited(_monotonic_ns() - begin)
        return events

    def _publish(self) -> None:
        """Store what `status` shows besides events; only before sleeping, so that it costs nothing under load."""
        words = self._words
        plug = self._plug
        words[_REQUESTS] = self._requests
        words[_CALLS_IN_FLIGHT] = len(plug.in_flight)
        words[_CALLS_IN_FLIGHT_HIGH] = plug.in_flight_max
        words[_COVERED_READS] = plug.covered_reads
        words[_MERGED] = plug.merged + plug.joined
        words[_SHORT_REPLIES] = plug.short_replies
        words[_RESERVE_PAGES_USED] = self._reserve.used_pages
        words[_RESERVE_PAGES_HIGH] = self._reserve.used_pages_max

    # From the kernel

    def _read_kernel(self) -> None:
        plug = self._plug
        device = self._device
        iov = self._iov
        header = self._header
        for _ in range(BATCH_MAX):
            landing = self._reserve.landing() if self._requests < limits.REQUESTS_MAX else None
            if landing is None:
                self._stalled = True
                self._words[Word.RESERVE_FULL] += 1
                return
            if landing != self._landing:
                self._landing = landing
                start = landing[0] * PAGE_SIZE
                iov[1] = self._arena[start : start + landing[1] * PAGE_SIZE]
            try:
                size: int = _readv(device, iov)
            except BlockingIOError:
                self._readable = False
                return
            except OSError as error:
                if error.errno in _GONE:
                    self._gone = error.errno
                    return
                if error.errno not in (errno.EINTR, errno.ENOENT):
                    self._log(Level.ERROR, f"reading /dev/fuse: {error.strerror}")
                    self._readable = False
                    self._read_again_ns = _monotonic_ns() + READ_AGAIN_NS
                    return
                continue
            if size >= _TRANSFER_HEADER_BYTES and _READ <= header[4] <= _WRITE:
                self._take_transfer(size)
                if not plug.in_flight:
                    self._dispatch()
                if self._requests <= 1:
                    # It is alone as a rule, and epoll says so for less than a read in vain.
                    self._readable = False
                    return
            else:
                self._take_message(size)

    def _learn_end(self) -> None:
        """Why the connection has ended, also while there is no room to read into: such a read takes nothing."""
        try:
            _readv(self._device, self._iov)
        except OSError as error:
            if error.errno in _GONE:
                self._gone = error.errno

    def _take_transfer(self, size: int) -> None:
        length: int
        opcode: int
        unique: int
        node: int
        handle: int
        offset: int
        count: int
        length, opcode, unique, node, handle, offset, count, _flags = TRANSFER_IN.unpack_from(self._header)
        is_write = opcode == _WRITE
        whole = size == length == (_TRANSFER_HEADER_BYTES + count if is_write else _TRANSFER_HEADER_BYTES)
        if not is_write and offset + count > self._size_bytes:
            # As read(2) at the end of a file; the loop device never asks for it.
            count = max(0, self._size_bytes - offset)
            if not count and whole:
                self._reply(wire.error_answer(unique, 0))
                return
        file = self._file
        if not whole or opcode > 0xFF or not unique:
            refusal = errno.EIO
        elif node != FILE_NODE or (handle != file.write_handle and (is_write or not file.is_open(handle))):
            refusal = errno.ETXTBSY if is_write else errno.EBADF
        elif not count or (offset | count) % PAGE_SIZE or count > self._reserve.landing_pages * PAGE_SIZE:
            refusal = errno.EINVAL
        elif offset + count > self._size_bytes:
            refusal = errno.EFBIG
        else:
            self._accept(unique, is_write, offset, count)
            return
        self._words[Word.REFUSED] += 1
        self._reply(wire.error_answer(unique, refusal))

    def _accept(self, unique: int, is_write: bool, offset: int, count: int) -> None:
        self._requests += 1
        if self._requests > self._requests_max:
            self._words[_REQUESTS_HIGH] = self._requests_max = self._requests
        pages = count // PAGE_SIZE
        request = Request(unique, is_write, offset, count, self._arena)
        if self._tracing:
            self._trace(Stage.ARRIVED, request, 0)
        extent = self._reserve.charge_write(pages) if is_write else self._reserve.charge_read(request, pages)
        if extent is not None and self._submit(request, extent):
            self._answer([request])

    def _submit(self, request: Request, extent: tuple[int, int]) -> bool:
        start = extent[0] * PAGE_SIZE
        request.extent = extent
        request.memory = self._arena[start : start + request.length]
        return self._plug.submit(request)

    def _take_message(self, size: int) -> None:
        data = bytearray()
        for piece in self._iov:
            data += piece[: size - len(data)]
        try:
            request = wire.parse_request(data)
            answer = self._file.answer(request)
        except MalformedRequest as error:
            self._log(Level.ERROR, f"the kernel sent {error}")
            if error.unique:
                self._reply(wire.error_answer(error.unique, errno.EIO))
            return
        except UnsupportedKernel:
            self._reply(wire.error_answer(request.unique, errno.EPROTO))
            if not self.initialized:
                raise
            return
        if answer is not None:
            self._reply(answer)
        if request.opcode == Opcode.INIT:
            self.initialized = True

    # To the server

    def _dispatch(self) -> None:
        plug = self._plug
        target = self._target
        words = self._words
        while (call := plug.next_call()) is not None:
            if call.is_write:
                words[_WRITE_CALLS] += 1
                words[_WRITE_CALLS_4K + max(0, (call.length - 1).bit_length() - _PAGE_BITS)] += 1
            else:
                self._read_calls += 1
                words[_READ_CALLS] = self._read_calls
            target.send(call)
            if self._tracing:
                for request in call.requests:
                    self._trace(Stage.SENT, request, call.xid)
        target.flush()

    # Back to the kernel

    def _answer(self, requests: list[Request]) -> None:
        self._finish(requests)
        self._stalled = False
        while (ready := self._reserve.next_ready()) is not None:
            request, extent = ready
            if self._submit(request, extent):
                self._finish([request])

    def _finish(self, requests: list[Request]) -> None:
        words = self._words
        reserve = self._reserve
        for request in requests:
            if request.unique == 0:
                # A READ's pieces are gone with the next reply, and the WRITE that follows needs them.
                if request.pieces:
                    request.memory[:] = b"".join(request.pieces)
                del self._probes[id(request)]
                continue
            length = request.length
            if self._tracing:
                self._trace(Stage.REPLIED, request, 0)
            if request.error:
                words[Word.WRITE_ERRORS if request.is_write else Word.READ_ERRORS] += 1
                self._reply(wire.error_answer(request.unique, request.error))
            elif request.is_write:
                self._writes += 1
                self._write_bytes += length
                words[_WRITES] = self._writes
                words[_WRITE_BYTES] = self._write_bytes
                WRITE_ANSWER.pack_into(self._write_out, 0, WRITE_ANSWER.size, 0, request.unique, length, 0)
                self._reply(self._write_out)
            else:
                self._reads += 1
                self._read_bytes += length
                words[_READS] = self._reads
                words[_READ_BYTES] = self._read_bytes
                OUT_HEADER.pack_into(self._out, 0, OUT_HEADER.size + length, 0, request.unique)
                self._reply(self._out, request.pieces)
            if self._tracing:
                self._trace(Stage.ANSWERED, request, 0)
            assert request.extent is not None
            reserve.release(request.extent)
            self._requests -= 1

    def _trace(self, stage: Stage, request: Request, xid: int) -> None:
        now = _monotonic_ns()
        self._counters.trace(stage, now, request.unique, request.is_write, request.offset, request.length, xid)

    def _reply(self, head: bytes | bytearray, pieces: tuple[memoryview, ...] = ()) -> None:
        try:
            if pieces:
                _writev(self._device, (head, *pieces) if len(pieces) > 1 else (head, pieces[0]))
            else:
                os.write(self._device, head)
        except OSError as error:
            # ENOENT: the request was aborted meanwhile. The end of the connection is learnt by reading.
            if error.errno != errno.ENOENT and error.errno not in _GONE:
                self._log(Level.ERROR, f"answering the kernel: {error.strerror}")
                if pieces:
                    # A request without an answer would wait for ever; a bare error needs nothing of the kernel.
                    (unique,) = struct.unpack_from("<Q", head, 8)
                    self._reply(wire.error_answer(unique, errno.EIO))
