"""What a guest is told to do, and the names of what can be taken from the engine. Read on both sides."""

import json
from typing import Final

from attrs import asdict, frozen

MIB: Final = 1 << 20

FW_CFG_NAME: Final = "opt/fuseswap/scenario"
"""QEMU hands the scenario in as this file of its firmware configuration."""

SAFEGUARDS: Final = (
    "mlockall",
    "realtime",
    "io-flusher",
    "oom-score",
    "sysctls",
    "small-buffers",
    "heap",
)
"""What `without/sitecustomize.py` can take away from engine and supervisor."""


@frozen
class Stage:
    """Hogs that run together, and what runs beside them until the last of them has ended."""

    name: str
    hogs: tuple[int, ...]
    """Bytes of each."""
    touches: int
    """Pages that each hog reads at random at the end."""
    beside: bool = False
    """A page-cache load (reads and writes) and a fork storm."""


@frozen
class Scenario:
    """One boot of the guest."""

    url: str
    stages: tuple[Stage, ...]
    without: tuple[str, ...] = ()
    sysctls: tuple[str, ...] = ()
    """Set before swap is on: NAME=VALUE."""
    looks_max: int = 60
    """A hang is no page in or out, and no word from a hog, so many looks in a row; a look takes a second or more."""


def to_json(scenario: Scenario) -> str:
    """JSON text of a scenario."""
    return json.dumps(asdict(scenario))


def from_json(text: str) -> Scenario:
    """The scenario that `to_json` wrote."""
    plain = json.loads(text)
    stages = tuple(Stage(**{**stage, "hogs": tuple(stage["hogs"])}) for stage in plain.pop("stages"))
    without, sysctls = tuple(plain.pop("without")), tuple(plain.pop("sysctls"))
    return Scenario(stages=stages, without=without, sysctls=sysctls, **plain)
