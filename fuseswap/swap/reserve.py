"""The reserve: who may use which pages of the arena, a fixed piece of memory locked at activation.

It takes the place of what the kernel's swap path has in PF_MEMALLOC and mempools (CONTRACT.md, patches 15, 17
and 20 of the 2022 series). This is the accounting only; the memory is the engine's.

- A WRITE's data arrive together with the news of it, so the engine offers the kernel a *landing room* of the
  largest request before each read of /dev/fuse, and charges what really came: the first pages of that room.
- A READ is charged room for its exact length, in which short replies are put together.
- Each request is charged once, for all it needs up to its answer, before it starts. A READ that cannot be
  charged waits in a queue, and holds nothing. So nothing waits for memory while holding some.
- WRITEs may use the whole arena, READs only what lies above the watermark: writing frees memory, reading
  takes it.

Why every request finishes
--------------------------
What is charged needs nothing more from here, so it is released when the server answers. When all is released,
the arena is one free extent; the constructor has seen to it that a landing room (landing_pages <= pages) and
the largest READ (landing_pages + watermark_pages <= pages) fit then. So `landing` answers None, and a READ
waits, only while something is charged. READs are served in order of arrival, none overtakes another. WRITEs
may overtake waiting READs, but when they have taken as many pages as the arena has, `landing` answers None
until the oldest READ has been charged, which happens at the latest when everything charged then is released.
So **a READ is overtaken by less than pages + landing_pages pages of WRITEs for each READ in its queue.**

Where extents lie
-----------------
A bump allocator: extents are cut from the beginning of the *current* free extent. Freed neighbours join at
once (two dicts, by start and by end). The current extent is kept as long as a landing room fits into it; when
none fits anywhere, it is the largest. Requests are short-lived and answered nearly in order, so the free
memory stays in few pieces; a lone request gets the same pages, warm in the cache, again and again.
Cost: a constant number of dict operations, and a search for the largest free extent only when the
current one has become too small for a landing room.
"""

from collections import deque
from typing import Generic, TypeVar

from attrs import frozen

from fuseswap.swap.requests import Extent
from fuseswap.swap.units import PAGE_SIZE

T = TypeVar("T")

RAM_SHARE = 64
"""The arena takes at most 1/64 of the machine's RAM: 4 MiB of 256 MiB, 16 MiB of 1 GiB."""


@frozen
class ReserveStatistics:
    """Pages, and how often something had to wait, since the reserve was made."""

    pages: int
    used_pages: int
    used_pages_max: int
    waiting_reads: int
    waiting_reads_max: int
    waited_reads: int
    """READs that could not be charged at once."""
    refused_landings: int
    """Times that the engine had to stop reading /dev/fuse."""


