"""vm.watermark_boost_factor 0 as long as an engine serves.

When the kernel has to mix page types in one block it raises a zone's watermarks, min included, for kswapd to work
up to (boost_watermark). On a machine without free memory they then stand above all that is left: the loop worker,
which allocates for each request with GFP_NOIO and has no reserve, waits for memory that only its own requests can
free, and kswapd waits for the loop worker.

The setting is the whole machine's. Each engine and each supervisor holds a shared flock(2) on a file of root's (the
sysctl's own can be opened, and locked, by anybody), which the kernel drops with the process, however that ends. Who
can make it exclusive is the last one, and puts back what the first one found; that is kept in /run, because the first
may be long gone.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

BOOST_FACTOR: Final = Path("/proc/sys/vm/watermark_boost_factor")
LOCK: Final = Path("/run/fuseswap-watermark_boost_factor.lock")
_BEFORE: Final = Path("/run/fuseswap-watermark_boost_factor")


@contextmanager
def steady() -> Iterator[bool]:
    """Whether the factor is 0 meanwhile. Without privilege it stays as it was."""
    if not BOOST_FACTOR.exists():
        # Kernels before 5.0 do not boost.
        yield True
        return
    try:
        descriptor = os.open(LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield _factor() == 0
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):
            _turn_off()
        yield _factor() == 0
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _put_back()
        os.close(descriptor)


def _factor() -> int:
    """In units of 1/10,000 of the high watermark."""
    return int(BOOST_FACTOR.read_text())


def _turn_off() -> None:
    before = _factor()
    if before:
        _BEFORE.write_text(f"{before}\n")
        BOOST_FACTOR.write_text("0")


def _put_back() -> None:
    before = _BEFORE.read_text()
    # What somebody else has set meanwhile stays.
    if _factor() == 0:
        BOOST_FACTOR.write_text(before)
    _BEFORE.unlink()
