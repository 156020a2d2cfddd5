"""A memory cgroup with a limit, made, used and removed: version 1 or 2, whichever has the memory controller.

(Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst, section "Memory".)
"""

import contextlib
import errno
import select
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from attrs import frozen

from fuseswap.host.bounded import HostError
from fuseswap.host.procfs import unescape

_REMOVE_SECONDS_MAX: Final = 10.0
_POLL_SECONDS: Final = 0.02

_ENTER: Final = 'echo $$ >"$1" && shift && exec "$@"'


@frozen
class Hierarchy:
    """Where memory cgroups are made on this machine, and what their files are called."""

    root: Path
    version: int

    @property
    def limit_file(self) -> str:
        return "memory.limit_in_bytes" if self.version == 1 else "memory.max"

    @property
    def usage_file(self) -> str:
        return "memory.usage_in_bytes" if self.version == 1 else "memory.current"


def memory_hierarchy(mounts: str | None = None) -> Hierarchy:
    """The hierarchy that has the memory controller, by the text of /proc/self/mounts. HostError if none has."""
    for line in (Path("/proc/self/mounts").read_text() if mounts is None else mounts).splitlines():
        _, point, kind, options, *_ = line.split(" ")
        root = Path(unescape(point))
        if kind == "cgroup" and "memory" in options.split(","):
            return Hierarchy(root, version=1)
        if kind == "cgroup2" and "memory" in (root / "cgroup.controllers").read_text().split():
            return Hierarchy(root, version=2)
    raise HostError("no cgroup hierarchy here has the memory controller: boot with cgroup_enable=memory")


class MemoryCgroup:
    """A memory cgroup of its own; as a context manager it is removed on exit.

    The processes in it must have ended by then; what they leave charged goes to the parent.
    """

    def __init__(self, name: str, limit_bytes: int) -> None:
        """Make it below the root of the hierarchy. HostError if it exists or the kernel refuses."""
        self._hierarchy = memory_hierarchy()
        self.path = self._hierarchy.root / name
        self._delegated = self._delegate()
        try:
            self.path.mkdir()
        except OSError as error:
            self._take_back()
            raise HostError(f"cgroup {self.path}: {error.strerror}") from None
        try:
            self._write(self._hierarchy.limit_file, str(limit_bytes))
        except BaseException:
            self.remove()
            raise

    def add(self, pid: int) -> None:
        """Move a process in. What it had allocated before stays charged where it was."""
        self._write("cgroup.procs", str(pid))

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The same command, entering the group before it begins, so that all its memory counts."""
        return ["sh", "-c", _ENTER, "enter", str(self.path / "cgroup.procs"), *arguments]

    def pids(self) -> list[int]:
        """The processes in the group."""
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]

    def usage_bytes(self) -> int:
        """Memory charged now, swap cache and page cache included."""
        return int((self.path / self._hierarchy.usage_file).read_text())

    def reclaim(self) -> None:
        """Push out all that can go: swap cache and page cache are dropped, anonymous pages swapped out."""
        if self._hierarchy.version == 1:
            self._write("memory.force_empty", "0")
            return
        # EAGAIN: some of it could not be reclaimed, which is how it ends.
        with contextlib.suppress(BlockingIOError):
            (self.path / "memory.reclaim").write_text(str(self.usage_bytes()))

    def remove(self) -> None:
        """Remove it, and wait for processes that are just ending. HostError if one stays."""
        deadline = time.monotonic() + _REMOVE_SECONDS_MAX
        while True:
            try:
                self.path.rmdir()
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise HostError(f"cgroup {self.path}: {error.strerror}, holds {self.pids()}") from None
                select.select([], [], [], _POLL_SECONDS)
            else:
                break
        self._take_back()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _delegate(self) -> bool:
        """Version 2: children of the root have the controller only if the root hands it down. True if changed."""
        control = self._hierarchy.root / "cgroup.subtree_control"
        if self._hierarchy.version == 1 or "memory" in control.read_text().split():
            return False
        control.write_text("+memory")
        return True

    def _take_back(self) -> None:
        if self._delegated:
            self._delegated = False
            # EBUSY: another child of the root has come to use it meanwhile.
            with contextlib.suppress(OSError):
                (self._hierarchy.root / "cgroup.subtree_control").write_text("-memory")

    def _write(self, name: str, text: str) -> None:
        try:
            (self.path / name).write_text(text)
        except OSError as error:
            raise HostError(f"cgroup {self.path}: {name}: {error.strerror}") from None
