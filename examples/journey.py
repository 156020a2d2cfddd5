#!/usr/bin/env python3
"""One page's journey: from a process to an NFS server's disk and back, every stage with its time.

Shows: real swap to a private NFS server. One page of one process is pushed out (MADV_PAGEOUT), dropped from the
swap cache (by reclaim of the process's own memory cgroup; until then a touch would find it there and read
nothing), and touched. The times are the engine's own, as `fuseswap trace` prints them, and the process's, on the
same clock; the picture has a lane for each party and a bar for the time that the page spent with it.

Leaves out: what the kernel does inside its bars (swap slot, block layer, loop device, FUSE queue), and load: alone
on the road, a page is neither merged nor queued. Other pages may take the road too, and are not drawn. The first
journeys warm caches; the one drawn is the last.

Needs root and nfs-ganesha; swaps for some seconds, on top of other swap: examples/journey.py [PICTURE.svg]
"""

import argparse
import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

from fuseswap.host.cgroup import MemoryCgroup
from fuseswap.host.ganesha import GaneshaServer
from fuseswap.host.rundir import read_counters
from fuseswap.swap.units import PAGE_SIZE

SWAP_LOCK = Path("/run/lock/fuseswap-swap.lock")
"""Of those that swap for show or test: swap is the whole machine's, and they would disturb each other."""
MADV_PAGEOUT = 21
MCL_CURRENT = 1
JOURNEYS = 5
OUT_SECONDS = 10
"""Of trying to push the page out: it stays when it is not on the LRU lists yet, or the swap is full."""
TRACE_SECONDS = 60
"""The show ends by then, whatever happens."""

LANES = ("process and kernel", "fuseswap's engine", "NFS server and network")
COLOURS = ("#4477aa", "#cc6677", "#228833")


class Bar(NamedTuple):
    """Some us of a page's journey, with one of LANES."""

    lane: int
    start: float
    end: float
    what: str


# --- the process whose page it is ---


def own_a_page() -> None:
    """In the memory cgroup: push the page out and touch it when told; tell the times, and the slot or the fault."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.mmap(-1, PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page[:] = os.urandom(PAGE_SIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    # All else stays in memory, so that this page travels alone.
    if libc.mlockall(MCL_CURRENT) or libc.munlock(ctypes.c_void_p(address), ctypes.c_size_t(PAGE_SIZE)):
        raise OSError(ctypes.get_errno(), "mlockall")
    for command in sys.stdin:
        if command == "out\n":
            page[0] ^= 255
            slot, deadline = None, time.monotonic() + OUT_SECONDS
            while slot is None:
                if time.monotonic() > deadline:
                    raise SystemExit(f"journey: the page stays in memory for {OUT_SECONDS} s: is the swap full?")
                begin = time.monotonic_ns()
                page.madvise(MADV_PAGEOUT)
                end = time.monotonic_ns()
                slot = swap_slot(address)
            print(begin, end, slot, flush=True)
        else:
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
            begin = time.monotonic_ns()
            page[0]
            end = time.monotonic_ns()
            print(begin, end, resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults, flush=True)


def swap_slot(address: int) -> int | None:
    """The page of the swap area where this process's page at `address` is; None if it is in memory.

    Bit 62 of its word in pagemap, and bits 5 to 54 (Documentation/admin-guide/mm/pagemap.rst).
    """
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        word = int.from_bytes(os.pread(pagemap.fileno(), 8, address // PAGE_SIZE * 8), "little")
    return (word & (1 << 55) - 1) >> 5 if word >> 62 & 1 else None


# --- the show ---


def fuseswap(*words: str) -> None:
    """The command, as a user runs it."""
    subprocess.run([sys.executable, "-m", "fuseswap", *words], check=True, stdout=subprocess.DEVNULL)


def take(lock: IO[str]) -> None:
    """Wait until nobody else swaps for show or test."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waiting until nobody else swaps for show or test", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def is_traced(name: str) -> bool:
    counters = read_counters(name)
    return counters is not None and bool(counters.words["trace"])


