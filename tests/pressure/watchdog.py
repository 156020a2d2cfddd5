"""Aborts a FUSE connection when the test that swaps through it falls silent, or dies.

A process of its own, outside the memory cgroup under test, locked in memory and with the abort file open
beforehand: it must work when nothing that swaps does. Each line on its standard input is a sign of life.
"""

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fuseswap.engine import libc
from fuseswap.host.fusectl import control
from fuseswap.host.mounts import mount_at

READY: Final = b"ready\n"
END: Final = b"end\n"
ABORTED: Final = 3


def main(mountpoint: str, seconds: float) -> int:
    """Watch until END (0); after `seconds` of silence, or if the other side is gone, abort (ABORTED)."""
    mount = mount_at(mountpoint)
    assert mount is not None, f"{mountpoint} is not mounted"
    with control(mount) as directory:
        abort = os.open(directory / "abort", os.O_WRONLY | os.O_CLOEXEC)
    libc.lock_memory(libc.MCL_CURRENT | libc.MCL_FUTURE)
    os.write(sys.stdout.fileno(), READY)
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN)
    while poll.poll(seconds * 1000):
        said = os.read(sys.stdin.fileno(), 4096)
        if said.endswith(END):
            return 0
        if not said:
            break
    os.write(abort, b"1")
    return ABORTED


@contextmanager
def watched(mountpoint: str, *, seconds: float) -> Iterator[Callable[[], None]]:
    """What is yielded is to be called at each sign of life. AssertionError if the connection was aborted."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, mountpoint, str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == READY
        pipe = process.stdin.fileno()

        def say(line: bytes) -> None:
            # It has ended already if it had to abort.
            with contextlib.suppress(BrokenPipeError):
                os.write(pipe, line)

        try:
            yield lambda: say(b"\n")
        finally:
            say(END)
        assert process.wait(10) != ABORTED, f"nothing moved for {seconds} s: the connection was aborted"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
