"""Active files of engines that this process knows nothing of: what their counters say.

They were activated before it began, or on another mount of the same files.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from fuseswap.swap.counters import Counters, Word
from fuseswap.swap.target import Activation, activation_from_json
from fuseswap.swap.units import RUN_DIRECTORY

log = logging.getLogger(__name__)


@frozen
class Engine:
    """One that has counters."""

    activation: Activation
    has_begun: bool
    is_alive: bool


def present(run_directory: str = RUN_DIRECTORY) -> tuple[tuple[str, int], ...]:
    """Which counters there are, by name and inode: cheap to ask, and another answer if an engine came or went."""
    found: list[tuple[str, int]] = []
    try:
        names = os.listdir(run_directory)  # noqa: PTH208  (asked at each write, and Path costs as much again)
    except OSError:
        return ()
    for name in names:
        with contextlib.suppress(OSError):
            found.append((name, os.stat(f"{run_directory}/{name}/counters").st_ino))  # noqa: PTH116
    return tuple(found)


def engines(run_directory: str = RUN_DIRECTORY) -> Iterator[Engine]:
    """All engines with counters. Files that are none of ours are passed over."""
    for path in sorted(Path(run_directory).glob("*/counters")):
        try:
            yield _read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s: not the counters of an engine: %s", path, error)


def _read(path: Path) -> Engine:
    counters = Counters(path.read_bytes())
    pid, ticks = counters.words[Word.ENGINE_PID], counters.words[Word.ENGINE_START_TICKS]
    activation = activation_from_json(json.dumps(counters.identity()["activation"]))
    return Engine(activation, has_begun=pid != 0, is_alive=_is_engine(pid, ticks))


def _is_engine(pid: int, start_ticks: int) -> bool:
    with contextlib.suppress(OSError):
        front, _, rest = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")
        fields = rest.split()
        is_dead = fields[0] in (b"Z", b"X")  # not reaped yet
        return not is_dead and front.partition(b"(")[2] == _ENGINE_COMM and int(fields[19]) == start_ticks
    return False


_ENGINE_COMM = b"fuseswap-engine"
