"""The engine's loop in this process, with a SEQPACKET pair in place of /dev/fuse: it never dies, and never lies."""

import errno
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuseswap.engine import limits
from fuseswap.engine.engine import Engine
from fuseswap.engine.memory_target import MemoryTransport
from fuseswap.engine.private_file import PrivateFile, UnsupportedKernel
from fuseswap.swap.counters import COUNTERS_BYTES, Counters, Level, Word
from fuseswap.swap.plug import Plug
from fuseswap.swap.requests import Call, Request
from fuseswap.swap.reserve import Reserve
from fuseswap.swap.target import MemoryTarget

PAGE = 4096
FILE_PAGES = 32
LANDING_PAGES = 8
READ, WRITE, OPEN, RELEASE, INIT, GETATTR, LOOKUP = 15, 16, 14, 18, 26, 3, 1
ROOT, FILE = 1, 2
DIRECT_WRITE = os.O_RDWR | os.O_DIRECT


class HeldTarget:
    """Takes calls and answers them when told."""

    lost_reason = ""

    def __init__(self, plug: Plug, answer: "object") -> None:
        self.plug = plug
        self.answer = answer
        self.calls: deque[Call] = deque()

    def fileno(self) -> int:
        return -1

    def send(self, call: Call) -> None:
        self.calls.append(call)

    def flush(self) -> None:
        pass

    def on_event(self, events: int) -> None:
        pass

    def due(self) -> int:
        return 0

    def tick(self, now: int) -> None:
        pass

    def complete(self) -> None:
        """Answer the oldest call; READs bring zeros."""
        call = self.calls.popleft()
        if call.is_write:
            self.answer(self.plug.wrote(call, call.length))  # type: ignore[operator]
        else:
            self.answer(self.plug.fetched(call, memoryview(bytes(call.length)), False))  # type: ignore[operator]


