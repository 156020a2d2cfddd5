"""A world around a plug: a kernel that submits, a server that executes when it likes, and a flat model of the
file that knows what each may see. Every step checks all that can be checked, so the proofs only choose steps.

Contents: every 8 bytes say which WRITE they come from and where in the file they belong, so that a page torn
between two WRITEs shows both, and a byte out of place shows too. Buffers are overwritten as soon as the plug
has no more business with them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from errno import EIO, ENOSPC
from functools import lru_cache
from itertools import pairwise
from random import Random
from typing import Any

from fuseswap.swap.plug import Plug
from fuseswap.swap.requests import Call, Request

PAGE = 4096
UNIT = 8
UNITS = PAGE // UNIT
GARBAGE = b"\xee" * PAGE

PAGES_MAX = 64
PLACE_BITS = 16
PLACE_MASK = (1 << PLACE_BITS) - 1
ONES = sum(1 << 64 * unit for unit in range(UNITS))
PLACES = [sum(page * UNITS + unit << 64 * unit for unit in range(UNITS)) for page in range(PAGES_MAX)]


class State(Enum):
    WAITING = auto()
    FLYING = auto()
    DONE = auto()
    FAILED = auto()


@lru_cache(1024)
def page_of(order: int, page: int) -> bytes:
    """The page's content if the WRITE of this order wrote it."""
    return ((order << PLACE_BITS) * ONES + PLACES[page]).to_bytes(PAGE, "little")


def writers(content: memoryview, page: int) -> set[int]:
    """Orders of the WRITEs whose bytes are in a page. Bytes out of place belong to nobody (-1)."""
    places = memoryview(PLACES[page].to_bytes(PAGE, "little")).cast("Q")
    units = zip(content.cast("Q"), places, strict=True)
    return {unit >> PLACE_BITS if unit & PLACE_MASK == place else -1 for unit, place in units}


