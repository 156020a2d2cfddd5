"""Active files of engines that were there before this process: what their counters say."""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

from fuseswap.swap.counters import Counters, Word
from fuseswap.swap.target import Activation, activation_from_json
from fuseswap.swap.units import RUN_DIRECTORY

log = logging.getLogger(__name__)


def active_elsewhere(run_directory: Path = Path(RUN_DIRECTORY)) -> Iterator[Activation]:
    """The activations of all engines now alive. Files that are none of ours are passed over."""
    for path in sorted(run_directory.glob("*/counters")):
        try:
            activation = _read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s: not the counters of an engine: %s", path, error)
            continue
        if activation is not None:
            yield activation


def _read(path: Path) -> Activation | None:
    counters = Counters(path.read_bytes())
    if not _is_engine(counters.words[Word.ENGINE_PID], counters.words[Word.ENGINE_START_TICKS]):
        return None
    return activation_from_json(json.dumps(counters.identity()["activation"]))


def _is_engine(pid: int, start_ticks: int) -> bool:
    with contextlib.suppress(OSError):
        front, _, rest = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")
        return front.partition(b"(")[2] == _ENGINE_COMM and int(rest.split()[19]) == start_ticks
    return False


_ENGINE_COMM = b"fuseswap-engine"
