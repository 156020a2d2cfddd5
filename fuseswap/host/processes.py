"""Processes by number and by what they call themselves.

Nothing of /proc/PID is read that lies in the process's own memory, as cmdline does: that may be swapped out to the
very device that hangs.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from attrs import frozen

from fuseswap.host.bounded import wait_for_exit
from fuseswap.host.mounts import Mount, parse_mountinfo
from fuseswap.host.procfs import read_table

ENGINE = "fuseswap-engine"
SUPERVISOR = "fuseswap-supervisor"
FILESYSTEM = "fuseswap-filesystem"

COMM_BYTES_MAX = 15


@frozen
class Process:
    """A running process; the descriptor makes sure that it is this one and no later one of its number."""

    pid: int
    pidfd: int

    def wait(self, seconds: float) -> bool:
        """Whether it ends within `seconds`."""
        return wait_for_exit(self.pidfd, seconds)

    def kill(self) -> None:
        """SIGKILL; nothing if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the descriptor."""
        os.close(self.pidfd)


def find(pid: int, title: str, born: Callable[[int], bool] = lambda ticks: True) -> Process | None:
    """The running process `pid` if its comm is `title`, cut as the kernel cuts it; the caller closes it.

    `born` judges its start time (`start_ticks`): a number is given again once its process has gone.
    """
    if pid <= 0:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        return None
    process = Process(pid, pidfd)
    # It was this one all the time if it still runs after both have been read.
    if comm(pid) == title[:COMM_BYTES_MAX] and born(start_ticks(pid)) and not process.wait(0):
        return process
    process.close()
    return None


def find_engine(words: Mapping[str, int]) -> Process | None:
    """The running engine that keeps these counters; the caller closes it."""
    return find(words["engine_pid"], ENGINE, lambda ticks: ticks == words["engine_start_ticks"])


def find_supervisor(words: Mapping[str, int]) -> Process | None:
    """The running supervisor of that engine, which it had begun before; the caller closes it."""
    return find(words["supervisor_pid"], SUPERVISOR, lambda ticks: ticks <= words["engine_start_ticks"])


def runs(process: Process | None) -> bool:
    """Whether there is one; it is closed."""
    if process is not None:
        process.close()
    return process is not None


def is_running(pid: int, title: str) -> bool:
    """Whether `find` finds it."""
    return runs(find(pid, title))


def named(title: str) -> Iterator[int]:
    """The numbers of all processes whose comm is `title`, cut as the kernel cuts it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and comm(int(entry.name)) == title[:COMM_BYTES_MAX]:
            yield int(entry.name)


def announce_filesystem(mounted: Mount) -> None:
    """Make this process known as the one that serves this mount, for as long as it lives.

    By the name of an open memory file: unlike a title it cannot be cut short or swapped out, and a mount has its device
    number to itself, whatever it is called in which namespace.
    """
    os.memfd_create(_mark(mounted))


def filesystems(mounted: Mount) -> list[int]:
    """The processes that have announced that they serve this mount."""
    return [pid for pid in named(FILESYSTEM) if _holds(pid, _mark(mounted))]


def mounts_of(pid: int) -> tuple[Mount, ...]:
    """The mounts of the process's mount namespace; none if it is gone."""
    try:
        return parse_mountinfo(read_table(f"/proc/{pid}/mountinfo"))
    except OSError:
        return ()


def _mark(mounted: Mount) -> str:
    return f"{FILESYSTEM} {mounted.major}:{mounted.minor}"


def _holds(pid: int, memory_file: str) -> bool:
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            if str(entry.readlink()) == f"/memfd:{memory_file} (deleted)":
                return True
    return False


def comm(pid: int) -> str:
    """/proc/PID/comm; empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n").decode(errors="replace")
    except OSError:
        return ""


def start_ticks(pid: int) -> int:
    """Field 22 of /proc/PID/stat, in clock ticks since boot (proc(5)); -1 if the process is gone."""
    try:
        # The second field, the comm, may hold blanks and brackets.
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return -1