class Kernel:
    """The other side of the FUSE connection."""

    def __init__(self, *, held: bool = False, reserve_pages: int = 32, slots: int = 4) -> None:
        self.log: list[tuple[Level, str]] = []
        self.side, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.side, device):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, 32, 4 << 20)  # SO_SNDBUFFORCE
        self.device = device
        self.counters = Counters(bytearray(COUNTERS_BYTES))
        self.plug = Plug(slots, LANDING_PAGES * PAGE, LANDING_PAGES * PAGE)
        self.reserve: Reserve[Request] = Reserve(reserve_pages, reserve_pages // 4, LANDING_PAGES)
        self.target: HeldTarget

        def make_target(plug: Plug, answer: object) -> HeldTarget | MemoryTransport:
            if held:
                self.target = HeldTarget(plug, answer)
                return self.target
            return MemoryTransport(MemoryTarget(), FILE_PAGES * PAGE, plug, answer)  # type: ignore[arg-type]

        self.engine = Engine(
            device.fileno(),
            PrivateFile(b"file", FILE_PAGES * PAGE, LANDING_PAGES * PAGE),
            FILE_PAGES * PAGE,
            self.counters,
            self.plug,
            self.reserve,
            make_target,
            lambda level, text: self.log.append((level, text)),
        )
        self.engine.attach()
        self.answers: dict[int, tuple[int, bytes]] = {}
        self.repeats = False
        """Whether uniques may come more than once."""
        self._unique = 0

    def close(self) -> None:
        self.side.close()
        self.device.close()

    def message(self, opcode: int, body: bytes, *, node: int = FILE) -> tuple[int, bytes]:
        """A new unique, and the message."""
        self._unique += 2
        return self._unique, struct.pack("<IIQQIIIHH", 40 + len(body), opcode, self._unique, node, 0, 0, 0, 0, 0) + body

    def transfer(
        self, opcode: int, offset: int, count: int, handle: int, data: bytes = b"", *, node: int = FILE
    ) -> tuple[int, bytes]:
        return self.message(opcode, struct.pack("<QQIIQII", handle, offset, count, 0, 0, 0, 0) + data, node=node)

    def send(self, data: bytes) -> None:
        """Into the engine's queue; turns are taken while it is full."""
        while True:
            try:
                self.side.send(data)
            except BlockingIOError:
                self.turn()
            else:
                return

    def turn(self) -> None:
        self.engine._turn(time.monotonic_ns() + 1)
        while True:
            try:
                answer = self.side.recv(2 << 20)
            except BlockingIOError:
                return
            length, error, unique = struct.unpack_from("<IiQ", answer)
            assert length == len(answer)
            assert -512 < error <= 0
            assert unique not in self.answers or self.repeats, "answered twice"
            self.answers[unique] = -error, answer[16:]

    def ask(self, message: tuple[int, bytes]) -> tuple[int, bytes]:
        """errno and body of the answer."""
        self.answers.pop(message[0], None)
        self.send(message[1])
        for _ in range(20):
            self.turn()
            if message[0] in self.answers:
                return self.answers[message[0]]
        raise AssertionError("no answer")

    def start(self) -> None:
        """FUSE_INIT, as this kernel sends it."""
        offer = struct.pack("<IIIII44x", 7, 45, 131072, 2**32 - 1, 0)
        assert self.ask(self.message(INIT, offer, node=0))[0] == 0
        assert self.engine.initialized

    def open(self, flags: int = DIRECT_WRITE) -> int:
        error, body = self.ask(self.message(OPEN, struct.pack("<II", flags, 0)))
        assert error == 0
        return int(struct.unpack_from("<Q", body)[0])

    def write(self, page: int, data: bytes, handle: int) -> tuple[int, bytes]:
        return self.transfer(WRITE, page * PAGE, len(data), handle, data)

    def read(self, page: int, pages: int, handle: int) -> tuple[int, bytes]:
        return self.transfer(READ, page * PAGE, pages * PAGE, handle)

    def is_alive(self) -> None:
        """It still serves, and holds nothing."""
        for _ in range(80):
            self.turn()
        assert not self.reserve.used_pages
        assert not self.plug.statistics().unfinished_requests
        error, body = self.ask(self.message(GETATTR, bytes(16)))
        assert (error, len(body)) == (0, 104)


@contextmanager
def kernel(*, held: bool = False, reserve_pages: int = 32, slots: int = 4) -> Iterator[Kernel]:
    made = Kernel(held=held, reserve_pages=reserve_pages, slots=slots)
    try:
        yield made
    finally:
        made.close()


# --- wild messages ---

NUMBERS32 = st.sampled_from([0, 1, 15, 16, 80, PAGE, 1 << 16, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
NUMBERS64 = st.sampled_from([0, 1, 2, PAGE, FILE_PAGES * PAGE, 2**63, 2**64 - PAGE, 2**64 - 1]) | st.integers(
    0, 2**64 - 1
)


@st.composite
def wild_messages(draw: st.DrawFn) -> bytes:
    """Noise; or a message whose fields are each right, or plausible, or anything."""
    if draw(st.booleans()):
        return draw(st.binary(min_size=1, max_size=200))
    opcode = draw(st.integers(0, 60) | st.sampled_from([READ, WRITE, READ + 256, WRITE + 256]) | NUMBERS32)
    count = draw(st.sampled_from([0, 1, PAGE, 2 * PAGE, 9 * PAGE]) | NUMBERS32)
    offset = draw(st.integers(0, FILE_PAGES + 1).map(lambda page: page * PAGE) | NUMBERS64)
    body = struct.pack("<QQIIQII", draw(st.integers(0, 3) | NUMBERS64), offset, count, 0, 0, 0, 0)
    body += bytes(min(draw(st.sampled_from([0, count, 7])), 40000))
    if draw(st.booleans()):
        body = body[: draw(st.integers(0, len(body)))]
    length = 40 + len(body) if draw(st.booleans()) else draw(NUMBERS32)
    node = draw(st.sampled_from([ROOT, FILE]) | NUMBERS64)
    return struct.pack("<IIQQIIIHH", length, opcode, draw(NUMBERS64), node, 0, 0, 0, 0, 0) + body


@given(messages=st.lists(wild_messages(), min_size=1, max_size=12), opened=st.booleans())
@settings(max_examples=400)
def test_no_message_ends_the_engine(messages: list[bytes], opened: bool) -> None:
    with kernel() as here:
        here.start()
        if opened:
            here.open()
        here.repeats = True
        for message in messages:
            here.send(message)
            here.turn()
        here.is_alive()


@pytest.mark.parametrize("opcode", [READ, WRITE])
def test_a_transfer_without_a_unique_is_refused(opcode: int) -> None:
    """0 is what the engine's own probes have."""
    with kernel() as here:
        handle = here.open()
        _, message = here.transfer(opcode, 0, PAGE, handle, bytes(PAGE if opcode == WRITE else 0))
        here.send(message[:8] + bytes(8) + message[16:])
        here.turn()
        here.is_alive()


def test_a_second_init_with_nonsense_is_refused() -> None:
    with kernel() as here:
        here.start()
        assert here.ask(here.message(INIT, struct.pack("<IIIII44x", 6, 0, 0, 0, 0), node=0))[0] == errno.EPROTO
        here.is_alive()


def test_a_kernel_that_cannot_carry_swap_is_told_so_before_it_serves() -> None:
    with kernel() as here:
        message = here.message(INIT, struct.pack("<IIIII44x", 7, 45, 131072, 0, 0), node=0)
        here.send(message[1])
        with pytest.raises(UnsupportedKernel, match="lacks"):
            here.engine.initialize(10**9)
        assert not here.engine.initialized


# --- refusals: the contract of the private file ---


def test_transfers_that_the_contract_refuses() -> None:
    with kernel() as here:
        handle = here.open()
        reader = here.open(os.O_RDONLY)
        size = FILE_PAGES * PAGE
        big = (LANDING_PAGES + 1) * PAGE
        cases = [
            (here.transfer(WRITE, 0, PAGE, reader, bytes(PAGE)), errno.ETXTBSY),
            (here.transfer(WRITE, 0, PAGE, 99, bytes(PAGE)), errno.ETXTBSY),
            (here.transfer(READ, 0, PAGE, 99), errno.EBADF),
            (here.transfer(READ, 0, PAGE, handle, node=ROOT), errno.EBADF),
            (here.transfer(WRITE, 512, PAGE, handle, bytes(PAGE)), errno.EINVAL),
            (here.transfer(WRITE, 0, 512, handle, bytes(512)), errno.EINVAL),
            (here.transfer(READ, 0, 0, handle), errno.EINVAL),
            (here.transfer(READ, 0, big, handle), errno.EINVAL),
            (here.transfer(READ, 1, PAGE, handle), errno.EINVAL),
            (here.transfer(WRITE, size, PAGE, handle, bytes(PAGE)), errno.EFBIG),
            (here.transfer(WRITE, size - PAGE, 2 * PAGE, handle, bytes(2 * PAGE)), errno.EFBIG),
            (here.transfer(WRITE, 2**64 - PAGE, PAGE, handle, bytes(PAGE)), errno.EFBIG),
            (here.transfer(WRITE, 0, 2 * PAGE, handle, bytes(PAGE)), errno.EIO),
            (here.transfer(WRITE, 0, PAGE, handle, bytes(2 * PAGE)), errno.EIO),
            (here.transfer(READ, 0, PAGE, handle, bytes(4)), errno.EIO),
        ]
        for number, (message, wanted) in enumerate(cases):
            assert here.ask(message) == (wanted, b""), number
        assert here.counters.words[Word.REFUSED] == len(cases)
        assert here.ask(here.read(0, 1, reader)) == (0, bytes(PAGE))
        here.is_alive()


def test_after_release_the_handle_is_nobody_s() -> None:
    with kernel() as here:
        handle = here.open()
        assert here.ask(here.write(1, b"x" * PAGE, handle))[0] == 0
        assert here.ask(here.message(RELEASE, struct.pack("<QIIQ", handle, 0, 0, 0)))[0] == 0
        assert here.ask(here.write(1, b"y" * PAGE, handle))[0] == errno.ETXTBSY
        assert here.ask(here.read(1, 1, handle))[0] == errno.EBADF
        other = here.open()
        assert here.ask(here.read(1, 1, other)) == (0, b"x" * PAGE)


# --- what is read is what was written ---


@st.composite
def loads(draw: st.DrawFn) -> list[tuple[bool, int, int, int]]:
    """(write?, page, pages, byte), often overlapping."""
    steps = []
    for _ in range(draw(st.integers(1, 40))):
        pages = draw(st.integers(1, LANDING_PAGES))
        page = draw(st.integers(0, 12) | st.integers(0, FILE_PAGES - LANDING_PAGES))
        steps.append((draw(st.booleans()), page, pages, draw(st.integers(1, 255))))
    return steps


@given(steps=loads(), together=st.integers(1, 20), wild=st.lists(st.binary(min_size=1, max_size=120), max_size=3))
@settings(max_examples=150)
def test_pages_among_wild_messages(steps: list[tuple[bool, int, int, int]], together: int, wild: list[bytes]) -> None:
    model = bytearray(FILE_PAGES * PAGE)
    with kernel() as here:
        handle = here.open()
        wanted: dict[int, bytes] = {}
        for number, (is_write, page, pages, byte) in enumerate(steps):
            if is_write:
                data = bytes([byte]) * (pages * PAGE)
                unique, message = here.write(page, data, handle)
                model[page * PAGE : (page + pages) * PAGE] = data
                wanted[unique] = struct.pack("<II", pages * PAGE, 0)
            else:
                unique, message = here.read(page, pages, handle)
                wanted[unique] = bytes(model[page * PAGE : (page + pages) * PAGE])
            here.send(message)
            if wild and number % 7 == 0:
                noise = wild[number % len(wild)]
                if noise[8:16] not in {unique.to_bytes(8, "little") for unique in wanted}:
                    here.send(noise)
            if number % together == 0:
                here.turn()
        for _ in range(60):
            here.turn()
        for unique, body in wanted.items():
            assert here.answers[unique] == (0, body)
        here.is_alive()


# --- the reserve is used up ---


def test_a_full_reserve_stops_reading_and_goes_on() -> None:
    with kernel(held=True, reserve_pages=16) as here:
        handle = here.open()
        uniques = []
        for page in range(0, 30, 2):
            unique, message = here.write(page, bytes([page]) * 2 * PAGE, handle)
            here.send(message)
            uniques.append(unique)
        for _ in range(5):
            here.turn()
        assert here.reserve.used_pages <= 16
        assert here.counters.words[Word.RESERVE_FULL]
        assert here.reserve.landing() is None
        for _ in range(100):
            if here.target.calls:
                here.target.complete()
            here.turn()
        assert [here.answers[unique][0] for unique in uniques] == [0] * 15
        assert here.reserve.used_pages == 0


def test_more_requests_than_are_held_wait_in_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REQUESTS_MAX", 10)
    with kernel(held=True, reserve_pages=32) as here:
        handle = here.open()
        uniques = []
        for page in range(30):
            unique, message = here.read(page, 1, handle)
            here.send(message)
            uniques.append(unique)
        for _ in range(5):
            here.turn()
        assert here.counters.words[Word.REQUESTS_HIGH] == 10
        for _ in range(100):
            if here.target.calls:
                here.target.complete()
            here.turn()
        assert [here.answers[unique][0] for unique in uniques] == [0] * 30
        assert here.counters.words[Word.REQUESTS_HIGH] == 10


def test_many_reads_that_waited_are_covered_at_once() -> None:
    """500 READs wait for the reserve; then all are answered from one unfinished WRITE, one releasing the next."""
    with kernel(held=True, reserve_pages=32, slots=1) as here:
        handle = here.open()
        writes = [here.write(page, b"w" * pages * PAGE, handle) for page, pages in ((0, 8), (16, 8), (10, 4))]
        # 12 pages are free; this READ would take them below the watermark, and the others stand behind it.
        waiting = [here.read(24, 8, handle), *(here.read(16, 1, handle) for _ in range(480))]
        for _, message in (*writes, *waiting):
            here.send(message)
        for _ in range(20):
            here.turn()
        assert here.reserve.statistics().waiting_reads == 481
        for _ in range(20):
            if here.target.calls:
                here.target.complete()
            here.turn()
        assert all(here.answers[unique][0] == 0 for unique, _ in (*writes, *waiting))
        assert here.answers[waiting[-1][0]] == (0, b"w" * PAGE)
        here.is_alive()
