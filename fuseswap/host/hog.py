"""A process that owns more memory than it may keep, and knows what each page must hold.

`python -m fuseswap.host.hog` fills its memory with unique, incompressible pages, reads all of them back in order
and then some at random, compares every byte, and reports as JSON lines. Standard library only: it runs inside
the memory cgroup that it fills.

Page p of generation g is a window of 4096 bytes into a pool of random bytes, 8 bytes further for each page and
each generation. So every aligned word of the memory is different from the word at the same place of any other
page and any other generation: a page exchanged, stale, torn or zeroed cannot compare equal. Both sides of a
comparison are plain copies, so it costs well under a microsecond a page.

A page that cannot be read is a SIGBUS, and ends the process by that signal.
"""

import argparse
import contextlib
import ctypes
import json
import mmap
import os
import random
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Final, NamedTuple, TextIO

from fuseswap.host.bounded import Hung
from fuseswap.swap.units import PAGE_SIZE

_STRIDE: Final = 8
_MCL_CURRENT: Final = 1
_FIRST_WRONG_MAX: Final = 16
_REPORT_SECONDS: Final = 0.1
_CLOCK_PAGES: Final = 64
"""Look at the clock once in so many pages: one swapped-in page takes some 50 us, one resident page 0.5 us."""


class WrongPage(NamedTuple):
    """A page that does not hold what was written to it."""

    offset_bytes: int
    holds: str
    """What it holds instead, as far as that can be told."""


class Report(NamedTuple):
    """How far a phase has come. The last one of a phase has `ended`."""

    phase: str
    """fill, sequential or random."""
    generation: int
    pages: int
    pages_total: int
    seconds: float
    wrong_pages: int
    first_wrong: tuple[WrongPage, ...]
    ended: bool

    @property
    def mb_per_s(self) -> float:
        """10^6 bytes a second."""
        return self.pages * PAGE_SIZE / 1e6 / max(self.seconds, 1e-9)


def command(size_bytes: int, *, seed: int = 0, touches: int = 20_000, generations: int = 1) -> list[str]:
    """The hog as a command, which dies with the thread that starts it. Its standard output is for `reports`."""
    options = {"--size": size_bytes, "--seed": seed, "--touches": touches, "--generations": generations}
    return [
        *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", __name__),
        *(str(word) for option in options.items() for word in option),
    ]


def reports(stream: IO[str], *, silence_seconds_max: float | None = None) -> Iterator[Report]:
    """The reports of a running hog, until it ends.

    `Hung` when it says nothing for so long: a hog whose page does not come back waits where no signal ends it.
    """
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    rest = b""
    while poll.poll(None if silence_seconds_max is None else silence_seconds_max * 1000):
        data = os.read(stream.fileno(), 1 << 16)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            fields = json.loads(line)
            fields["first_wrong"] = tuple(WrongPage(*page) for page in fields["first_wrong"])
            yield Report(**fields)
    raise Hung(f"the hog has made no progress for {silence_seconds_max:g} s")


class Hog:
    """The memory itself. `report` is called about ten times a second, and once when a phase has ended."""

    def __init__(self, size_bytes: int, *, seed: int, generations: int, report: Callable[[Report], None]) -> None:
        self.pages = size_bytes // PAGE_SIZE
        self._random = random.Random(seed)
        self._pool = self._random.randbytes(self.pages * generations * _STRIDE + PAGE_SIZE)
        # What the hog itself needs is not to be among the pages on trial: it would die of a lost one, not count it.
        ctypes.CDLL(None).mlockall(_MCL_CURRENT)
        self.memory = mmap.mmap(-1, self.pages * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # EINVAL: a kernel without huge pages
            self.memory.madvise(mmap.MADV_NOHUGEPAGE)
        self._report = report
        self.wrong_pages = 0

    def expected(self, page_index: int, generation: int) -> bytes:
        """What a page must hold."""
        start = ((generation - 1) * self.pages + page_index) * _STRIDE
        return self._pool[start : start + PAGE_SIZE]

    def fill(self, generation: int) -> None:
        """Write every page."""
        self._run("fill", generation, range(self.pages), self._write)

    def verify(self, generation: int) -> None:
        """Read and compare every page, in order."""
        self._run("sequential", generation, range(self.pages), self._is_wrong)

    def touch(self, generation: int, touches: int) -> None:
        """Read and compare as many pages, drawn at random."""
        drawn = (self._random.randrange(self.pages) for _ in range(touches))
        self._run("random", generation, drawn, self._is_wrong, touches)

    def holds(self, page: bytes) -> str:
        """What a wrong page holds, in words."""
        if not any(page):
            return "zeros"
        sources = {self._source(page[at : at + 512], at) for at in range(0, PAGE_SIZE, 512)}
        return sources.pop() if len(sources) == 1 else f"torn: {', '.join(sorted(sources))}"

    def _source(self, part: bytes, at: int) -> str:
        start = self._pool.find(part)
        number, rest = divmod(start - at, _STRIDE)
        if start < 0 or rest or number < 0:
            return "unknown bytes"
        generation, page_index = divmod(number, self.pages)
        return f"page {page_index} of generation {generation + 1}"

    def _write(self, page_index: int, generation: int) -> bool:
        offset = page_index * PAGE_SIZE
        self.memory[offset : offset + PAGE_SIZE] = self.expected(page_index, generation)
        return False

    def _is_wrong(self, page_index: int, generation: int) -> bool:
        offset = page_index * PAGE_SIZE
        return self.memory[offset : offset + PAGE_SIZE] != self.expected(page_index, generation)

    def _run(
        self,
        phase: str,
        generation: int,
        order: Iterable[int],
        is_wrong: Callable[[int, int], bool],
        total: int | None = None,
    ) -> None:
        first_wrong: list[WrongPage] = []
        wrong_pages = done = 0
        start = reported = time.monotonic()

        def report(*, ended: bool) -> None:
            seconds = time.monotonic() - start
            pages_total = self.pages if total is None else total
            self._report(
                Report(
                    *(phase, generation, done, pages_total, seconds),
                    *(wrong_pages, tuple(first_wrong), ended),
                )
            )

        for page_index in order:
            if is_wrong(page_index, generation):
                wrong_pages += 1
                if len(first_wrong) < _FIRST_WRONG_MAX:
                    offset = page_index * PAGE_SIZE
                    held = self.memory[offset : offset + PAGE_SIZE]
                    first_wrong.append(WrongPage(offset, self.holds(held)))
            done += 1
            if done % _CLOCK_PAGES == 0 and time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                report(ended=False)
        self.wrong_pages += wrong_pages
        report(ended=True)


def print_report(report: Report, stream: TextIO | None = None) -> None:
    """One JSON line."""
    print(json.dumps(report._asdict()), file=stream or sys.stdout, flush=True)


def main() -> int:
    """Run the phases; the exit code is 1 if any page was wrong."""
    parser = argparse.ArgumentParser(prog="hog", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, required=True, metavar="BYTES")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--touches", type=int, default=20_000, help="pages to read at random")
    parser.add_argument("--generations", type=int, default=1, help="how often to fill and read all")
    options = parser.parse_args()
    # If memory does run out, the kernel shall end this process and no other.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    hog = Hog(options.size, seed=options.seed, generations=options.generations, report=print_report)
    for generation in range(1, options.generations + 1):
        hog.fill(generation)
        hog.verify(generation)
        hog.touch(generation, options.touches)
    return 1 if hog.wrong_pages else 0


if __name__ == "__main__":
    sys.exit(main())
