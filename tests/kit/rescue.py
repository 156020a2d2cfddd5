"""Freeing what a dead or hung daemon leaves: swap, loop devices, FUSE mounts, processes.

It stands on the kernel's tables alone (never a stat on a mount that may hang), and on no code under test.
"""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

import attrs

FUSECTL = Path("/sys/fs/fuse/connections")
SESSION_VARIABLE = "FUSESWAP_TEST_SESSION"
"""In the environment of every process a test session starts, with a value of its own; SESSION/gw0 for a worker's."""


@attrs.frozen
class FuseMount:
    point: str
    minor: int
    """The number of the connection below /sys/fs/fuse/connections."""


def fuse_mounts() -> list[FuseMount]:
    """Every FUSE mount of this machine, from /proc/self/mountinfo."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        _, _, device, _, point, *_ = fields.split(" ")
        if re.match(r"fuse(blk|\.|\s)", rest):
            mounts.append(FuseMount(_unescape(point), int(device.partition(":")[2])))
    return mounts


def loop_devices() -> dict[str, str]:
    """Device name -> backing file, as sysfs shows it."""
    devices = {}
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            devices[f"/dev/{backing.parts[3]}"] = backing.read_text().rstrip("\n")
    return devices


def swap_areas() -> list[str]:
    """The paths in /proc/swaps."""
    return [_unescape(line.split()[0]) for line in Path("/proc/swaps").read_text().splitlines()[1:]]


def session_processes(session: str) -> list[int]:
    """The processes of a test session that still run, without this one."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if _is_of(session, environ) and environ.parts[2] != str(os.getpid()):
                found.append(int(environ.parts[2]))
    return found


def names_of_others(directory: str, session: str) -> set[str]:
    """Entries of `directory` that a living process of no test session, or of another one, speaks of."""
    names = {entry.name for entry in Path(directory).glob("*")}
    found = set()
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            title, _, rest = cmdline.read_bytes().rstrip(b"\0").decode(errors="replace").partition(" ")
            if title.startswith("fuseswap-") and not _is_of(session, cmdline.parent / "environ"):
                found |= names & {rest, *Path(rest).parts}
    return found


def _is_of(session: str, environ: Path) -> bool:
    marker = f"{SESSION_VARIABLE}={session}".encode()
    return any(entry == marker or entry.startswith(marker + b"/") for entry in environ.read_bytes().split(b"\0"))


def below(path: str, directories: Iterable[str | Path]) -> bool:
    """Whether `path` is one of the directories or lies below one; text only, the file system is not asked."""
    return any(path == str(directory) or path.startswith(f"{directory}/") for directory in directories)


@attrs.frozen
class Leftovers:
    """What of the given directories is still mounted, looped or swapped on."""

    swaps: frozenset[str]
    loops: frozenset[str]
    mounts: frozenset[FuseMount]

    @classmethod
    def of(cls, *directories: str | Path) -> "Leftovers":
        loops = {device for device, backing in loop_devices().items() if below(backing, directories)}
        return cls(
            swaps=frozenset(area for area in swap_areas() if area in loops or below(area, directories)),
            loops=frozenset(loops),
            mounts=frozenset(mount for mount in fuse_mounts() if below(mount.point, directories)),
        )

    def without(self, other: "Leftovers") -> "Leftovers":
        return Leftovers(self.swaps - other.swaps, self.loops - other.loops, self.mounts - other.mounts)

    def __bool__(self) -> bool:
        return bool(self.swaps or self.loops or self.mounts)

    def free(self) -> None:
        """Take all of it away. Connections are aborted first: nothing after that can wait for a daemon."""
        if self.mounts and not any(FUSECTL.iterdir()):
            _run("mount", "-t", "fusectl", "none", str(FUSECTL))
        for mount in self.mounts:
            _abort(mount)
        for area in self.swaps:
            _run("swapoff", area)
        for device in self.loops:
            _run("losetup", "-d", device)
        for mount in self.mounts:
            _run("umount", "-l", mount.point)


def _abort(mount: FuseMount) -> None:
    with contextlib.suppress(OSError), (FUSECTL / str(mount.minor) / "abort").open("wb", buffering=0) as abort:
        # One that has gone since leaves its number to the next, maybe another test's: the open file is not the next's.
        if mount in fuse_mounts():
            abort.write(b"1")


def end_processes(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _run(*command: str) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, check=False, timeout=60, stdin=subprocess.DEVNULL, capture_output=True)


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
