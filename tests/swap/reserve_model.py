"""A world around a reserve: a kernel with messages, an engine that reads them as the reserve allows, answers in
any order, and a map of the arena that knows whose every page is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import groupby
from random import Random
from typing import Any

from fuseswap.swap.requests import Extent
from fuseswap.swap.reserve import Reserve

FREE = -1


class ReserveWorld:
    """Requests are numbers in the order in which the kernel sends them."""

    def __init__(
        self, pages: int, watermark: int, landing: int, reserve_class: Callable[..., Reserve[int]] = Reserve
    ) -> None:
        self.reserve = reserve_class(pages, watermark, landing)
        self.pages = pages
        self.watermark = watermark
        self.landing_pages = landing
        self.map = [FREE] * pages
        self.kernel: deque[tuple[int, bool, int]] = deque()  # (number, is_write, pages), not yet read
        self.sent = 0
        self.waiting: deque[tuple[int, int]] = deque()
        self.passed = 0
        self.charged: dict[int, Extent] = {}
        self.sizes: dict[int, tuple[bool, int]] = {}
        self.answered: list[int] = []

    # The kernel

    def send(self, is_write: bool, pages: int) -> None:
        self.kernel.append((self.sent, is_write, min(pages, self.landing_pages)))
        self.sent += 1

    # The engine

    def read_message(self) -> bool:
        """Offer a landing room and read one message. False when there is none, or no room."""
        room = self.reserve.landing()
        passed_too_much = bool(self.waiting) and self.passed >= self.pages
        fits = self.longest_free() >= self.landing_pages
        assert (room is not None) == (fits and not passed_too_much), "a landing room is there, or is not"
        if room is None:
            assert self.charged, "nothing will ever be released, and no message can be read"
            return False
        first, count = room
        assert count == self.landing_pages and self.map[first : first + count] == [FREE] * count
        if not self.kernel:
            return False
        number, is_write, pages = self.kernel.popleft()
        self.sizes[number] = is_write, pages
        if is_write:
            self.passed += pages if self.waiting else 0
            extent: Extent | None = self.reserve.charge_write(pages)
            assert extent == (first, pages), "the data have landed elsewhere"
        else:
            at_once = not self.waiting and self.read_fits(pages)
            extent = self.reserve.charge_read(number, pages)
            assert (extent is not None) == at_once
        if extent is None:
            self.waiting.append((number, pages))
        else:
            self.take(number, extent)
        self.check()
        return True

    def answer(self, number: int) -> None:
        extent = self.charged.pop(number)
        first, pages = extent
        assert self.map[first : first + pages] == [number] * pages, "somebody else wrote there"
        self.map[first : first + pages] = [FREE] * pages
        self.reserve.release(extent)
        self.answered.append(number)
        self.check()
        while True:
            fits = bool(self.waiting) and self.read_fits(self.waiting[0][1])
            ready = self.reserve.next_ready()
            assert (ready is not None) == fits, "the oldest waiting read goes as soon as it fits"
            if ready is None:
                break
            assert ready[0] == self.waiting.popleft()[0], "a read overtook another"
            self.passed = 0
            self.take(*ready)
            self.check()

    def take(self, number: int, extent: Extent) -> None:
        is_write, pages = self.sizes[number]
        first, count = extent
        assert count == pages and self.map[first : first + count] == [FREE] * count
        self.map[first : first + count] = [number] * count
        self.charged[number] = extent
        assert is_write or self.map.count(FREE) >= self.watermark, "a read took what is kept for writes"

    def drain(self, random: Random | None = None) -> None:
        """Answer everything; nothing may be left, however it went before."""
        while True:
            while self.read_message():
                pass
            if not self.charged:
                break
            numbers = list(self.charged)
            self.answer(random.choice(numbers) if random else numbers[0])
        assert not self.kernel and not self.waiting
        assert sorted(self.answered) == list(range(self.sent))
        statistics = self.reserve.statistics()
        assert statistics.used_pages == statistics.waiting_reads == 0

    # What must hold

    def runs(self) -> dict[int, int]:
        """Free runs: first page -> pages."""
        runs = {}
        for free, group in groupby(range(self.pages), key=lambda page: self.map[page] == FREE):
            pages = list(group)
            if free:
                runs[pages[0]] = len(pages)
        return runs

    def longest_free(self) -> int:
        return max(self.runs().values(), default=0)

    def read_fits(self, pages: int) -> bool:
        return pages <= self.longest_free() and self.map.count(FREE) - pages >= self.watermark

    def check(self) -> None:
        reserve: Any = self.reserve
        runs = self.runs()
        assert reserve._starts == runs
        assert reserve._ends == {first + pages: first for first, pages in runs.items()}
        assert reserve.used_pages == self.pages - self.map.count(FREE)
        assert reserve.used_pages_max >= reserve.used_pages
        assert reserve.statistics().waiting_reads == len(self.waiting)


def walk(seed: int | str, steps: int, reserve_class: Callable[..., Reserve[int]] = Reserve) -> None:
    """A seeded random walk: a random arena, a random load, then every request must finish."""
    random = Random(seed)
    landing = random.randint(1, 8)
    watermark = random.choice((0, 1, landing, random.randint(0, 12)))
    pages = landing + watermark + random.choice((0, 1, random.randint(0, 40)))
    world = ReserveWorld(pages, watermark, landing, reserve_class)
    writes = random.choice((0.1, 0.5, 0.9))
    pages_max = random.choice((1, 2, landing))
    for _ in range(steps):
        choice = random.random()
        if choice < 0.4 and len(world.kernel) < 8:
            world.send(random.random() < writes, random.randint(1, pages_max))
        elif choice < 0.7 or not world.charged:
            world.read_message()
        else:
            world.answer(random.choice(list(world.charged)))
    world.drain(random)
