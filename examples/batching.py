#!/usr/bin/env python3
"""Batching seen: the same pages with the plug merging them, and without.

Shows: 96 pages of three processes that are pushed out at once, each 32 in a row, pass through the plug of the engine
(fuseswap/swap/plug.py) to a pretended server: once with wtmax of one page, so that nothing can merge, once with
1 MiB. A call slot that is free is the unplug; while all are busy, neighbours join. No timer holds a page back.
The result is two numbers, and a picture with a bar for each call.

Leaves out: a real server. The pretended one takes 1 ms for a call and 20 us for each page in it, as many calls at
once as there are slots; a real one is less even. `fuseswap bench` measures real ones.

Needs neither root nor a server: examples/batching.py [PICTURE.svg]
"""

import argparse
import heapq
from pathlib import Path
from typing import NamedTuple

from fuseswap.swap.plug import Plug
from fuseswap.swap.requests import Call, Request
from fuseswap.swap.units import PAGE_SIZE

STREAMS = 3
PAGES_EACH = 32
STRIDE = 64  # pages from the beginning of one stream to the next, so that they never meet
SLOTS = 4
ARRIVAL_US = 25
CALL_US = 1000
PAGE_US = 20

COLOURS = ("#4477aa", "#cc6677", "#228833")


class Bar(NamedTuple):
    """A call as the picture shows it; times in us."""

    slot: int
    start: int
    end: int
    stream: int
    pages: int


def arrivals() -> list[tuple[int, int, int]]:
    """(time in us, stream, page of the file): the streams take turns, each writes its own range in order."""
    order = [(page, stream) for page in range(PAGES_EACH) for stream in range(STREAMS)]
    return [(number * ARRIVAL_US, stream, stream * STRIDE + page) for number, (page, stream) in enumerate(order)]


def run(write_bytes_max: int) -> list[Bar]:
    """Let all pages arrive and all calls be answered; the calls in the order of sending."""
    plug = Plug(SLOTS, PAGE_SIZE, write_bytes_max)
    page = memoryview(bytearray(PAGE_SIZE))
    waiting = arrivals()[::-1]
    free_slots = list(range(SLOTS))[::-1]
    replies: list[tuple[int, int, int, Call]] = []
    bars: list[Bar] = []
    now = 0
    while waiting or replies:
        now = min(waiting[-1][0] if waiting else replies[0][0], replies[0][0] if replies else waiting[-1][0])
        while waiting and waiting[-1][0] <= now:
            _, _, number = waiting.pop()
            plug.submit(Request(number + 1, True, number * PAGE_SIZE, PAGE_SIZE, page))
        while replies and replies[0][0] <= now:
            _, _, slot, call = heapq.heappop(replies)
            plug.wrote(call, call.length)
            free_slots.append(slot)
        while (sent := plug.next_call()) is not None:
            slot = free_slots.pop()
            pages = sent.length // PAGE_SIZE
            end = now + CALL_US + pages * PAGE_US
            heapq.heappush(replies, (end, len(bars), slot, sent))
            bars.append(Bar(slot, now, end, sent.offset // PAGE_SIZE // STRIDE, pages))
    return bars


def picture(panels: list[tuple[str, list[Bar]]]) -> str:
    """An SVG: for each panel one row for each slot, time to the right, a bar for each call."""
    left, width, row, gap = 70, 820, 24, 70
    last = max(bar.end for _, bars in panels for bar in bars)
    scale = width / last
    height = 40 + len(panels) * (SLOTS * row + gap)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 30} {height}"'
        ' font-family="DejaVu Sans, sans-serif" font-size="13">',
        f'<rect width="{left + width + 30}" height="{height}" fill="white"/>',
    ]
    for index, (title, bars) in enumerate(panels):
        top = 40 + index * (SLOTS * row + gap)
        parts.append(f'<text x="{left}" y="{top - 14}" font-weight="bold">{title}</text>')
        for slot in range(SLOTS):
            y = top + slot * row
            parts.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end" fill="#555">slot {slot + 1}</text>')
        for bar in bars:
            x, y = left + bar.start * scale, top + bar.slot * row
            wide = (bar.end - bar.start) * scale
            parts.append(
                f'<rect x="{x:.1f}" y="{y + 1}" width="{wide - 1:.1f}" height="{row - 3}"'
                f' fill="{COLOURS[bar.stream]}"/>'
            )
            parts.append(
                f'<text x="{x + wide / 2:.1f}" y="{y + 16}" text-anchor="middle" fill="white">{bar.pages}</text>'
            )
        bottom = top + SLOTS * row
        parts.append(f'<line x1="{left}" y1="{bottom}" x2="{left + width}" y2="{bottom}" stroke="#999"/>')
        for milliseconds in range(0, last // 1000 + 1, 5):
            x = left + milliseconds * 1000 * scale
            parts.append(f'<line x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}" stroke="#999"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" fill="#555">{milliseconds} ms</text>'
            )
    note = "A bar is one WRITE call, the number its pages; a colour is one process."
    parts.append(f'<text x="{left}" y="{height - 8}" fill="#555">{note}</text>')
    parts.append("</svg>\n")
    return "\n".join(parts)


def main() -> None:
    """Run both, print the difference, draw it if a file is named."""
    parser = argparse.ArgumentParser(description="The same pages with the plug merging them, and without.")
    parser.add_argument("picture", nargs="?", type=Path, help="where to draw it, as SVG")
    options = parser.parse_args()
    panels = []
    for what, write_bytes_max in (("Without merging", PAGE_SIZE), ("With merging", 1 << 20)):
        bars = run(write_bytes_max)
        last = max(bar.end for bar in bars)
        largest = max(bar.pages for bar in bars)
        title = (
            f"{what}: {len(bars)} calls of at most {largest} page{'s' * (largest > 1)}, done after {last / 1000:.1f} ms"
        )
        print(title)
        panels.append((title, bars))
    if options.picture:
        try:
            options.picture.write_text(picture(panels))
        except OSError as error:
            parser.exit(1, f"{options.picture}: {error.strerror}\n")
        print(f"drawn: {options.picture}")


if __name__ == "__main__":
    main()
