"""Memory that really lies on swap, and what is left of a name."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuseswap.host import processes, rundir
from fuseswap.host.cgroup import MemoryCgroup
from tests.kit.rescue import Leftovers
from tests.kit.wait import wait_until

PAGES = 512

_SCRIPT = """
import mmap, os, random, sys
pages = int(sys.argv[1])
data = random.Random(1).randbytes(pages * 4096)
memory = mmap.mmap(-1, len(data), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
memory[:] = data
memory.madvise(21)
print("out", flush=True)
sys.stdin.readline()
print("same" if memory[:] == data else "different", flush=True)
"""


@contextmanager
def swapped_process(cgroup: MemoryCgroup | None = None) -> Iterator["subprocess.Popen[str]"]:
    """A process with PAGES unique pages pushed out (MADV_PAGEOUT); a line on its input makes it compare them.

    In a cgroup of its own the pages leave the swap cache, too: swapoff must read them.
    """
    command = [sys.executable, "-c", _SCRIPT, str(PAGES)]
    with subprocess.Popen(
        command if cgroup is None else cgroup.command(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "out\n"
            if cgroup is not None:
                cgroup.reclaim()
            yield process
        finally:
            process.kill()


def compare(process: "subprocess.Popen[str]") -> str:
    """What the process says of its pages; empty if it died of them."""
    output, _ = process.communicate("\n", timeout=20)
    return output.strip()


def is_clean(name: str) -> bool:
    """Whether nothing of NAME is left: swap, loop device, mounts, directory, processes."""
    directory = rundir.directory(name)
    return not Leftovers.of(directory) and not directory.exists() and not titled(name)


def titled(name: str) -> list[int]:
    """The live processes that serve NAME: engine, supervisor, filesystem."""
    titles = {
        f"{processes.ENGINE} {name}".encode(),
        f"{processes.SUPERVISOR} {name}".encode(),
        f"{processes.FILESYSTEM} {rundir.filesystem_mountpoint(name)}".encode(),
    }
    found = []
    for title in (processes.ENGINE, processes.SUPERVISOR, processes.FILESYSTEM):
        for pid in processes.named(title):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().strip(b"\0") in titles:
                    found.append(pid)
    return found


def server_process(name: str, title: str) -> int:
    """The live process of this kind that serves NAME."""
    (pid,) = (pid for pid in titled(name) if processes.comm(pid) == title[: processes.COMM_BYTES_MAX])
    return pid


def kill(pid: int) -> None:
    """SIGKILL, and wait until it is gone."""
    pidfd = os.pidfd_open(pid)
    os.kill(pid, 9)
    process = processes.Process(pid, pidfd)
    wait_until(lambda: process.wait(0.1), seconds=10, what=f"the end of process {pid}")
    process.close()
