"""Whose permissions a request uses."""

import time
from typing import Final, Protocol

import pyfuse3

from fuseswap.backends.protocol import Caller

_GROUPS_SECONDS: Final = 3.0
_CACHE_ENTRIES_MAX: Final = 4096


class Context(Protocol):
    """pyfuse3.RequestContext, as far as it matters here."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int: ...


class Callers:
    """Turns the ids of a request into a `Caller`, with the supplementary groups of its process."""

    def __init__(self) -> None:
        self._groups: dict[tuple[int, int, int], tuple[float, tuple[int, ...]]] = {}

    def of(self, context: Context) -> Caller:
        """Root's groups are not asked for: root needs none where it is trusted, and has none where squashed."""
        if context.uid == 0:
            return Caller(0, context.gid)
        key = (context.pid, context.uid, context.gid)
        now = time.monotonic()
        until, groups = self._groups.get(key, (0.0, ()))
        if until < now:
            groups = _read_groups(context.pid, context.gid)
            if len(self._groups) >= _CACHE_ENTRIES_MAX:
                self._groups.clear()
            self._groups[key] = (now + _GROUPS_SECONDS, groups)
        return Caller(context.uid, context.gid, groups)


def _read_groups(pid: int, gid: int) -> tuple[int, ...]:
    try:
        groups = pyfuse3.get_sup_groups(pid)
    except (OSError, RuntimeError, ValueError):
        return ()
    return tuple(sorted(groups - {gid}))