def travel(name: str) -> tuple[list[Bar], list[Bar]]:
    """The page goes out and comes in; the bars of both ways."""
    trace = subprocess.Popen(
        [sys.executable, "-m", "fuseswap", "trace", name, "--json", "--seconds", str(TRACE_SECONDS)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with MemoryCgroup(f"fuseswap-{name}", 256 << 20) as cgroup, contextlib.ExitStack() as stack:
        stack.callback(trace.wait)
        stack.callback(trace.terminate)
        process = subprocess.Popen(
            cgroup.command([sys.executable, __file__, "--own-a-page"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdin and process.stdout and trace.stdout

        def tell(command: str) -> list[int]:
            assert process.stdin and process.stdout
            print(command, file=process.stdin, flush=True)
            answer = process.stdout.readline()
            if not answer:
                raise SystemExit(1)  # it has said why
            return [int(number) for number in answer.split()]

        tell("touch")
        while trace.poll() is None and not is_traced(name):
            time.sleep(0.01)
        journeys = 0
        while journeys < JOURNEYS:
            left, _, slot = tell("out")
            write = request_of(trace.stdout, "WRITE", slot, left)
            cgroup.reclaim()
            touched, back, faults = tell("touch")
            if faults:  # or else it was still in the swap cache
                read = request_of(trace.stdout, "READ", slot, touched)
                journeys += 1
        process.stdin.close()
        process.wait()
    return bars_of(write, left, write["answered_ns"]), bars_of(read, touched, back)


def request_of(trace: Iterable[str], kind: str, slot: int, since: int) -> dict[str, Any]:
    """What `trace` tells of the first request since then that has the page in that slot."""
    for line in trace:
        request: dict[str, Any] = json.loads(line)
        pages = range(request["offset"] // PAGE_SIZE, (request["offset"] + request["length"]) // PAGE_SIZE)
        if request["kind"] == kind and slot in pages and request["arrived_ns"] >= since:
            return request
    raise SystemExit(f"journey: the trace ends without a {kind} of the page")


def bars_of(journey: dict[str, Any], begin: int, end: int) -> list[Bar]:
    """What `trace` tells of a request, between the process's own times (all of CLOCK_MONOTONIC, in ns)."""
    (call,) = journey["calls"]
    is_write = journey["kind"] == "WRITE"
    times = [begin, journey["arrived_ns"], call["sent_ns"], journey["replied_ns"], journey["answered_ns"], end]
    whats = [
        "madvise to FUSE WRITE" if is_write else "page fault to FUSE READ",
        "makes the call",
        "NFS WRITE, FILE_SYNC" if is_write else "NFS READ",
        "answers the kernel",
        "" if is_write else "back in the process",
    ]
    bars = [
        Bar(lane, (start - begin) / 1000, (stop - begin) / 1000, what)
        for lane, start, stop, what in zip((0, 1, 2, 1, 0), times[:-1], times[1:], whats, strict=True)
    ]
    return bars[:4] if is_write else bars


def table(title: str, bars: list[Bar]) -> str:
    """The same as text."""
    lines = [f"{title}: {bars[-1].end:.0f} us"]
    lines += [f"  {bar.start:7.0f} us  {bar.end - bar.start:6.0f} us  {LANES[bar.lane]}: {bar.what}" for bar in bars]
    return "\n".join(lines)


def picture(panels: list[tuple[str, list[Bar]]]) -> str:
    """An SVG: for each way three lanes, time to the right, a line where the page changes hands."""
    left, width, row, gap = 190, 640, 34, 76
    total = left + width + 190
    height = 20 + len(panels) * (3 * row + gap)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {height}"'
        ' font-family="DejaVu Sans, sans-serif" font-size="13">',
        f'<rect width="{total}" height="{height}" fill="white"/>',
    ]
    for index, (title, bars) in enumerate(panels):
        top = 44 + index * (3 * row + gap)
        scale = width / bars[-1].end
        parts.append(f'<text x="{left}" y="{top - 14}" font-weight="bold">{title}: {bars[-1].end:.0f} us</text>')
        for lane, name in enumerate(LANES):
            y = top + lane * row
            parts.append(f'<rect x="{left}" y="{y}" width="{width + 180}" height="{row - 4}" fill="#f2f2f2"/>')
            parts.append(f'<text x="{left - 10}" y="{y + 20}" text-anchor="end" fill="#333">{name}</text>')
        for number, bar in enumerate(bars):
            x, end, y = left + bar.start * scale, left + bar.end * scale, top + bar.lane * row
            parts.append(
                f'<rect x="{x:.1f}" y="{y + 3}" width="{max(end - x, 1.5):.1f}" height="{row - 10}"'
                f' fill="{COLOURS[bar.lane]}"/>'
            )
            if number + 1 < len(bars):
                y_next = top + bars[number + 1].lane * row
                low, high = min(y, y_next) + row - 7, max(y, y_next) + 3
                parts.append(
                    f'<line x1="{end:.1f}" y1="{low}" x2="{end:.1f}" y2="{high}" stroke="#333" stroke-dasharray="2 2"/>'
                )
            label = f"{bar.what}, {bar.end - bar.start:.0f} us"
            if end - x > _text_width(label):
                parts.append(f'<text x="{x + 6:.1f}" y="{y + 20}" fill="white">{label}</text>')
                continue
            # Up to the next bar of its lane, if there is one.
            room = next((later.start - bar.end for later in bars[number + 1 :] if later.lane == bar.lane), None)
            if room is not None and room * scale < _text_width(label):
                label = f"{bar.end - bar.start:.0f} us"
            parts.append(f'<text x="{end + 6:.1f}" y="{y + 20}" fill="#111">{label}</text>')
        parts += _axis(left, top + 3 * row, scale, bars[-1].end)
    parts.append("</svg>\n")
    return "\n".join(parts)


def _text_width(text: str) -> float:
    return 7.5 * len(text) + 12


def _axis(left: int, y: int, scale: float, last: float) -> list[str]:
    step = next(step * 10**power for power in range(9) for step in (1, 2, 5) if last / (step * 10**power) <= 10)
    parts = [f'<line x1="{left}" y1="{y}" x2="{left + last * scale:.1f}" y2="{y}" stroke="#999"/>']
    for microseconds in range(0, int(last) + 1, step):
        x = left + microseconds * scale
        parts.append(f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + 4}" stroke="#999"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 18}" text-anchor="middle" fill="#555">{microseconds} us</text>')
    return parts


def main() -> None:
    """A server, swap on it, the journey."""
    parser = argparse.ArgumentParser(description="One page's journey to an NFS server's disk and back.")
    parser.add_argument("picture", nargs="?", type=Path, help="where to draw it, as SVG")
    parser.add_argument("--own-a-page", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.own_a_page:
        own_a_page()
        return
    if os.geteuid() != 0:
        raise SystemExit("journey: not root: run it with sudo")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    name = f"journey-{secrets.token_hex(3)}"
    with (
        SWAP_LOCK.open("w") as lock,
        tempfile.TemporaryDirectory(prefix="fuseswap-journey-", dir="/var/tmp") as directory,
        GaneshaServer(Path(directory)) as server,
    ):
        take(lock)
        try:
            fuseswap("up", server.url(name), "--size", "256M", "--priority", "32767")
            out, back = travel(name)
        finally:
            fuseswap("down", name, "--force")
    panels = [("Out: from madvise to the answer", out), ("In: from the touch to the page", back)]
    for title, bars in panels:
        print(table(title, bars))
    if options.picture:
        try:
            options.picture.write_text(picture(panels))
        except OSError as error:
            parser.exit(1, f"{options.picture}: {error.strerror}\n")
        print(f"drawn: {options.picture}")


if __name__ == "__main__":
    main()
