"""Swap areas, through util-linux and /proc/swaps."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from attrs import frozen

from fuseswap.host.bounded import HostError, abandon, one_line, run, start
from fuseswap.host.procfs import read_table, unescape
from fuseswap.swap.units import PAGE_SIZE

PRIORITY_MAX = 32767
SWAPS = Path("/proc/swaps")
_BLANKS = re.compile(r"[ \t]+")
_DELETED = " (deleted)"
_WATCH_SECONDS = 0.25


@frozen
class SwapArea:
    """One line of /proc/swaps, in bytes. The header page does not count in `size_bytes`."""

    path: str
    type: str
    size_bytes: int
    used_bytes: int
    priority: int
    deleted: bool
    """The file has no name any more."""


def parse_swaps(text: str) -> tuple[SwapArea, ...]:
    """The table of /proc/swaps (swap_show in mm/swapfile.c). ValueError if it is none."""
    header, *lines = text.split("\n")
    if header.split() != ["Filename", "Type", "Size", "Used", "Priority"]:
        raise ValueError(f"not the header of /proc/swaps: {header!r}")
    return tuple(_parse_line(line) for line in lines if line)


def swaps() -> tuple[SwapArea, ...]:
    """The active swap areas. HostError if the kernel has no swap."""
    try:
        return parse_swaps(read_table(SWAPS))
    except FileNotFoundError:
        raise HostError(f"this kernel has no swap (CONFIG_SWAP): {SWAPS} does not exist") from None


def swap_area(path: str) -> SwapArea | None:
    """The active area on the device or file `path`."""
    return next((area for area in swaps() if area.path == path), None)


def make_header(size_bytes: int) -> bytes:
    """The first page of a swap area of `size_bytes`, as mkswap writes it (with a fresh UUID).

    mkswap works on a sparse file in memory: it never sees, and so never overwrites, the real one.
    """
    descriptor = os.memfd_create("swap-header")
    try:
        os.fchmod(descriptor, 0o600)
        os.ftruncate(descriptor, size_bytes)
        run(["mkswap", "--pagesize", str(PAGE_SIZE), f"/proc/{os.getpid()}/fd/{descriptor}"])
        return os.pread(descriptor, PAGE_SIZE, 0)
    except OSError as error:
        raise HostError(f"mkswap for {size_bytes} bytes: {error.strerror}") from None
    finally:
        os.close(descriptor)


def swapon(device: str, priority: int | None) -> None:
    """swapon without discard: each would hold the inode lock of the engine's file, and swap-out stands."""
    flags = [] if priority is None else ["--priority", str(priority)]
    run(["swapon", *flags, device], seconds=60)


def swapoff(device: str, watch: Callable[[int, float], None]) -> None:
    """swapoff; waits for as long as it takes to read every page back.

    `watch(used_bytes, seconds)` is called some times a second with what is still out, and how long ago that
    last fell. When it raises, swapoff is asked to give up (swap then stays on) and the exception goes on.
    HostError if the kernel refuses (ENOMEM); nothing happens if the area is not active.
    """
    area = swap_area(device)
    if area is None:
        return
    process = start(["swapoff", device])
    used, fell = area.used_bytes, time.monotonic()
    try:
        while True:
            try:
                _, errors = process.communicate(timeout=_WATCH_SECONDS)
                break
            except subprocess.TimeoutExpired:
                area = swap_area(device)
            now = time.monotonic()
            remaining = area.used_bytes if area is not None else 0
            if remaining < used:
                used, fell = remaining, now
            watch(remaining, now - fell)
    except BaseException:
        abandon(process)
        raise
    if process.returncode and swap_area(device) is not None:
        raise HostError(one_line(errors, "swapoff", process.returncode))


def shortfall(device: str, areas: tuple[SwapArea, ...], available_bytes: int) -> int:
    """Bytes that lack for bringing the pages of `device` back: in memory, and in the other areas.

    0 if it fits. `available_bytes` is MemAvailable; what is swapped in may push other pages out.
    """
    used = sum(area.used_bytes for area in areas if area.path == device)
    elsewhere = sum(area.size_bytes - area.used_bytes for area in areas if area.path != device)
    return max(0, used - available_bytes - elsewhere)


def _parse_line(line: str) -> SwapArea:
    # Columns are padded with blanks and tabs; a name has none of either, they are escaped.
    name, kind, size, used, priority = _BLANKS.split(line)
    path = unescape(name)
    deleted = path.endswith(_DELETED)
    return SwapArea(
        path=path.removesuffix(_DELETED) if deleted else path,
        type=kind,
        size_bytes=int(size) * 1024,
        used_bytes=int(used) * 1024,
        priority=int(priority),
        deleted=deleted,
    )
