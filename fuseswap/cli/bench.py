"""`bench`: fio on the loop device of a swap file on a private NFS server, in the patterns of swap.

It measures the whole road that a page takes, from the block layer to the server's disk and back: reads that
miss every cache here, and writes that are answered when they are on stable storage.
"""

import contextlib
import json
import os
import secrets
import sys
from typing import Any

from attrs import asdict, define, field, frozen

from fuseswap.cli import preflight
from fuseswap.cli.active import Plan, build_steps
from fuseswap.cli.create import create
from fuseswap.cli.failure import Exit
from fuseswap.cli.interrupts import Interrupts
from fuseswap.cli.output import say
from fuseswap.cli.private import PrivateServer
from fuseswap.cli.source import split_file_url
from fuseswap.cli.steps import Step, build, tear_down
from fuseswap.cli.table import columns
from fuseswap.cli.updown import take_down
from fuseswap.host import rundir
from fuseswap.host.bounded import HostError, run

_FILE_BYTES = 256 << 20


@frozen
class Pattern:
    """One fio job."""

    name: str
    kind: str
    block: str
    depth: int


PATTERNS = (
    Pattern("swap-in, one page at a time", "randread", "4k", 1),
    Pattern("swap-in, many at once", "randread", "4k", 16),
    Pattern("swap-in, read-ahead", "read", "32k", 4),
    Pattern("swap-out, one page at a time", "randwrite", "4k", 1),
    Pattern("swap-out, many at once", "randwrite", "4k", 16),
    Pattern("swap-out, merged", "write", "128k", 16),
    Pattern("swap-out, large folios", "write", "512k", 4),
)


@frozen
class Sample:
    """What fio measured."""

    pattern: str
    iops: float
    mb_per_s: float
    p50_us: float
    p99_us: float


def bench(arguments: Any, interrupts: Interrupts) -> Exit:
    """`fuseswap bench [--seconds N] [--json]`."""
    preflight.require_swapping()
    # With --json standard output is for the object alone.
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        samples = _Bench(arguments.seconds, interrupts).run()
    if arguments.json:
        say(json.dumps({"samples": [asdict(sample) for sample in samples]}, indent=2))
        return Exit.DONE
    rows = [
        (
            sample.pattern,
            f"{sample.iops:.0f}",
            f"{sample.mb_per_s:.1f}",
            f"{sample.p50_us:.0f}",
            f"{sample.p99_us:.0f}",
        )
        for sample in samples
    ]
    say(columns(("pattern", "iops", "MB/s", "p50 us", "p99 us"), rows))
    return Exit.DONE


@define(eq=False)
class _Bench:
    seconds: int
    interrupts: Interrupts
    name: str = field(factory=lambda: f"bench-{secrets.token_hex(3)}")
    private: PrivateServer = field(factory=lambda: PrivateServer("bench"))
    samples: list[Sample] = field(factory=list)

    def run(self) -> list[Sample]:
        """Everything, and back. HostError; nothing is left behind, whatever happens."""
        steps = [
            *self.private.steps(),
            Step("loop device", self._attach, lambda: take_down(self.name, force=True)),
            Step("measurement", self._measure, lambda: None),
        ]
        build(steps, failed=lambda _: say("bench: taking everything down"), shield=self.interrupts.shield)
        tear_down(steps)
        return self.samples

    def _attach(self) -> None:
        directory, file_name = split_file_url(self.private.server.url(self.name))
        create(directory, file_name, _FILE_BYTES, self.name)
        file = str(rundir.filesystem_mountpoint(self.name) / file_name)
        # All but the last step: swap itself stays off.
        steps = build_steps(Plan(self.name, file, directory), self.interrupts)[:-1]
        build(steps, failed=lambda _: None, shield=self.interrupts.shield)

    def _measure(self) -> None:
        self.samples = measure(self.name, self.seconds)


def measure(name: str, seconds: int) -> list[Sample]:
    """Every pattern on the loop device of NAME's engine, which is written over. HostError."""
    gone = HostError(f"{name}: its loop device has gone")
    device = rundir.engine_device(name)
    if device is None:
        raise gone
    # fio opens it anew for each pattern, by its number, which leads to no other file while it is open here
    # (loop_clr_fd in drivers/block/loop.c).
    descriptor = os.open(device.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if rundir.engine_device(name) != device:
            raise gone
        samples = []
        for pattern in PATTERNS:
            say(f"bench: {pattern.name}: {pattern.kind}, {pattern.block}, depth {pattern.depth}")
            samples.append(_fio(device.path, pattern, seconds))
        return samples
    finally:
        os.close(descriptor)


def _fio(device: str, pattern: Pattern, seconds: int) -> Sample:
    output = run(
        [
            "fio",
            f"--name={pattern.kind}",
            f"--filename={device}",
            f"--rw={pattern.kind}",
            f"--bs={pattern.block}",
            f"--iodepth={pattern.depth}",
            "--ioengine=libaio",
            "--direct=1",
            "--time_based",
            f"--runtime={seconds}",
            "--output-format=json",
        ],
        seconds=seconds + 60,
    )
    # Warnings may stand before the object.
    (job,) = json.loads(output[output.index("{") :])["jobs"]
    side = job["read" if "read" in pattern.kind else "write"]
    percentiles = side["clat_ns"]["percentile"]
    return Sample(
        pattern=pattern.name,
        iops=round(side["iops"], 1),
        mb_per_s=round(side["bw_bytes"] / 1e6, 1),
        p50_us=percentiles["50.000000"] / 1e3,
        p99_us=percentiles["99.000000"] / 1e3,
    )