class Job:
    """What the model knows of one request."""

    def __init__(self, order: int, request: Request) -> None:
        self.order = order
        self.request = request
        first = request.offset // PAGE
        self.pages = range(first, first + request.length // PAGE)
        self.state = State.WAITING
        self.acknowledged = 0
        self.alone = False
        self.blockers: set[Job] = set()
        self.calls_ahead: int | None = None
        self.content = [page_of(order, page) for page in self.pages] if request.is_write else []

    @property
    def end(self) -> int:
        return self.request.offset + self.request.length

    @property
    def ready(self) -> bool:
        return self.state is State.WAITING and not self.blockers


INITIAL = Job(0, Request(0, True, 0, PAGE, memoryview(bytearray(PAGE))))
INITIAL.state = State.DONE


class World:
    def __init__(
        self, pages: int, slots: int, read_pages: int, write_pages: int, plug_class: Callable[..., Plug] = Plug
    ) -> None:
        self.pages = pages
        self.slots = slots
        self.limits = (read_pages * PAGE, write_pages * PAGE)
        self.plug = plug_class(slots, *self.limits)
        self.file = bytearray(b"".join(page_of(0, page) for page in range(pages)))
        self.history: list[list[Job]] = [[INITIAL] for _ in range(pages)]
        self.orders = 0
        self.jobs: dict[int, Job] = {}  # unfinished, by order
        self.flying: list[Call] = []
        self.results: dict[Call, bytes | None] = {}  # executed by the server, not yet answered
        self.receive = bytearray(max(self.limits))
        self.scratch = bytes(self.receive)
        self.merged_calls = 0

    # The kernel

    def submit(self, is_write: bool, page: int, count: int) -> Job:
        self.orders += 1
        order = self.orders
        memory = memoryview(bytearray(GARBAGE * count))
        job = Job(order, Request(order, is_write, page * PAGE, count * PAGE, memory))
        if is_write:
            memory[:] = b"".join(job.content)
        owners = [self.latest_unfinished(page) for page in job.pages]
        queued = self.plug.statistics().queued_calls
        at_once = self.plug.submit(job.request)
        self.jobs[order] = job
        covered = not is_write and None not in owners
        assert at_once == covered, "a read is answered at once if and only if unfinished writes cover it"
        if covered:
            self.finish(job, 0)
            return job
        job.blockers = {owner for owner in owners if owner is not None}
        if not job.blockers:
            job.calls_ahead = queued
        if is_write:
            for page in job.pages:
                self.history[page].append(job)
        return job

    def latest_unfinished(self, page: int) -> Job | None:
        latest = self.history[page][-1]
        return latest if latest.state in (State.WAITING, State.FLYING) else None

    # The engine

    def pump(self) -> None:
        """Send all that may leave."""
        while (call := self.plug.next_call()) is not None:
            self.sent(call)
        ready = any(job.ready for job in self.jobs.values())
        assert not ready or len(self.flying) >= self.slots, "a slot is free, and a request does not leave"

    def sent(self, call: Call) -> None:
        assert len(self.flying) < self.slots, "more calls than slots"
        jobs = [self.jobs[request.unique] for request in call.requests]
        assert all(job.request is request for job, request in zip(jobs, call.requests, strict=True))
        first, last = jobs[0], jobs[-1]
        limit = self.limits[call.is_write]
        assert call.offset == first.request.offset + first.acknowledged
        if first.request.length > limit:
            assert len(jobs) == 1 and call.length == min(first.end - call.offset, limit)
        assert 0 < call.length <= limit
        if len(jobs) > 1:
            self.merged_calls += 1
            assert call.offset + call.length == last.end
            assert not any(job.acknowledged for job in jobs[1:])
            assert not any(job.alone for job in jobs), "a request of a failed call travels alone"
            for before, after in pairwise(jobs):
                assert before.end == after.request.offset, "only neighbours share a call"
        for job in jobs:
            assert job.request.is_write == call.is_write
            assert job.ready, "it overlaps an unfinished write, or is in flight already"
        oldest = min(job.order for job in jobs)
        assert oldest == min(job.order for job in self.jobs.values() if job.ready), "the oldest leaves first"
        for job in jobs:
            job.state = State.FLYING
        for job in self.jobs.values():
            if job.ready and job.calls_ahead is not None:
                assert job.calls_ahead > 0, "more calls left before a request than were queued at submission"
                job.calls_ahead -= 1
        if call.is_write:
            expected = b"".join(content for job in jobs for content in job.content)
            expected = expected[call.offset - first.request.offset :][: call.length]
            assert b"".join(call.payload()) == expected, "the call carries other bytes than its requests"
        self.flying.append(call)
        assert list(self.plug.in_flight) == self.flying, "in flight, in the order of sending"

    # The server

    def execute(self, call: Call, count: int | None = None) -> None:
        """The server does `count` bytes of a call; the answer may come much later, or be lost."""
        count = call.length if count is None else count
        end = call.offset + count
        if call.is_write:
            self.file[call.offset : end] = b"".join(call.payload())[:count]
            self.results[call] = None
        else:
            self.results[call] = bytes(self.file[call.offset : end])

    def reply(self, call: Call, count: int | None = None, eof: bool = False) -> None:
        """An answer of `count` bytes (all, if None) to a call, executed now if it was not before."""
        count = call.length if count is None else count
        if call not in self.results:
            self.execute(call, count)
        result = self.results.pop(call)
        self.flying.remove(call)
        end = call.offset + count
        jobs = [self.jobs[request.unique] for request in call.requests]
        if call.is_write:
            if count == 0:
                self.expect_failure(self.plug.wrote(call, 0), jobs, EIO)
                return
            finished = self.plug.wrote(call, count)
        else:
            assert result is not None
            self.receive[:count] = result[:count]
            finished = self.plug.fetched(call, memoryview(self.receive)[:count], eof)
        rest = [job for job in jobs if job.end > end]
        for job in jobs:
            job.acknowledged = max(job.acknowledged, min(end, job.end) - job.request.offset)
        over = bool(rest) and not call.is_write and (eof or not count)
        expected = jobs if over else jobs[: len(jobs) - len(rest)]
        assert [request.unique for request in finished] == [job.order for job in expected]
        for job in expected:
            error = EIO if job in rest else 0
            if not error and not call.is_write and job.acknowledged - job.request.length <= count:
                assert job.request.pieces[-1].obj is self.receive, "a whole reply is not copied"
        for job in [] if over else rest:
            job.state = State.WAITING
        if rest and not over:
            self.excuse(min(job.order for job in rest))
        for job in expected:
            self.finish(job, EIO if job in rest else 0)
        self.receive[:] = b"\xdd" * len(self.receive)

    def fail(self, call: Call, applied: int = 0) -> None:
        """A definite error, of which the server has executed `applied` bytes nevertheless."""
        if call.is_write and applied:
            self.execute(call, applied)
        self.results.pop(call, None)
        self.flying.remove(call)
        jobs = [self.jobs[request.unique] for request in call.requests]
        self.expect_failure(self.plug.failed(call, ENOSPC), jobs, ENOSPC)

    def expect_failure(self, finished: list[Request], jobs: list[Job], errno: int) -> None:
        if len(jobs) > 1:
            assert not finished, "a shared call's error is nobody's verdict"
            for job in jobs:
                job.state = State.WAITING
                job.alone = True
                self.excuse(job.order)
        else:
            assert [request.unique for request in finished] == [jobs[0].order]
            self.finish(jobs[0], errno)

    def cut(self) -> None:
        """The connection is lost: answers not read are gone, and every call is sent again."""
        assert list(self.plug.in_flight) == self.flying
        self.results.clear()

    def limit(self, slots: int) -> None:
        self.slots = slots
        self.plug.limit(slots)

    # What must hold

    def excuse(self, order: int) -> None:
        """A call was added for an older request: younger ones may see one more call leave before them."""
        for job in self.jobs.values():
            if job.calls_ahead is not None and job.order > order:
                job.calls_ahead += 1

    def finish(self, job: Job, errno: int) -> None:
        request = job.request
        assert request.error == errno
        job.state = State.FAILED if errno else State.DONE
        if request.is_write:
            assert errno or job.acknowledged == request.length, "success for bytes that are not stable"
            request.memory[:] = GARBAGE * len(job.pages)
            for other in self.jobs.values():
                if job in other.blockers:
                    other.blockers.remove(job)
                    if not other.blockers:
                        self.excuse(other.order)
        elif not errno:
            self.check_read(job)
        del self.jobs[job.order]
        for page in job.pages if len(self.history[job.pages[0]]) > 32 else ():
            self.trim(page)
        if not self.jobs:
            self.check_idle()

    def check_read(self, job: Job) -> None:
        data = b"".join(job.request.pieces)
        assert len(data) == job.request.length, "short"
        for index, page in enumerate(job.pages):
            allowed = self.allowed(page, job.order)
            got = data[index * PAGE : (index + 1) * PAGE]
            self.check_page(got, page, allowed)

    def check_page(self, content: bytes | bytearray, page: int, allowed: list[Job]) -> None:
        if not any(content == page_of(writer.order, page) for writer in allowed):
            wrong = writers(memoryview(content), page) - {writer.order for writer in allowed}
            assert not wrong, f"page {page} holds bytes of {wrong}, allowed {[job.order for job in allowed]}"

    def allowed(self, page: int, order: int) -> list[Job]:
        """WRITEs whose bytes a READ of this order may return: concurrent ones, and the latest before it.

        A failed WRITE may have left its bytes or not, so what was there before it is right too.
        """
        allowed = []
        for writer in reversed(self.history[page]):
            allowed.append(writer)
            if writer.order < order and writer.state is not State.FAILED:
                break
        return allowed

    def trim(self, page: int) -> None:
        oldest = min(self.jobs, default=self.orders)
        history = self.history[page]
        for index in range(len(history) - 1, 0, -1):
            if history[index].state is State.DONE and history[index].order < oldest:
                del history[:index]
                return

    def check_idle(self) -> None:
        """Nothing unfinished: the file is what the WRITEs in order of submission made it, the plug is empty."""
        statistics = self.plug.statistics()
        assert not statistics.unfinished_requests and not statistics.queued_calls
        assert not statistics.in_flight_calls and not statistics.blocked_requests
        for page in range(self.pages):
            self.check_page(self.file[page * PAGE : (page + 1) * PAGE], page, self.allowed(page, self.orders + 1))

    def drain(self) -> None:
        """Faults have stopped: everything must finish, in a bounded number of calls."""
        self.pump()
        bound = sum(2 + job.request.length // min(self.limits) for job in self.jobs.values())
        while self.flying:
            assert bound > 0, "no end"
            bound -= 1
            self.reply(self.flying[0])
            self.pump()
        assert not self.jobs, "a request was forgotten"
        self.check_idle()


def check_queue(plug: Any) -> None:
    """Look inside: the queue is in order, its index exact, and no two queued WRITE calls should be one."""
    queue = list(plug._queue)
    assert [call.sequence for call in queue] == sorted({call.sequence for call in queue})
    for call in queue:
        assert call.sequence == min(request.sequence for request in call.requests)
    for is_write in (False, True):
        starts, ends = plug._starts[is_write], plug._ends[is_write]
        for offset, call in starts.items():
            assert call in queue and call.offset == offset and call.is_write == is_write
        for offset, call in ends.items():
            assert call in queue and call.offset + call.length == offset and call.is_write == is_write
            if is_write and offset in starts:
                assert call.length + starts[offset].length > plug._limits[True], "two calls should be one"
        assert set(ends.values()) == set(starts.values()) or not is_write
    unfinished = set(plug._writes.values())
    for page, request in plug._writes.items():
        assert request.offset <= page * PAGE < request.offset + request.length
    assert len(unfinished) <= plug.statistics().unfinished_requests


class Walk:
    """A seeded random walk through a world."""

    def __init__(self, seed: int | str, plug_class: Callable[..., Plug] = Plug) -> None:
        self.random = random = Random(seed)
        self.steps = 0
        pages = random.choice((2, 3, 4, 8, 16))
        slots = random.randint(1, 4)
        self.world = World(pages, slots, random.randint(1, 5), random.randint(1, 5), plug_class)
        self.unfinished_max = random.choice((2, 4, 8, 16))
        self.faults = random.choice((0.0, 0.05, 0.3))
        self.eager = random.choice((0.2, 0.9))
        self.writes = random.choice((0.2, 0.5, 0.8, 1.0))
        self.pages_max = random.choice((1, 2, 3, pages))
        self.following = random.choice((0.0, 0.7))
        self.next_page = 0

    def run(self, steps: int) -> None:
        """`steps` steps under faults (safety), then none (liveness)."""
        for _ in range(steps):
            self.step()
        self.steps += steps
        self.world.drain()

    def step(self) -> None:
        random = self.random
        world = self.world
        if len(world.jobs) < self.unfinished_max and random.random() < 0.55:
            self.submit()
            if random.random() < self.eager:
                world.pump()
                check_queue(world.plug)
        elif world.flying:
            self.serve(world.flying[int(random.random() * len(world.flying))])
        else:
            world.pump()
        if random.random() < 0.02:
            check_queue(world.plug)

    def submit(self) -> None:
        random = self.random
        world = self.world
        count = 1 + int(random.random() * min(self.pages_max, world.pages))
        page = self.next_page if random.random() < self.following else int(random.random() * world.pages)
        page = min(page, world.pages - count)
        self.next_page = (page + random.choice((count, count, -1))) % world.pages
        world.submit(random.random() < self.writes, page, count)

    def serve(self, call: Call) -> None:
        random = self.random
        world = self.world
        if random.random() >= self.faults:
            if random.random() < 0.2 and call not in world.results:
                world.execute(call)
            else:
                world.reply(call)
            return
        fault = random.randrange(6)
        if fault == 0:
            world.fail(call, random.randrange(0, call.length + 1, UNIT))
        elif fault == 1 and call not in world.results:
            world.reply(call, 0, eof=random.random() < 0.5)
        elif fault == 2:
            world.cut()
        elif fault == 3:
            world.limit(random.randint(1, 4))
        elif call not in world.results:
            unit = random.choice((UNIT, PAGE))
            count = random.randrange(min(unit, call.length), call.length + 1, unit)
            world.reply(call, count, eof=fault == 4 and not call.is_write)
        else:
            world.reply(call)
