"""swapoff, with the questions that come first: is there room for the pages, and will they come at all?"""

import sys
import time
from collections.abc import Callable

from attrs import frozen

from fuseswap.cli.failure import Exit, Failure
from fuseswap.cli.output import say, warn
from fuseswap.cli.size import format_size
from fuseswap.host import fusectl, processes, rundir
from fuseswap.host.bounded import HostError
from fuseswap.host.machine import memory_available_bytes
from fuseswap.host.mounts import mount_at
from fuseswap.host.swap import SwapArea, shortfall, swap_area, swapoff, swaps
from fuseswap.swap.target import NfsTarget

_PATIENCE_SECONDS = 5.0
"""How long the server may be away, or no page come, before that is said, or ended with --force."""
_POLL_SECONDS = 0.1


@frozen
class Condition:
    """Whether NAME's pages can be had."""

    engine_alive: bool
    connected: bool
    disconnected_seconds: float = 0.0

    @property
    def reachable(self) -> bool:
        """The engine serves and has the server."""
        return self.engine_alive and self.connected


def condition(name: str) -> Condition:
    """What the counters and the process table say of NAME."""
    counters = rundir.read_counters(name)
    if counters is None:
        return Condition(engine_alive=mount_at(str(rundir.engine_mountpoint(name))) is not None, connected=True)
    since = counters.words["disconnected_ns"]
    return Condition(
        engine_alive=processes.runs(processes.find_engine(counters.words)),
        connected=not isinstance(counters.activation.target, NfsTarget) or bool(counters.words["connected"]),
        disconnected_seconds=(counters.taken_ns - since) / 1e9 if since else 0.0,
    )


def _settled(name: str) -> Condition:
    """The condition, once the server is there or has been away for long enough to say so."""
    state = condition(name)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    if state.engine_alive and not state.connected:
        say(f"{name}: waiting for the server")
    while state.engine_alive and not state.connected:
        if state.disconnected_seconds > _PATIENCE_SECONDS or time.monotonic() > deadline:
            break
        time.sleep(_POLL_SECONDS)
        state = condition(name)
    return state


def swap_off(name: str, *, force: bool) -> None:
    """Bring NAME's pages back and end the swapping; nothing if none is on.

    Failure, with the swap still on, if memory does not suffice or the server is away. With `force` the
    engine's connection is aborted when pages cannot be had: they are lost, and that is said.
    """
    device = rundir.engine_device(name)
    area = swap_area(device.path) if device is not None else None
    if area is None:
        return
    state = _settled(name) if area.used_bytes else condition(name)
    if area.used_bytes and state.reachable:
        _require_memory(name, area)
    elif area.used_bytes and state.engine_alive:
        if not force:
            raise Failure(
                f"{name}: the server does not answer and {format_size(area.used_bytes)} of memory are there:"
                f" bring it back, or lose them with: fuseswap down --force {name}",
                Exit.SERVER,
            )
        _abort(name, area.used_bytes)
    elif area.used_bytes:
        warn(f"{name}: its engine is dead: {_loss(area.used_bytes)}")
    say(f"{name}: swapoff {area.path}" + (f", {format_size(area.used_bytes)} to bring back" * bool(area.used_bytes)))
    patience = _PATIENCE_SECONDS if force or not state.engine_alive else 0.0
    try:
        _swapoff_until(time.monotonic() + patience, name, area, force)
    finally:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _swapoff_until(deadline: float, name: str, area: SwapArea, force: bool) -> None:
    """swapoff, tried again until then: ENOMEM passes when the owners of lost pages are just ending.

    A memory cgroup that can no longer swap is out of memory as soon as swapoff charges a page to it. The kernel
    then kills a process in it (mem_cgroup_out_of_memory) but does not wait for its end.
    """
    while True:
        try:
            swapoff(area.path, _watcher(name, force))
            return
        except HostError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)


def _require_memory(name: str, area: SwapArea) -> None:
    lacking = shortfall(area.path, swaps(), memory_available_bytes())
    if lacking:
        raise Failure(
            f"{name}: {format_size(area.used_bytes)} are swapped out and {format_size(lacking)} of memory lack"
            " to bring them back: end some processes, or turn other swap on first"
        )


def _watcher(name: str, force: bool) -> Callable[[int, float], None]:
    told = False
    tty = sys.stderr.isatty()

    def watch(used_bytes: int, seconds: float) -> None:
        nonlocal told
        if tty:
            print(
                f"\r\x1b[K{name}: {format_size(used_bytes)} to bring back",
                end="",
                file=sys.stderr,
                flush=True,
            )
        if seconds < _PATIENCE_SECONDS:
            return
        if force:
            if not told:
                _abort(name, used_bytes)
        elif not told:
            warn(
                f"{name}: no page came back for {seconds:.0f} s, {format_size(used_bytes)} are still out; waiting"
                f" (Ctrl-C leaves swap on; fuseswap down --force {name} loses them)"
            )
        told = True

    return watch


def _abort(name: str, used_bytes: int) -> None:
    warn(f"{name}: aborting its connection: {_loss(used_bytes)}")
    mount = mount_at(str(rundir.engine_mountpoint(name)))
    if mount is not None:
        fusectl.abort(mount)


def _loss(used_bytes: int) -> str:
    return (
        f"{format_size(used_bytes)} of memory swapped to it are lost, and the processes they belong to get SIGBUS"
        " where they touch them"
    )
