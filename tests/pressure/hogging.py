"""A memory hog in a cgroup that is too small for it, followed page by page."""

import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attrs import define, field

from fuseswap.host import hog
from fuseswap.host.bounded import abandon
from fuseswap.host.cgroup import MemoryCgroup
from tests.kit import rescue

MIB = 1 << 20
SILENCE_SECONDS = 30.0
"""No page in or out for so long, on a machine that has other things to do as well, is a hang."""
LOST = (-signal.SIGBUS, -signal.SIGKILL)
"""How a process ends that has lost pages: it touches one, or its cgroup, which can no longer swap, kills it."""


@define(eq=False)
class RunningHog:
    """A hog and what it has reported so far."""

    process: "subprocess.Popen[str]"
    cgroup: MemoryCgroup
    _reports: Iterator[hog.Report]
    alive: Callable[[], None]
    """Told of every report: the watchdog's sign of life."""
    phases: dict[str, hog.Report] = field(factory=dict)
    """The last report of each phase that has ended."""

    def next(self) -> hog.Report | None:
        """The next report, some ten a second; None when the hog has ended. `Hung` if it falls silent."""
        report = next(self._reports, None)
        if report is not None:
            self.alive()
            if report.ended:
                self.phases[report.phase] = report
        return report

    def until(self, share: float) -> None:
        """Until this share of the fill is done."""
        while (report := self.next()) is not None:
            if report.phase == "fill" and report.pages >= share * report.pages_total:
                return
        raise AssertionError(f"the hog ended with {self.process.wait(10)} while it filled its memory")

    def finish(self) -> int:
        """Read reports to the end; the exit code, negative for a signal."""
        while self.next() is not None:
            pass
        return self.process.wait(10)

    def assert_all_right(self) -> None:
        """To the end: every page was read back at least once, and none was wrong."""
        code = self.finish()
        wrong = [page for report in self.phases.values() for page in report.first_wrong]
        assert (code, wrong) == (0, [])
        assert set(self.phases) == {"fill", "sequential", "random"}


@contextmanager
def small_cgroup(limit_bytes: int) -> Iterator[MemoryCgroup]:
    """A memory cgroup; whatever is still in it at the end is killed."""
    cgroup = MemoryCgroup(f"fuseswap-pressure-{secrets.token_hex(4)}", limit_bytes)
    try:
        yield cgroup
    finally:
        rescue.end_processes(cgroup.pids())
        cgroup.remove()


@contextmanager
def hog_in(
    cgroup: MemoryCgroup,
    size_bytes: int,
    *,
    touches: int = 20_000,
    alive: Callable[[], None] = lambda: None,
    silence_seconds: float = SILENCE_SECONDS,
) -> Iterator[RunningHog]:
    """A hog that runs in the group; killed at the end if it still does."""
    process = subprocess.Popen(
        cgroup.command(hog.command(size_bytes, touches=touches)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with ExitStack() as stack:
        stack.callback(abandon, process)
        assert process.stdout is not None
        reports = hog.reports(process.stdout, silence_seconds_max=silence_seconds)
        yield RunningHog(process, cgroup, reports, alive)


def major_faults(pid: int) -> int:
    """Of a process since its start (proc(5), stat, field 12)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[9])
