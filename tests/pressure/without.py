"""The engine's process with safeguards taken away, to see what each is good for. No part of the product.

`python -m tests.pressure.without SAFEGUARDS DIRECTORY RESERVE_BYTES READY_FD`: the comma-separated safeguards are
taken away, then `fuseswap.engine.main` runs as ever. Imports no more than that does.
"""

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from fuseswap.engine import hardening, libc
from fuseswap.engine import main as engine


def _nothing(*_: object) -> None:
    return


def _refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, "taken away by the test")


def _mlockall() -> None:
    _replace(libc, "lock_memory", _nothing)


def _heap() -> None:
    _replace(hardening, "touch_heap", _use_up_heap)
    _replace(hardening, "touch_stack", _nothing)


_kept: list[bytes | None] = [None] * 100_000


def _use_up_heap(_: int) -> None:
    """Fill the free memory that the interpreter has: it begins to serve with more or less of it, by chance."""
    growths = 0
    with Path("/proc/self/statm").open("rb", buffering=0) as statm:
        pages = statm.read().split()[0]
        for index in range(len(_kept)):
            _kept[index] = bytes(470)  # in the largest of the small classes, of 512 bytes
            statm.seek(0)
            if pages != (pages := statm.read().split()[0]):
                growths += 1
                if growths == 2:
                    # The first growth has been filled, and what the second brought goes back.
                    _kept[index] = None
                    return
    raise AssertionError("the heap did not grow")


def _gc() -> None:
    _replace(hardening, "gc", SimpleNamespace(collect=_nothing, freeze=_nothing, disable=_nothing))


def _realtime() -> None:
    _replace(hardening, "be_urgent", _refuse)


def _replace(module: Any, name: str, value: object) -> None:
    getattr(module, name)
    setattr(module, name, value)


TAKEN_AWAY: Final[dict[str, Callable[[], None]]] = {
    "mlockall": _mlockall,
    "heap": _heap,
    "malloc": _nothing,
    "gc": _gc,
    "realtime": _realtime,
}
"""`malloc` is the environment (`hardening.ENVIRONMENT`): whoever starts this leaves it out."""

if __name__ == "__main__":
    for safeguard in filter(None, sys.argv[1].split(",")):
        TAKEN_AWAY[safeguard]()
    sys.exit(engine.main(sys.argv[2:]))
