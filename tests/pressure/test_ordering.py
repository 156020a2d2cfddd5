"""Reads and writes that overlap, end to end: a loop device, the engine's real mount, a server that answers late.

The proxy between engine and server delays and re-orders calls and replies, and cuts the connection now and then,
in the middle of a record too.
"""

import mmap
import os
import random
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from attrs import Factory, define, field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from fuseswap.host.ganesha import GaneshaServer
from fuseswap.swap.units import PAGE_SIZE
from tests.engine.running import Running, nfs_target, running, through
from tests.kit.proxy import Cut, Proxy, Record, Send
from tests.pressure.histories import BEGINNING, Access, explain

PAGES = 24
"""Few, so that requests overlap and touch; page 0 is the header's."""
LENGTH_MAX = 8
FILE_BYTES = 64 * PAGE_SIZE
_TAG_REPEATS = PAGE_SIZE // 8
_AT_SERVER_SECONDS = 0.005


Values = tuple[tuple[int, int], ...]
"""What is in a page: from which word on which value. One pair, if the page is not torn."""


@frozen
class Operation:
    """A direct read or write of whole pages."""

    is_write: bool
    first: int
    count: int


@frozen
class Weather:
    """What the network does."""

    seed: int
    call_seconds_max: float
    reply_seconds_max: float
    cut_probability: float


@define(eq=False)
class Storm:
    """The weather as rules of a proxy.

    A call that the server has begun when its connection ends may be executed after its repetition has been
    answered, and after what was written then: no client of NFSv3 can exclude that (RFC 1813 section 4.5), and it
    is not what is tested here. So the connection is cut only while no call is at the server.
    """

    weather: Weather
    rng: random.Random = field(init=False)
    begins: dict[int, float] = Factory(dict)
    """When each call that is not answered yet reaches the server."""

    @rng.default
    def _rng(self) -> random.Random:
        return random.Random(self.weather.seed)

    def on_call(self, record: Record, _: random.Random) -> Iterable[Send | Cut]:
        delay = self.rng.uniform(0.0, self.weather.call_seconds_max)
        self.begins[record.xid] = time.monotonic() + delay
        return [Send(record.framed(), delay)]

    def on_reply(self, record: Record, _: random.Random) -> Iterable[Send | Cut]:
        self.begins.pop(record.xid, None)
        stream = record.framed()
        soon = time.monotonic() + _AT_SERVER_SECONDS
        if self.rng.random() < self.weather.cut_probability and min(self.begins.values(), default=soon) >= soon:
            self.begins.clear()
            return [Cut(stream[: self.rng.randrange(len(stream))])]
        return [Send(stream, self.rng.uniform(0.0, self.weather.reply_seconds_max))]


@frozen
class Seen:
    """A page read or written, and when.

    A read may find it torn: while a server copies a page for a READ, it may copy another into the same page for a
    WRITE. (The plug lets them meet, because the kernel never reads and writes one swap slot at once. Seen
    twice in 5,000 examples, with no connection cut.) So it is words whose histories are judged; on the disk, when
    all has ended, no page may be torn.
    """

    page: int
    values: Values
    is_write: bool
    begin_ns: int
    end_ns: int

    def of_word(self, word: int) -> Access:
        value = next(value for start, value in reversed(self.values) if start <= word)
        return Access(value, self.is_write, self.begin_ns, self.end_ns)


@define(eq=False)
class Disk:
    """The loop device under test, and the server's file behind it."""

    here: Running
    proxy: Proxy
    file: Path
    values: int = 0
    """Written so far; 0 is in no page."""

    def new_value(self) -> int:
        self.values += 1
        return self.values

    def contents(self) -> list[Values]:
        """What each page on the server holds."""
        with self.file.open("rb") as stream:
            return [values_of(stream.read(PAGE_SIZE), page) for page in range(PAGES)]


def page_of(value: int, page: int) -> bytes:
    return (value << 8 | page).to_bytes(8, "little") * _TAG_REPEATS


def values_of(content: bytes, page: int) -> Values:
    """AssertionError for what was never written to this page."""
    values = [(0, 0)]
    for at, tag in enumerate(struct.unpack(f"<{_TAG_REPEATS}Q", content)):
        value, owner = divmod(tag, 256)
        assert owner == page, f"page {page} holds {tag:x}"
        if value != values[-1][1]:
            values.append((at, value))
    return tuple(values[1:])


@pytest.fixture
def disk(nfs_server: GaneshaServer, nfs_dir: Path) -> Iterator[Disk]:
    target = nfs_target(nfs_server, f"{nfs_dir.name}/disk", FILE_BYTES)
    with Proxy(nfs_server.nfs_port) as proxy, running(through(target, proxy.port), FILE_BYTES) as here:
        here.attach()
        yield Disk(here, proxy, nfs_dir / "disk")
        here.detach()


