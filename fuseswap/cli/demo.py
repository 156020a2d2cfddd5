"""`demo`: the main job on a private NFS server, with proof.

A process that owns more memory than its cgroup may keep is pushed out to a swap file on nfs-ganesha, through
the same code as `up`. In the middle of it the server is killed and started again: what it had answered must be
on its disk. Then every page is read back and compared.
"""

import contextlib
import json
import re
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from fuseswap.cli import preflight
from fuseswap.cli.demo_screen import Screen
from fuseswap.cli.failure import Exit, Failure
from fuseswap.cli.interrupts import Interrupts
from fuseswap.cli.main import explain
from fuseswap.cli.output import say, warn
from fuseswap.cli.private import PrivateServer
from fuseswap.cli.size import format_size
from fuseswap.cli.steps import Step, build, tear_down
from fuseswap.cli.table import columns
from fuseswap.cli.updown import bring_up, take_down
from fuseswap.host import fusectl, hog, rundir
from fuseswap.host.bounded import HostError, abandon
from fuseswap.host.cgroup import MemoryCgroup
from fuseswap.host.machine import swapped_pages
from fuseswap.host.mounts import mount_at
from fuseswap.host.swap import PRIORITY_MAX, swaps
from fuseswap.swap.units import PAGE_SIZE

_ZSWAP = Path("/sys/module/zswap/parameters/enabled")
_SIZE_BYTES_MIN = 16 << 20
_LIMIT_BYTES_MIN = 32 << 20
"""The hog's interpreter must fit."""
_MARGIN_BYTES = 64 << 20
"""Swap beyond the hog's pages: the interpreter's own memory, and the pages are compared with."""
_KILL_AT = 0.5
"""Of the fill: there the server is killed."""
_END_SECONDS = 10.0
_AGREE = 0.05
"""What the kernel and the engine count may differ by this much, for a page may be sent twice or not at all."""

_SIZE_WORD = re.compile("write_calls_([0-9]+)k")
"""The counters that tell NFS WRITE calls by size."""


@frozen
class Proof:
    """What the demo shows."""

    pages_out: int
    pages_in: int
    engine_pages_out: int
    engine_pages_in: int
    wrong_pages: int
    phases: dict[str, hog.Report]
    nfs_write_sizes: dict[int, int]
    """Calls by their size in bytes, up to the next power of two."""
    server_restarts: int
    engine_reconnects: int

    def to_plain(self) -> dict[str, Any]:
        """The object of `demo --json`."""
        return {
            "pages_out": self.pages_out,
            "pages_in": self.pages_in,
            "engine_pages_out": self.engine_pages_out,
            "engine_pages_in": self.engine_pages_in,
            "wrong_pages": self.wrong_pages,
            "phases": {
                name: {"seconds": round(report.seconds, 3), "mb_per_s": round(report.mb_per_s, 1)}
                for name, report in self.phases.items()
            },
            "nfs_write_sizes": {str(size): count for size, count in self.nfs_write_sizes.items()},
            "server_restarts": self.server_restarts,
            "engine_reconnects": self.engine_reconnects,
        }


def demo(arguments: Any, interrupts: Interrupts) -> Exit:
    """`fuseswap demo [--size S] [--limit S] [--json]`."""
    if arguments.size < _SIZE_BYTES_MIN or arguments.limit < _LIMIT_BYTES_MIN:
        raise Failure(
            f"--size must be at least {format_size(_SIZE_BYTES_MIN)} and --limit {format_size(_LIMIT_BYTES_MIN)}",
            Exit.USAGE,
        )
    if arguments.limit >= arguments.size:
        raise Failure("--limit must be below --size, or nothing is pushed out", Exit.USAGE)
    preflight.require_swapping()
    # With --json standard output is for the object alone.
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        proof = _Demo(arguments.size, arguments.limit, interrupts).run()
    if arguments.json:
        say(json.dumps(proof.to_plain(), indent=2))
    else:
        _print(proof)
    return Exit.DONE if proof.wrong_pages == 0 else Exit.FAILED