class Reserve(Generic[T]):
    """Accounting of an arena. `T` is whatever stands for a waiting READ (a Request)."""

    __slots__ = (
        "_charged",
        "_current",
        "_current_pages",
        "_ends",
        "_offered",
        "_passed_pages",
        "_starts",
        "_waited",
        "_waiting",
        "_waiting_max",
        "landing_pages",
        "pages",
        "refused_landings",
        "used_pages",
        "used_pages_max",
        "watermark_pages",
    )

    def __init__(self, pages: int, watermark_pages: int, landing_pages: int) -> None:
        """An arena of `pages`, of which READs leave `watermark_pages` to WRITEs.

        No request is larger than `landing_pages` (max_write and max_read of FUSE_INIT).

        ValueError if the largest READ could never be charged.
        """
        if landing_pages < 1 or watermark_pages < 0:
            raise ValueError(f"landing room of {landing_pages} pages, watermark of {watermark_pages} pages")
        if landing_pages + watermark_pages > pages:
            raise ValueError(
                f"a reserve of {pages} pages cannot hold a request of {landing_pages} pages"
                f" and {watermark_pages} pages for writes"
            )
        self.pages = pages
        self.watermark_pages = watermark_pages
        self.landing_pages = landing_pages
        self._starts = {0: pages}  # free extents: first page -> pages
        self._ends = {pages: 0}  # free extents: page after the last -> first page
        self._current = 0
        self._current_pages = pages
        self._offered = False
        self._charged: dict[int, int] = {}  # first page -> pages
        self._waiting: deque[tuple[T, int]] = deque()
        self._passed_pages = 0  # charged to WRITEs since the oldest waiting READ became the oldest
        self.used_pages = self.used_pages_max = 0
        self._waiting_max = self._waited = self.refused_landings = 0

    def landing(self) -> Extent | None:
        """Room for whatever the next read of /dev/fuse brings; None: stop reading until a release.

        Nothing is charged. The offer stands until the next charge or release.
        """
        if self._current_pages < self.landing_pages or self._passed_pages >= self.pages:
            self._offered = False
            self.refused_landings += 1
            return None
        self._offered = True
        return self._current, self.landing_pages

    def charge_write(self, pages: int) -> Extent:
        """The first `pages` of the landing room, in which a WRITE has just arrived.

        ValueError if no landing room is on offer, or it is smaller.
        """
        if not self._offered or not 0 < pages <= self.landing_pages:
            raise ValueError(f"a write of {pages} pages did not come into a landing room")
        if self._waiting:
            self._passed_pages += pages
        return self._take(pages)

    def charge_read(self, read: T, pages: int) -> Extent | None:
        """Room for a READ of `pages`; None: it waits its turn, and `next_ready` will bring it.

        ValueError if it is larger than any request may be.
        """
        if not 0 < pages <= self.landing_pages:
            raise ValueError(f"a read of {pages} pages; the largest request has {self.landing_pages}")
        if not self._waiting and self._fits(pages):
            return self._take(pages)
        waiting = self._waiting
        waiting.append((read, pages))
        self._waited += 1
        if len(waiting) > self._waiting_max:
            self._waiting_max = len(waiting)
        return None

    def next_ready(self) -> tuple[T, Extent] | None:
        """The oldest waiting READ, charged now; None if none waits or memory is short.

        Ask after releasing, until None, before `landing`.
        """
        waiting = self._waiting
        if not waiting or not self._fits(waiting[0][1]):
            return None
        read, pages = waiting.popleft()
        self._passed_pages = 0
        return read, self._take(pages)

    def release(self, extent: Extent) -> None:
        """Give back what was charged, whole. ValueError if it is not charged."""
        first, pages = extent
        charged: int = self._charged.get(first, -1)
        if charged != pages:
            raise ValueError(f"extent {first}+{pages} is not charged")
        del self._charged[first]
        self._offered = False
        self.used_pages -= pages
        end = first + pages
        starts = self._starts
        ends = self._ends
        following: int = starts.pop(end, 0)
        if following:
            end += following
        if first in ends:
            first = ends.pop(first)
        pages = end - first
        starts[first] = pages
        ends[end] = first
        # The current extent has grown, or is too small for a landing room while this one is larger.
        if first <= self._current < end or self._current_pages < min(pages, self.landing_pages):
            self._current = first
            self._current_pages = pages
        if not self.used_pages:
            assert not self._charged and len(starts) == len(ends) == 1
            assert starts[0] == self._current_pages == self.pages and not self._current

    def statistics(self) -> ReserveStatistics:
        """A frozen copy of the counters."""
        return ReserveStatistics(
            pages=self.pages,
            used_pages=self.used_pages,
            used_pages_max=self.used_pages_max,
            waiting_reads=len(self._waiting),
            waiting_reads_max=self._waiting_max,
            waited_reads=self._waited,
            refused_landings=self.refused_landings,
        )

    def _fits(self, pages: int) -> bool:
        free = self.pages - self.used_pages
        return pages <= self._current_pages and free - pages >= self.watermark_pages

    def _take(self, pages: int) -> Extent:
        """Cut `pages` from the beginning of the current extent, which has them."""
        first = self._current
        rest = self._current_pages - pages
        assert rest >= 0
        starts = self._starts
        del starts[first]
        self._charged[first] = pages
        self._offered = False
        self.used_pages += pages
        if self.used_pages > self.used_pages_max:
            self.used_pages_max = self.used_pages
        self._current = first + pages
        self._current_pages = rest
        if rest:
            starts[first + pages] = rest
            self._ends[first + pages + rest] = first + pages
        else:
            del self._ends[first + pages]
        if rest < self.landing_pages and len(starts) > (rest > 0):
            self._current = max(starts, key=starts.__getitem__)
            self._current_pages = starts[self._current]
        return first, pages


def reserve_pages(request_bytes_max: int, calls_in_flight: int, ram_bytes: int) -> int:
    """Pages of the arena by default: the largest request times the calls in flight, within 1/64 of the RAM.

    With 1 MiB and 16 calls: 4 MiB on a machine of 256 MiB, 16 MiB from 1 GiB on. Never less than four of the
    largest requests, of which the watermark keeps one for WRITEs.
    """
    wanted = request_bytes_max * calls_in_flight
    return max(min(wanted, ram_bytes // RAM_SHARE), 4 * request_bytes_max) // PAGE_SIZE


def watermark_pages(pages: int) -> int:
    """Pages that READs leave to WRITEs by default: a quarter."""
    return pages // 4