class Worker(threading.Thread):
    """One thread with a descriptor and a buffer of its own, that does its operations one after the other."""

    def __init__(self, disk: Disk, operations: list[Operation], start: threading.Barrier) -> None:
        super().__init__(daemon=True)
        self.history: list[Seen] = []
        self.error: BaseException | None = None
        self._disk = disk
        self._operations = [(operation, disk.new_value()) for operation in operations]
        self._start = start

    def run(self) -> None:
        descriptor = os.open(self._disk.here.device, os.O_RDWR | os.O_DIRECT)
        try:
            with mmap.mmap(-1, LENGTH_MAX * PAGE_SIZE) as memory:
                self._start.wait()
                for operation, value in self._operations:
                    self._do(descriptor, memory, operation, value)
        except BaseException as error:
            self.error = error
        finally:
            os.close(descriptor)

    def _do(self, descriptor: int, memory: mmap.mmap, operation: Operation, value: int) -> None:
        pages = range(operation.first, operation.first + operation.count)
        size, offset = operation.count * PAGE_SIZE, operation.first * PAGE_SIZE
        if operation.is_write:
            memory[:size] = b"".join(page_of(value, page) for page in pages)
        call = os.pwritev if operation.is_write else os.preadv
        with memoryview(memory) as view, view[:size] as buffer:
            begin = time.monotonic_ns()
            done = call(descriptor, [buffer], offset)
            end = time.monotonic_ns()
        assert done == size
        for number, page in enumerate(pages):
            values: Values = ((0, value),)
            if not operation.is_write:
                values = values_of(memory[number * PAGE_SIZE : (number + 1) * PAGE_SIZE], page)
            self.history.append(Seen(page, values, operation.is_write, begin, end))


def check(disk: Disk, weather: Weather, scripts: list[list[Operation]]) -> None:
    """Run the scripts at once and judge each page's history, the server's disk being the last reader."""
    seen = [Seen(page, ((0, value),), True, BEGINNING, BEGINNING) for page, value in enumerate(fresh(disk))]
    storm = Storm(weather)
    disk.proxy.on_call, disk.proxy.on_reply = storm.on_call, storm.on_reply
    start = threading.Barrier(len(scripts))
    workers = [Worker(disk, script, start) for script in scripts]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive(), "a request does not end"
        if worker.error is not None:
            raise worker.error
        seen += worker.history
    now = time.monotonic_ns()
    for page, values in enumerate(disk.contents()):
        ours = [one for one in seen if one.page == page]
        ours.sort(key=lambda one: one.begin_ns)
        assert len(values) == 1, f"page {page} is torn on the disk: {values}: {ours}"
        ours.append(Seen(page, values, False, now, now))
        for word in {start for one in ours for start, _ in one.values}:
            verdict = explain(one.of_word(word) for one in ours)
            assert not verdict, f"page {page}, word {word}: {verdict}: {ours}"


def fresh(disk: Disk) -> list[int]:
    """Write a new value to every page."""
    values = [disk.new_value() for _ in range(PAGES)]
    with disk.file.open("r+b") as stream:
        stream.write(b"".join(page_of(value, page) for page, value in enumerate(values)))
    return values


operations = st.builds(
    Operation,
    is_write=st.booleans(),
    first=st.integers(0, PAGES - LENGTH_MAX),
    count=st.integers(1, LENGTH_MAX),
)
scripts = st.lists(st.lists(operations, min_size=1, max_size=8), min_size=2, max_size=10)
weathers = st.builds(
    Weather,
    seed=st.integers(0, 1 << 32),
    call_seconds_max=st.sampled_from([0.0, 0.002, 0.01]),
    reply_seconds_max=st.sampled_from([0.0, 0.002, 0.01]),
    cut_probability=st.sampled_from([0.0, 0.0, 0.02, 0.1]),
)


@pytest.mark.parametrize(
    "examples",
    [150, pytest.param(5000, marks=[pytest.mark.torture, pytest.mark.timeout(1200)])],
)
def test_every_page_has_one_order(disk: Disk, examples: int) -> None:
    @settings(max_examples=examples)
    @given(weather=weathers, scripts=scripts)
    def run(weather: Weather, scripts: list[list[Operation]]) -> None:
        check(disk, weather, scripts)

    run()
    # Each of the engine's rules has been at work meanwhile.
    words = disk.here.counters.snapshot()
    assert words["reconnects"] > 0
    assert words["retransmissions"] > 0
    assert words["covered_reads"] > 0
    assert words["merged"] > 0
    assert (words["read_errors"], words["write_errors"]) == (0, 0)