@define(eq=False)
class _Demo:
    size_bytes: int
    limit_bytes: int
    interrupts: Interrupts
    name: str = field(factory=lambda: f"demo-{secrets.token_hex(3)}")
    private: PrivateServer = field(factory=lambda: PrivateServer("demo"))
    cgroup: MemoryCgroup | None = None
    process: "subprocess.Popen[str] | None" = None
    zswap: str | None = None
    proof: Proof | None = None

    def run(self) -> Proof:
        """Everything, and back. Failure, HostError; nothing is left behind, whatever happens."""
        steps = [
            *self.private.steps(),
            Step("zswap setting", self._zswap_off, self._zswap_back),
            Step("swap", self._up, self._down),
            Step("memory cgroup", self._make_cgroup, self._remove_cgroup),
            Step("process in it", self._run_hog, self._end_hog),
        ]
        build(steps, failed=lambda _: say("demo: taking everything down"), shield=self.interrupts.shield)
        tear_down(steps)
        assert self.proof is not None
        return self.proof

    def _zswap_off(self) -> None:
        # zswap would keep pages in memory, compressed, that the demo wants to see on the server.
        if _ZSWAP.exists() and (before := _ZSWAP.read_text().strip()) in ("Y", "1"):
            self.zswap = before
            _ZSWAP.write_text("N")

    def _zswap_back(self) -> None:
        if self.zswap is not None:
            _ZSWAP.write_text(self.zswap)

    def _up(self) -> None:
        for area in swaps():
            say(f"demo: {area.path} is active too; the demo's swap is used before it")
        size = -(-(self.size_bytes + _MARGIN_BYTES) // PAGE_SIZE) * PAGE_SIZE
        url = self.private.server.url(self.name)
        bring_up(self.name, url, self.interrupts, size_bytes=size, priority=PRIORITY_MAX)

    def _down(self) -> None:
        try:
            take_down(self.name, force=False)
        except Exception as error:
            warn(f"{explain(error)[0]}; trying again with --force")
            take_down(self.name, force=True)

    def _make_cgroup(self) -> None:
        self.cgroup = MemoryCgroup(f"fuseswap-{self.name}", self.limit_bytes)

    def _remove_cgroup(self) -> None:
        if self.cgroup is not None:
            self.cgroup.remove()

    def _run_hog(self) -> None:
        assert self.cgroup is not None
        before, engine_before = swapped_pages(), self._words()
        say(
            f"demo: a process with {format_size(self.size_bytes)} of unique pages in a cgroup of"
            f" {format_size(self.limit_bytes)}"
        )
        self.process = subprocess.Popen(
            self.cgroup.command(hog.command(self.size_bytes)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        phases: dict[str, hog.Report] = {}
        restarts = 0
        with Screen() as screen:
            for report in hog.reports(self.process.stdout):
                screen.show(report, self._words())
                if report.ended:
                    phases[report.phase] = report
                elif not restarts and report.phase == "fill" and report.pages > _KILL_AT * report.pages_total:
                    restarts += 1
                    self._restart_server()
        code = self.process.wait()
        if set(phases) != {"fill", "sequential", "random"}:
            raise Failure(f"demo: the process ended with {code} before it had read all its pages: pages were lost")
        after, engine = swapped_pages(), self._words()
        self.proof = Proof(
            pages_out=after.out - before.out,
            pages_in=after.into - before.into,
            engine_pages_out=(engine["write_bytes"] - engine_before["write_bytes"]) // PAGE_SIZE,
            engine_pages_in=(engine["read_bytes"] - engine_before["read_bytes"]) // PAGE_SIZE,
            wrong_pages=sum(report.wrong_pages for report in phases.values()),
            phases=phases,
            nfs_write_sizes=_write_sizes(engine_before, engine),
            server_restarts=restarts,
            engine_reconnects=engine["reconnects"] - engine_before["reconnects"],
        )

    def _restart_server(self) -> None:
        say("demo: killing the server (SIGKILL) and starting it again")
        # Taking everything down needs the server, too.
        with self.interrupts.deferred():
            self.private.server.kill()
            self.private.server.start()

    def _end_hog(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.kill()
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            # It waits for a page that does not come: only the end of the connection frees it.
            mounted = mount_at(str(rundir.engine_mountpoint(self.name)))
            if mounted is not None:
                fusectl.abort(mounted)
        abandon(self.process)

    def _words(self) -> dict[str, int]:
        counters = rundir.read_counters(self.name)
        if counters is None:
            raise HostError(f"{self.name}: its counters have gone: was it taken down meanwhile?")
        return counters.words


def _write_sizes(before: dict[str, int], after: dict[str, int]) -> dict[int, int]:
    sizes = {}
    for word, count in after.items():
        match = _SIZE_WORD.fullmatch(word)
        if match is not None and count > before[word]:
            sizes[int(match[1]) * 1024] = count - before[word]
    return sizes


def _print(proof: Proof) -> None:
    rows = [
        (name, f"{report.pages}", f"{report.seconds:.2f} s", f"{report.mb_per_s:.1f} MB/s")
        for name, report in proof.phases.items()
    ]
    say(columns(("phase", "pages", "time", "speed"), rows))
    say("")
    total = max(1, sum(proof.nfs_write_sizes.values()))
    for size, count in sorted(proof.nfs_write_sizes.items()):
        say(f"NFS WRITE to {format_size(size):8} {count:8}  {'#' * round(50 * count / total)}")
    say(f"pages out: {proof.pages_out} (kernel), {proof.engine_pages_out} (engine)")
    say(f"pages in:  {proof.pages_in} (kernel), {proof.engine_pages_in} (engine)")
    if abs(proof.pages_out - proof.engine_pages_out) > _AGREE * max(1, proof.pages_out):
        warn("the kernel and the engine count different pages out: other swap was in use meanwhile")
    say(
        f"the server was killed and started again {proof.server_restarts} time(s) meanwhile,"
        f" the engine reconnected {proof.engine_reconnects} time(s)"
    )
    say(f"{proof.wrong_pages} wrong pages")
    for report in proof.phases.values():
        for page in report.first_wrong:
            say(f"  {report.phase}: page at {page.offset_bytes}: {page.holds}")
