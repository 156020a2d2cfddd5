"""What each safeguard of the engine is good for: taken away alone, and measured against the engine as it is.

Only without mlockall does it hang each time (8 of 8 on a machine of two processors): that one is asserted, and the
watchdog is seen to end it. Without the malloc settings and the touched heap it hung once in 5 runs, without any of
the other safeguards in none (one run each): there it is the cost that is asserted.
"""

import random
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from fuseswap.host.ganesha import GaneshaServer
from fuseswap.host.swap import PRIORITY_MAX, swapon
from fuseswap.swap.target import NfsTarget
from tests.contract.pages import Pages, pages
from tests.engine.running import Running, fio, nfs_target, through
from tests.engine.test_engine_memory import WHITELIST, Memory, calls_of, traced
from tests.kit.plain_swap import run
from tests.kit.proxy import WRITE, Cut, Proxy, Record, Send
from tests.pressure.hogging import LOST, MIB, hog_in, small_cgroup
from tests.pressure.watchdog import watched
from tests.pressure.weakened import engine_without

SIZE = 64 * MIB
HOG = 200 * MIB
LIMIT = 128 * MIB
LATE_SECONDS = 0.3
REQUESTS = 100
"""Fewer than the queue of a loop device takes (nr_requests 128)."""
DEEP = ("--iodepth=256", "--norandommap")


@pytest.fixture
def target(nfs_server: GaneshaServer, nfs_dir: Path) -> NfsTarget:
    return nfs_target(nfs_server, f"{nfs_dir.name}/swapfile", SIZE)


@pytest.mark.swap
def test_without_mlockall_it_waits_for_itself(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    """Its own pages go out through it: it stands in a fault that only it could serve."""
    size = HOG + SIZE
    with (
        small_cgroup(LIMIT) as cgroup,
        engine_without(
            ["mlockall"], nfs_target(nfs_server, f"{nfs_dir.name}/f", size), size, within=cgroup.command(())
        ) as here,
    ):
        swap_on(here)
        with (
            pytest.raises(AssertionError, match="the connection was aborted"),
            watched(str(here.path.parent), seconds=4) as alive,
            hog_in(cgroup, HOG, alive=alive) as hog,
        ):
            assert hog.finish() in LOST
            assert "fill" not in hog.phases


def swap_on(here: Running) -> None:
    run("mkswap", here.device)
    swapon(here.device, PRIORITY_MAX)


@pytest.mark.machine
def test_without_touched_heap_and_malloc_settings_it_asks_for_memory(
    nfs_server: GaneshaServer, target: NfsTarget, tmp_path: Path
) -> None:
    """In the hog's cgroup a brk or mmap is charged, and reclaim for that charge waits for the engine."""

    def late(record: Record, _: random.Random) -> Iterable[Send | Cut]:
        return [Send(record.framed(), 0.03)]

    def cost(*safeguards: str) -> tuple[set[str], int]:
        """System calls that no page needs, and minor faults, as the requests in flight grow to their most."""
        with (
            Proxy(nfs_server.nfs_port) as proxy,
            engine_without(safeguards, through(target, proxy.port), SIZE) as here,
        ):
            proxy.on_reply = late
            before = Memory.of(here.engine_pid)
            with traced(here.engine_pid, tmp_path / "strace"):
                for size, count in (("4k", 400), ("8k", 400), ("1m", 60)):
                    fio(here.device, SIZE, "--rw=randrw", f"--bs={size}", f"--number_ios={count}", *DEEP)
            after = Memory.of(here.engine_pid)
            here.detach()
        return set(calls_of(tmp_path / "strace")) - WHITELIST, after.minor_faults - before.minor_faults

    assert cost() == (set(), 0)
    calls, faults = cost("heap", "malloc")
    print(f"{calls}, {faults} minor faults")
    assert calls & {"brk", "mmap"}
    assert calls <= {"brk", "mmap", "munmap", "madvise"}


_COLLECTIONS = """
import gc, time
import fuseswap.engine.main
def seconds():
    begin = time.perf_counter()
    gc.collect()
    return time.perf_counter() - begin
gc.collect()
before = min(seconds() for _ in range(5))
gc.freeze()
print(before, min(seconds() for _ in range(5)))
"""


@pytest.mark.machine
def test_without_freezing_a_collection_stops_the_engine() -> None:
    """It walks through all that was ever imported. A request leaves nothing to collect, so none was seen in
    20,000 requests with the collector on: this is a precaution, and its use is the pause that cannot come."""
    output = run(sys.executable, "-c", _COLLECTIONS)
    thawed, frozen = map(float, output.split())
    print(f"a collection takes {1e3 * thawed:.2f} ms, frozen {1e3 * frozen:.2f} ms")
    assert thawed > 10 * frozen


@pytest.mark.swap
def test_with_writeback_throttling_the_writer_waits_for_answers(nfs_server: GaneshaServer, target: NfsTarget) -> None:
    """Whoever reclaims must hand its pages over and go on: so `loop.attach` stores 0 in wbt_lat_usec."""

    def late(record: Record, _: random.Random) -> Iterable[Send | Cut]:
        return [Send(record.framed(), LATE_SECONDS if record.procedure == WRITE else 0.0)]

    def one_by_one(some: Pages) -> None:
        for page in range(REQUESTS):
            some.out(page, 1)

    def waits(wbt_lat_usec: int | None) -> int:
        """How often the process that pushes its pages out was seen in rq_qos_wait (block/blk-rq-qos.c)."""
        with Proxy(nfs_server.nfs_port) as proxy, engine_without((), through(target, proxy.port), SIZE) as here:
            if wbt_lat_usec is not None:
                Path("/sys/block", Path(here.device).name, "queue/wbt_lat_usec").write_text(str(wbt_lat_usec))
            swap_on(here)
            with pages(REQUESTS) as some:
                proxy.on_reply = late
                writer = threading.Thread(target=one_by_one, args=(some,))
                stack = Path(f"/proc/{some.process.pid}/stack")
                writer.start()
                seen = 0
                while writer.is_alive():
                    seen += "rq_qos_wait" in stack.read_text()
                    writer.join(0.005)
                return seen

    assert waits(None) == 0
    assert waits(2000) > 0
