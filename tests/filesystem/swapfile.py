"""Swap files on a mount, and the control protocol as the command speaks it."""

import json
import os
from pathlib import Path
from typing import Any

from fuseswap.swap.counters import COUNTERS_BYTES, Counters, Word
from fuseswap.swap.header import SwapHeader, format_header
from fuseswap.swap.units import PAGE_SIZE, XATTR_ACTIVATE, XATTR_ACTIVATION, XATTR_CHECK, XATTR_DEACTIVATE

PAGES = 16
HERE = "a" * 32
ELSEWHERE = "b" * 32
BOOT = "11111111-2222-3333-4444-555555555555"


def write_swap_file(path: Path, pages: int = PAGES) -> bytes:
    """A file that swap_activate accepts: fully written, with a header. Returns its contents."""
    content = format_header(SwapHeader(last_page=pages - 1)) + os.urandom((pages - 1) * PAGE_SIZE)
    path.write_bytes(content)
    return content


def activate(path: Path | int, machine: str = HERE, *, steal: bool = False) -> None:
    request = {"machine_id": machine, "boot_id": BOOT, "steal": steal}
    os.setxattr(path, XATTR_ACTIVATE, json.dumps(request).encode())


def deactivate(path: Path | int) -> None:
    os.setxattr(path, XATTR_DEACTIVATE, b"1")


def activation(path: Path | int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(os.getxattr(path, XATTR_ACTIVATION))
    return found


def check(path: Path | int) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(os.getxattr(path, XATTR_CHECK))
    return report


def write_counters(path: Path, plain: dict[str, object], pid: int, start_ticks: int = 0) -> None:
    """The counters file of an engine with that pid, and its directory."""
    path.parent.mkdir(parents=True)
    data = bytearray(COUNTERS_BYTES)
    counters = Counters(data)
    counters.initialize({"name": path.parent.name, "activation": plain})
    counters.words[Word.ENGINE_PID] = pid
    counters.words[Word.ENGINE_START_TICKS] = start_ticks
    counters.close()
    path.write_bytes(data)
