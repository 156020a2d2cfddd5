"""What is measured: patterns of block I/O, and a hog that swaps; with the machine's CPU time beside each."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from attrs import frozen

from fuseswap.host import hog
from fuseswap.host.bounded import HostError, abandon, one_line, run, start
from fuseswap.host.cgroup import MemoryCgroup

GIB: Final = 1 << 30
OVERTIME_SECONDS_MAX: Final = 60.0
"""How long a run may take beyond its time before it counts as hung."""
SILENCE_SECONDS_MAX: Final = 60.0
ONCE_DEPTH: Final = 4
"""At 1 MiB more of them make this limit no faster on loopback."""

T = TypeVar("T")


@frozen
class Pattern:
    """One kind of block I/O, with a fixed number of requests outstanding."""

    write: bool
    random: bool
    block_bytes: int
    depth: int

    @property
    def name(self) -> str:
        order = "random" if self.random else "sequential"
        return f"{order} {'write' if self.write else 'read'} {self.block_bytes >> 10}k depth {self.depth}"


MAIN_PATTERNS: Final = (
    Pattern(write=False, random=True, block_bytes=4 << 10, depth=16),
    Pattern(write=True, random=True, block_bytes=4 << 10, depth=16),
    Pattern(write=False, random=False, block_bytes=4 << 10, depth=16),
    Pattern(write=True, random=False, block_bytes=4 << 10, depth=16),
    Pattern(write=False, random=True, block_bytes=4 << 10, depth=1),
    Pattern(write=True, random=True, block_bytes=4 << 10, depth=1),
    Pattern(write=False, random=True, block_bytes=128 << 10, depth=16),
    Pattern(write=True, random=False, block_bytes=128 << 10, depth=16),
    Pattern(write=True, random=False, block_bytes=512 << 10, depth=4),
)
"""What swap does, in the order of the table in docs/explanation/performance.md."""

ALL_PATTERNS: Final = tuple(
    Pattern(write, random, block_kib << 10, depth)
    for block_kib in (4, 32, 128, 512, 1024)
    for depth in (1, 16)
    for random in (True, False)
    for write in (False, True)
)


@frozen
class Sample:
    """One run of one pattern. Latencies from the submission of a request to its completion."""

    iops: float
    p50_us: float
    p99_us: float
    cpu_seconds_per_gib: float
    """Busy time of the whole machine, server and load generator included."""


@frozen
class SwapSample:
    """One run of the hog: 10^6 bytes a second in each phase."""

    fill_mb_per_s: float
    sequential_mb_per_s: float
    random_mb_per_s: float
    wrong_pages: int


def limit(program: Path, url: str, pattern: Pattern, seconds: float, size_bytes: int) -> Sample:
    """bench/limit.c straight at the server."""

    def measure() -> dict[str, float]:
        order = "random" if pattern.random else "sequential"
        numbers = (pattern.block_bytes, pattern.depth, seconds, size_bytes)
        command = [str(program), url, "write" if pattern.write else "read", order, *map(str, numbers)]
        result: dict[str, float] = json.loads(run(command, seconds=seconds + OVERTIME_SECONDS_MAX))
        return result

    result, cpu_seconds = _with_cpu_time(measure)
    moved_gib = result["operations"] * pattern.block_bytes / GIB
    return Sample(result["iops"], result["p50_us"], result["p99_us"], cpu_seconds / moved_gib)


def once(program: Path, url: str, kind: str, block_bytes: int, size_bytes: int) -> float:
    """bench/limit.c once through a file in order, with ONCE_DEPTH blocks outstanding: its seconds."""
    numbers = (block_bytes, ONCE_DEPTH, 0, size_bytes)
    output = run([str(program), url, kind, "sequential", *map(str, numbers)], seconds=10 * OVERTIME_SECONDS_MAX)
    return float(json.loads(output)["seconds"])


def fio(device: str, pattern: Pattern, seconds: float, size_bytes: int) -> Sample:
    """fio with libaio and direct I/O on a block device. HostError if a request fails."""
    kind = "write" if pattern.write else "read"
    command = [
        *("fio", "--name=bench", "--output-format=json", "--ioengine=libaio", "--direct=1", "--time_based"),
        *(f"--filename={device}", f"--rw={'rand' if pattern.random else ''}{kind}", f"--size={size_bytes}"),
        *(f"--bs={pattern.block_bytes}", f"--iodepth={pattern.depth}", f"--runtime={seconds}"),
        # A thread: a job in a process of its own would outlive a kill.
        *("--norandommap", "--randrepeat=0", "--refill_buffers", "--thread"),
        *("--clat_percentiles=0", "--lat_percentiles=1", "--percentile_list=50:99"),
    ]
    output, cpu_seconds = _with_cpu_time(lambda: run(command, seconds=seconds + OVERTIME_SECONDS_MAX))
    result = json.loads(output)["jobs"][0][kind]
    percentiles = {float(key): value / 1e3 for key, value in result["lat_ns"]["percentile"].items()}
    return Sample(result["iops"], percentiles[50.0], percentiles[99.0], cpu_seconds / (result["io_bytes"] / GIB))


def swap(name: str, limit_bytes: int, hog_bytes: int, touches: int) -> SwapSample:
    """The hog in a memory cgroup, on whatever swap this machine has. HostError if it does not end well."""
    speeds: dict[str, float] = {}
    wrong_pages = 0
    with MemoryCgroup(name, limit_bytes) as group:
        process = start(group.command(hog.command(hog_bytes, touches=touches)))
        assert process.stdout is not None
        try:
            for report in hog.reports(process.stdout, silence_seconds_max=SILENCE_SECONDS_MAX):
                if report.ended:
                    speeds[report.phase] = report.mb_per_s
                    wrong_pages += report.wrong_pages
            _, errors = process.communicate()
        finally:
            abandon(process)
    if len(speeds) < 3:
        raise HostError(one_line(errors, "hog", process.returncode))
    return SwapSample(speeds["fill"], speeds["sequential"], speeds["random"], wrong_pages)


def _with_cpu_time(measure: Callable[[], T]) -> tuple[T, float]:
    before = _busy_seconds()
    result = measure()
    return result, _busy_seconds() - before


def _busy_seconds() -> float:
    """user, nice, system, irq and softirq of all CPUs (proc(5), /proc/stat)."""
    first_line = Path("/proc/stat").read_text().partition("\n")[0]
    _, user, nice, system, _idle, _iowait, irq, softirq, *_ = first_line.split()
    ticks = sum(int(field) for field in (user, nice, system, irq, softirq))
    return ticks / os.sysconf("SC_CLK_TCK")
