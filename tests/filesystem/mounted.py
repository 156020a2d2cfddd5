"""A filesystem process of a test's own, and its end in every case."""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.filesystem.users import User
from tests.kit.rescue import Leftovers, fuse_mounts
from tests.kit.wait import wait_until

_SERVE = """
import gc, logging, os, signal, sys
from fuseswap.filesystem.inodes import InodeTable
from fuseswap.filesystem.main import run
from fuseswap.filesystem.options import parse_mount_options
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
ready = int(sys.argv[4])
if len(sys.argv) > 5:
    "host".encode("idna")  # the interpreter may be out of this user's reach; it loads this one late
    os.setgroups([])
    os.setgid(int(sys.argv[6]))
    os.setuid(int(sys.argv[5]))
def count(number, frame):
    (table,) = (thing for thing in gc.get_objects() if isinstance(thing, InodeTable))
    logging.info("%d nodes", len(table))
signal.signal(signal.SIGUSR2, count)
run(
    *(sys.argv[1], sys.argv[2], parse_mount_options(sys.argv[3])),
    ready=lambda: os.write(ready, b"ready"),
    is_on_top=lambda: True,
)
"""

_libc = ctypes.CDLL(None, use_errno=True)
_MS_REMOUNT, _MS_NOSUID, _MS_NODEV = 32, 2, 4

START_SECONDS = 20
HANG_SECONDS = 60
"""A test that touches a hung mount cannot be interrupted: after this its connection is aborted."""


class Mounted:
    """`with Mounted(source, point): ...`; leaving it unmounts, or aborts what cannot be unmounted."""

    def __init__(
        self, source: str, point: Path, options: str = "", user: User | None = None, prelude: str = ""
    ) -> None:
        """`user`: who mounts, if it is not root; `prelude`: Python to run in the process first."""
        self.ids = [] if user is None else [str(user.uid), str(user.gid)]
        self.source = source
        self.point = point
        self.options = options
        self.prelude = prelude
        self.log = point.parent / f"{point.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.hung = False
        self.where = ""
        """What each thread of the process did when it hung, and how long it had run and waited for a CPU (ns)."""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Returns when the mount answers; AssertionError with the log if it does not come."""
        reader, writer = os.pipe()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    self.prelude + _SERVE,
                    self.source,
                    str(self.point),
                    self.options,
                    str(writer),
                    *self.ids,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writer,),
                start_new_session=True,
            )
        os.close(writer)
        try:
            arrived, _, _ = select.select([reader], [], [], START_SECONDS)
            answer = os.read(reader, 5) if arrived else b""
        finally:
            os.close(reader)
        if answer != b"ready":
            self.kill()
            raise AssertionError(self.log.read_text())
        self._watchdog = self._new_watchdog(HANG_SECONDS)

    def watch(self, seconds: float = HANG_SECONDS) -> None:
        """Count the time until the connection is aborted anew."""
        self._watchdog.cancel()
        self._watchdog = self._new_watchdog(seconds)

    def nodes(self) -> int:
        """How many files the process knows; the kernel has named no more that it has not given back."""
        before = self.log.read_text().count(" nodes\n")
        os.kill(self.pid, signal.SIGUSR2)
        wait_until(lambda: self.log.read_text().count(" nodes\n") > before, seconds=10, what="the number of nodes")
        return int(self.log.read_text().rpartition(" nodes\n")[0].rpartition(" ")[2])

    def resident_bytes(self) -> int:
        """RSS of the process."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * 4096

    def forget(self) -> None:
        """Make the kernel drop what it remembers of this mount and does not use: a remount does (reconfigure_super)."""
        flags = _MS_REMOUNT | _MS_NOSUID | _MS_NODEV
        if _libc.mount(None, bytes(self.point), None, flags, None) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def wait(self) -> int:
        """The exit status."""
        assert self.process is not None
        return self.process.wait(20)

    def stop(self) -> int:
        """umount(8), and the exit status."""
        subprocess.run(["umount", str(self.point)], check=True, timeout=20, capture_output=True)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL; the mount stays."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def is_mounted(self) -> bool:
        return any(mount.point == str(self.point) for mount in fuse_mounts())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watchdog.cancel()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
        Leftovers.of(self.point).free()
        if self.process is not None and self.process.poll() is None:
            self.kill()
        assert not self.hung, f"the mount hung: {self.where}\n{self.log.read_text()}"
        assert "Traceback" not in self.log.read_text(), self.log.read_text()

    def _new_watchdog(self, seconds: float) -> threading.Timer:
        watchdog = threading.Timer(seconds, self._abort)
        watchdog.daemon = True
        watchdog.start()
        return watchdog

    def _abort(self) -> None:
        self.hung = True
        for thread in Path(f"/proc/{self.pid}/task").glob("*"):
            with contextlib.suppress(OSError):
                facts = [(thread / name).read_text().strip() for name in ("wchan", "syscall", "schedstat")]
                self.where += f"\n{thread.name}: {', '.join(facts)}"
        Leftovers.of(self.point).free()
