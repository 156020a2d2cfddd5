"""Processes by number and by what they call themselves.

Only /proc/PID/comm and stat are read: cmdline lies in the process's own memory, which may be swapped out to
the very device that hangs.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from fuseswap.host.bounded import wait_for_exit

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


def find(pid: int, title: str) -> Process | None:
    """The running process `pid` if its comm is `title`, cut as the kernel cuts it; the caller closes it."""
    if pid <= 0:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    process = Process(pid, pidfd)
    if comm(pid) == title[:COMM_BYTES_MAX] and not process.wait(0):
        return process
    process.close()
    return None


def is_running(pid: int, title: str) -> bool:
    """Whether `find` finds it."""
    process = find(pid, title)
    if process is None:
        return False
    process.close()
    return True


def named(title: str) -> Iterator[int]:
    """The numbers of all processes whose comm is `title`, cut as the kernel cuts it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and comm(int(entry.name)) == title[:COMM_BYTES_MAX]:
            yield int(entry.name)


def comm(pid: int) -> str:
    """/proc/PID/comm; empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n").decode(errors="replace")
    except OSError:
        return ""
