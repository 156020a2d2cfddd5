#!/usr/bin/env python3
"""Memory that swapping out may count on: the reserve, step by step.

Shows: a small reserve that is filled by reads and writes. Each request is charged once, for all it needs, before
it starts; reads leave a watermark to writes, since writing frees memory and reading takes it; what cannot be
charged waits in a queue and holds nothing. So whatever the order, everything finishes.

Leaves out: the memory itself. In the engine it is one mapping, locked at activation, and the accounting that you
see here is all there is to it (fuseswap/swap/reserve.py).

Needs neither root nor a server: examples/reserve.py
"""

from fuseswap.swap.requests import Extent
from fuseswap.swap.reserve import Reserve

PAGES = 16
WATERMARK = 4
LARGEST = 4


def counted(pages: int) -> str:
    """`1 page`, `4 pages`."""
    return "1 page" if pages == 1 else f"{pages} pages"


class Lesson:
    """A reserve, and who holds which of its pages."""

    def __init__(self) -> None:
        self.reserve: Reserve[str] = Reserve(PAGES, WATERMARK, LARGEST)
        self.held: dict[str, Extent] = {}
        self.say("empty: '.' is a free page")

    def say(self, what: str) -> None:
        """A line: the arena, then what happened."""
        arena = ["."] * PAGES
        for name, (first, pages) in self.held.items():
            arena[first : first + pages] = name * pages
        print(f"[{''.join(arena)}]  {what}")

    def write(self, name: str, pages: int) -> None:
        """A WRITE arrives; its data come with it, so there must be room before /dev/fuse is read."""
        if self.reserve.landing() is None:
            self.say(f"WRITE {name} stays in /dev/fuse: no room for the largest request; the kernel queues")
            return
        self.held[name] = self.reserve.charge_write(pages)
        self.say(f"WRITE {name} of {counted(pages)} has landed")

    def read(self, name: str, pages: int) -> None:
        """A READ asks for room in which its answer is put together."""
        extent = self.reserve.charge_read(name, pages)
        if extent is None:
            self.say(f"READ {name} of {counted(pages)} waits: it would go below the watermark")
            return
        self.held[name] = extent
        self.say(f"READ {name} of {counted(pages)} has its room")

    def answer(self, name: str) -> None:
        """A request is answered; whoever waits may go now."""
        self.reserve.release(self.held.pop(name))
        self.say(f"{name} is answered")
        while (ready := self.reserve.next_ready()) is not None:
            waiting, extent = ready
            self.held[waiting] = extent
            self.say(f"READ {waiting}, the oldest that waited, has its room now")


def main() -> None:
    """The lesson."""
    print(f"A reserve of {PAGES} pages; the largest request has {LARGEST}, and {WATERMARK} are for writes alone.\n")
    lesson = Lesson()
    for name in "abc":
        lesson.read(name, 4)
    lesson.read("d", 1)
    lesson.write("W", 4)
    lesson.write("X", 1)
    lesson.read("e", 1)
    lesson.answer("a")
    lesson.write("X", 1)
    for name in ("W", "b", "c", "d", "e", "X"):
        if name in lesson.held:
            lesson.answer(name)
    statistics = lesson.reserve.statistics()
    print(
        f"\nNothing is held any more: {statistics.used_pages} pages used, at most {statistics.used_pages_max} were;"
        f" {statistics.waited_reads} reads had to wait, and while they did they held nothing."
    )


if __name__ == "__main__":
    main()
