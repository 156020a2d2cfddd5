"""Active files of engines that this process knows nothing of: what their counters say.

They were activated before it began, or on another mount of the same files.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from fuseswap.swap.counters import Counters, Word
from fuseswap.swap.target import Activation, activation_from_json
from fuseswap.swap.units import RUN_DIRECTORY

log = logging.getLogger(__name__)

_TICK_NS_MAX: Final = 20_000_000
"""Twice a tick at 100 Hz."""


@frozen
class Engine:
    """One that has counters."""

    activation: Activation
    has_begun: bool
    is_alive: bool


@define(eq=False)
class Watch:
    """Which counters there are, cheap enough to be asked at each write."""

    directory: str = RUN_DIRECTORY
    _names: list[str] = field(factory=list, init=False)
    _listed_ns: int = field(default=0, init=False)
    """When the directory had last changed as the names were read; 0 if they must be read again."""

    def present(self) -> tuple[tuple[str, int], ...]:
        """By name and inode: another answer if an engine came or went."""
        # Path costs as much again.
        try:
            changed_ns = os.stat(self.directory).st_mtime_ns  # noqa: PTH116
            if changed_ns != self._listed_ns:
                self._names = os.listdir(self.directory)  # noqa: PTH208
                # A second change within one tick of the kernel's clock leaves the time as it is.
                self._listed_ns = changed_ns if time.time_ns() - changed_ns > _TICK_NS_MAX else 0
        except OSError:
            self._names, self._listed_ns = [], 0
        found: list[tuple[str, int]] = []
        for name in self._names:
            with contextlib.suppress(OSError):
                found.append((name, os.stat(f"{self.directory}/{name}/counters").st_ino))  # noqa: PTH116
        return tuple(found)


def engines(run_directory: str = RUN_DIRECTORY) -> Iterator[Engine]:
    """All engines with counters. Files that are none of ours are passed over."""
    for path in sorted(Path(run_directory).glob("*/counters")):
        try:
            yield _read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s: not the counters of an engine: %s", path, error)


def served() -> Iterator[Activation]:
    """The activations of all engines now alive."""
    return (engine.activation for engine in engines() if engine.is_alive)


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
