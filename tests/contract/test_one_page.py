"""One page, and a few, from a process to the server's disk and back, without pressure.

What the 2022 series brought is shown on the way: fuseswap/swap/patches.py names these tests.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from errno import ETXTBSY
from pathlib import Path

import pytest

from fuseswap.cli.status import describe_all
from fuseswap.host import processes, rundir
from fuseswap.host.ganesha import GaneshaServer
from fuseswap.swap.units import PAGE_SIZE
from tests.contract.pages import LiveSwap, live_swap, page_on, pages
from tests.engine.nfs_codec import FILE_SYNC, NFS3ERR_NOSPC, Arguments, decode_call, failure
from tests.kit.proxy import READ, WRITE, Cut, Record, Send, forward, frame
from tests.kit.wait import wait_until

pytestmark = pytest.mark.swap

READ_AHEAD = 1 << int(Path("/proc/sys/vm/page-cluster").read_text())
"""Pages that the kernel asks for at most when one is touched (swapin_readahead in mm/swap_state.c)."""
NEIGHBOURS = 32
CUTS = 4
SETATTR = 2
"""NFSPROC3_SETATTR (RFC 1813 section 3.3.2)."""


@pytest.fixture
def swap(nfs_server: GaneshaServer, nfs_dir: Path) -> Iterator[LiveSwap]:
    with live_swap(nfs_server, nfs_dir) as swap:
        yield swap


def shape(calls: list[Arguments]) -> list[tuple[int, int, int]]:
    """Procedure, bytes, and for a WRITE stable_how (RFC 1813 section 3.3.7)."""
    return [(call.procedure, call.count, call.stable) for call in calls]


def test_one_page_out_and_in_and_out_again(swap: LiveSwap) -> None:
    """Each step as the engine's trace has it, on the wire, and in the server's file."""
    with pages(1) as page:
        with swap.journeys() as journeys, swap.calls() as calls:
            page.out()
        (write,), (first,) = journeys, calls
        assert (write.is_write, write.length) == (True, PAGE_SIZE)
        assert shape(calls) == [(WRITE, PAGE_SIZE, FILE_SYNC)]
        # It is answered, so it lies on the server's disk, and nothing of it is left here.
        assert (first.offset, first.data[:16]) == (write.offset, page.begin(0))
        assert page_on(swap, write) == page.begin(0)
        words = swap.words()
        assert (words["reserve_pages_used"], words["calls_in_flight"], words["requests"]) == (0, 0, 0)

        page.leave_cache()
        with swap.journeys() as journeys, swap.calls() as calls:
            assert page.are_right()
        (read,) = journeys
        assert (read.is_write, read.offset, read.length) == (False, write.offset, PAGE_SIZE)
        assert [(call.procedure, call.offset, call.count) for call in calls] == [(READ, write.offset, PAGE_SIZE)]

        with swap.journeys() as journeys, swap.calls() as calls:
            page.out()
        assert not journeys and not calls, "a clean page that is on swap needs no second write"

        page.dirty()
        with swap.journeys() as journeys, swap.calls() as calls:
            page.out()
            assert page.are_right()
        (again,) = journeys
        assert again.is_write, "and the touch found it in the swap cache"
        assert shape(calls) == [(WRITE, PAGE_SIZE, FILE_SYNC)]
        assert page_on(swap, again) == calls[0].data[:16] == page.begin(0) != first.data[:16]


def test_neighbours_travel_together(swap: LiveSwap) -> None:
    with pages(NEIGHBOURS) as some:
        with swap.calls() as calls:
            some.out()
        assert shape(calls) == [(WRITE, NEIGHBOURS * PAGE_SIZE, FILE_SYNC)]

        some.leave_cache()
        with swap.calls() as calls:
            assert some.are_right()
        assert {call.procedure for call in calls} == {READ}
        assert sum(call.count for call in calls) == NEIGHBOURS * PAGE_SIZE, "each page once"
        assert max(call.count for call in calls) == READ_AHEAD * PAGE_SIZE
        assert len(calls) < NEIGHBOURS / 2


def test_many_pages_travel_together_and_cost_no_fault(swap: LiveSwap) -> None:
    def late(record: Record, _: random.Random) -> Iterable[Send | Cut]:
        return [Send(record.framed(), delay_seconds=0.01)]

    with pages(1024) as some:
        some.out(0, 64)
        with swap.no_faults():
            some.dirty()
            some.out()
            some.leave_cache()
            assert some.are_right()
            swap.settle()

        swap.proxy.on_reply = late
        with swap.journeys() as writes:
            some.dirty()
            some.out()
        swap.proxy.on_reply = forward
        some.leave_cache()
        with swap.journeys() as reads:
            assert some.are_right()

    assert {journey.is_write for journey in writes} == {True}
    calls = {leg.xid for journey in writes for leg in journey.legs}
    assert len(calls) < 1024 // READ_AHEAD
    assert 1 < swap.words()["calls_in_flight_high"] <= swap.words()["slots"]

    assert {journey.is_write for journey in reads} == {False}
    assert sum(journey.length for journey in reads) >= 1024 * PAGE_SIZE
    assert len(reads) <= 2 * 1024 // READ_AHEAD


def test_pages_move_while_the_filesystem_stands_still(swap: LiveSwap) -> None:
    """A chmod of the swap file waits in the filesystem process, and no page waits for it."""
    mounted = rundir.filesystem_mountpoint(swap.name) / swap.name
    pid = filesystem_of(swap.name)
    with pages(256) as some:
        os.kill(pid, signal.SIGSTOP)
        try:
            chmod = subprocess.Popen([sys.executable, "-c", f"import os; os.chmod({str(mounted)!r}, 0o600)"])
            some.out()
            some.leave_cache()
            assert some.are_right()
            assert swap.words()["writes"] > 0
            assert swap.words()["reads"] > 0
            assert chmod.poll() is None, "it waits"
        finally:
            os.kill(pid, signal.SIGCONT)
        assert chmod.wait(20) == 0
        # Ordinary writes are refused; they are another road.
        with mounted.open("r+b") as file, pytest.raises(OSError, match="busy") as refused:
            os.write(file.fileno(), b"x")
        assert refused.value.errno == ETXTBSY


def test_a_stuck_chmod_delays_no_page(swap: LiveSwap) -> None:
    """The server keeps each SETATTR to itself. Of the swap file itself chmod is answered from memory."""
    mounted = rundir.filesystem_mountpoint(swap.name)
    neighbour = mounted / f"{swap.name}-neighbour"
    neighbour.touch()
    held = threading.Event()

    def hold(record: Record, _: random.Random) -> Iterable[Send | Cut]:
        if record.procedure != SETATTR:
            return [Send(record.framed())]
        held.set()
        return []

    swap.proxy.on_call = hold
    with pages(256) as some:
        chmod = subprocess.Popen([sys.executable, "-c", f"import os; os.chmod({str(neighbour)!r}, 0o600)"])
        assert held.wait(20)
        (mounted / swap.name).chmod(0o640)
        with swap.journeys() as journeys:
            some.out()
            some.leave_cache()
            assert some.are_right()
        assert {journey.is_write for journey in journeys} == {True, False}
        assert chmod.poll() is None, "it waits"
        # What was sent and not answered is sent again.
        swap.proxy.on_call = forward
        swap.proxy.cut()
        assert chmod.wait(20) == 0
    assert neighbour.stat().st_mode & 0o777 == 0o600
    assert (mounted / swap.name).stat().st_mode & 0o777 == 0o640
    neighbour.unlink()


def filesystem_of(name: str) -> int:
    title = f"{processes.FILESYSTEM} {rundir.filesystem_mountpoint(name)}"
    (pid,) = (
        pid
        for pid in processes.named(processes.FILESYSTEM)
        if Path(f"/proc/{pid}/cmdline").read_bytes().strip(b"\0").decode() == title
    )
    return pid


def test_a_failed_write_loses_no_page(swap: LiveSwap) -> None:
    calls: dict[int, bytes] = {}

    def keep(record: Record, _: random.Random) -> Iterable[Send | Cut]:
        calls[record.xid] = record.data
        return [Send(record.framed())]

    def full(record: Record, _: random.Random) -> Iterable[Send | Cut]:
        if record.procedure != WRITE:
            return [Send(record.framed())]
        return [Send(frame(failure(decode_call(calls[record.xid]), NFS3ERR_NOSPC)))]

    with pages(8) as some:
        swap.proxy.on_call, swap.proxy.on_reply = keep, full
        some.out()
        wait_until(lambda: swap.words()["write_errors"] > 0, seconds=20, what="an error of the server")
        swap.proxy.on_call = swap.proxy.on_reply = forward
        some.leave_cache()
        assert some.are_right(), "the kernel has kept what it could not write"
        some.dirty()
        some.out()
        some.leave_cache()
        assert some.are_right()


def test_status_is_whole_while_the_connection_comes_and_goes(swap: LiveSwap) -> None:
    """The counters are read in a loop meanwhile: no wait, and no half truth."""
    longest = 0.0
    with pages(64) as some:
        for number in range(CUTS):
            swap.proxy.cut()
            some.dirty()
            some.out()
            deadline = time.monotonic() + 20
            while swap.words()["reconnects"] <= number:
                assert time.monotonic() < deadline
                begin = time.monotonic()
                snapshot = rundir.read_counters(swap.name)
                longest = max(longest, time.monotonic() - begin)
                assert snapshot is not None
                assert snapshot.words["reconnects"] in (number, number + 1)
        (report,) = (report for report in describe_all() if report["name"] == swap.name)
        assert report["server"]["reconnects"] == CUTS
        assert report["state"] in ("active", "waiting")
        assert some.are_right()
    assert longest < 0.5
