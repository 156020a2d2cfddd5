"""Settings of the machine's memory as the path of a page needs them, as long as an engine serves.

*vm.watermark_boost_factor 0.* When the kernel has to mix page types in one block it raises a zone's watermarks, min
included, for kswapd to work up to (boost_watermark). On a machine without free memory they then stand above all that
is left: the loop worker, which allocates for each request with GFP_NOIO and has no reserve, waits for memory that only
its own requests can free, and kswapd waits for the loop worker.

*vm.min_free_kbytes, at least 16 MiB, or a 16th of a smaller machine.* Its default on 256 MiB is 1.7 MiB. Others than
the engine allocate for its pages, too: the network card's driver, which refills its receive ring with GFP_ATOMIC, and
where that fails by a worker that waits in reclaim for the very loop device whose answers it should receive.

*vm.compact_unevictable_allowed 0.* Locked memory stays in memory, not in its place: compaction moves it, and whoever
touches a page meanwhile takes a page fault and waits until it has arrived.

The settings are the whole machine's. Each engine and each supervisor holds a shared flock(2) on a file of root's (the
sysctls' own can be opened, and locked, by anybody), which the kernel drops with the process, however that ends. Who
can make it exclusive is the last one, and puts back what the first one found; that is kept in /run, because the first
may be long gone.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

MIN_FREE_KIB: Final = 16 << 10
RAM_SHARE: Final = 16
LOCK: Final = Path("/run/fuseswap-sysctls.lock")
_SAVED: Final = Path("/run")


@frozen
class Setting:
    """A sysctl: its file, and what it is to be instead of what it is."""

    path: Path
    wanted: Callable[[int], int]
    otherwise: str
    """What may happen where it cannot be set."""

    def value(self) -> int:
        return int(self.path.read_text())

    def suits(self) -> bool:
        """Whether it is as wanted, or this kernel does not have it."""
        return not self.path.exists() or self.value() == self.wanted(self.value())

    @property
    def _saved(self) -> Path:
        return _SAVED / f"fuseswap-{self.path.name}"

    def change(self) -> None:
        before = self.value()
        wanted = self.wanted(before)
        if wanted != before:
            self._saved.write_text(f"{before} {wanted}\n")
            self.path.write_text(f"{wanted}\n")

    def put_back(self) -> None:
        before, changed = map(int, self._saved.read_text().split())
        # What somebody else has set meanwhile stays.
        if self.value() == changed:
            self.path.write_text(f"{before}\n")
        self._saved.unlink()


def min_free_kib(ram_bytes: int) -> int:
    """What vm.min_free_kbytes must be at least."""
    return min(MIN_FREE_KIB, ram_bytes // 1024 // RAM_SHARE)


def _enough_free(before: int) -> int:
    return max(before, min_free_kib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))


_HANG: Final = "without memory this machine may hang"
SETTINGS: tuple[Setting, ...] = (
    Setting(Path("/proc/sys/vm/watermark_boost_factor"), lambda _before: 0, _HANG),
    Setting(Path("/proc/sys/vm/min_free_kbytes"), _enough_free, _HANG),
    Setting(Path("/proc/sys/vm/compact_unevictable_allowed"), lambda _before: 0, "the engine may wait for compaction"),
)


def _refused() -> tuple[Setting, ...]:
    return tuple(setting for setting in SETTINGS if not setting.suits())


@contextmanager
def steady() -> Iterator[tuple[Setting, ...]]:
    """Which are not as they should be meanwhile: without privilege they stay as they were."""
    try:
        descriptor = os.open(LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield _refused()
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        for setting in SETTINGS:
            with contextlib.suppress(OSError):
                setting.change()
        yield _refused()
    finally:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for setting in SETTINGS:
                with contextlib.suppress(OSError, ValueError):
                    setting.put_back()
        os.close(descriptor)
