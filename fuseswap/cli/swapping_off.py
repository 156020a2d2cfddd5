"""swapoff, with the questions that come first: is there room for the pages, and will they come at all?"""

import sys
import time
from collections.abc import Callable

from attrs import define, frozen

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


@define(eq=False)
class Silence:
    """For how long requests of NAME have waited, and the server has not sent one reply."""

    name: str
    _reply_ns: int = -1
    _since: float = 0.0

    def lasts(self) -> bool:
        """Whether it was there at every call of the last _PATIENCE_SECONDS; to be called some times a second.

        A reply that is old says nothing where nothing is asked.
        """
        now = time.monotonic()
        counters = rundir.read_counters(self.name)
        if counters is None or not isinstance(counters.activation.target, NfsTarget):
            return False
        reply_ns = counters.words["reply_ns"]
        if reply_ns != self._reply_ns or not (counters.words["requests"] or _requests_waiting(self.name)):
            self._reply_ns, self._since = reply_ns, now
        return now - self._since > _PATIENCE_SECONDS


def _requests_waiting(name: str) -> int:
    # Of an engine that does not come to counting them.
    mount = mount_at(str(rundir.engine_mountpoint(name)))
    return fusectl.waiting(mount) if mount is not None else 0


def abort_if_silent(silence: Silence) -> bool:
    """Abort NAME's connection, so that a swapoff that hangs ends, if its server is silent or its engine dead."""
    device = rundir.engine_device(silence.name)
    area = swap_area(device.path) if device is not None else None
    if area is None or not (silence.lasts() or not condition(silence.name).engine_alive):
        return False
    _abort(silence.name, area.used_bytes)
    return True


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
    engine's connection is aborted when the server answers nothing any more: the pages are lost, and that is said.
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
    silence = Silence(name)
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
        if told:
            return
        if force:
            told = abort_if_silent(silence)
        elif seconds >= _PATIENCE_SECONDS:
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
    elif (counters := rundir.read_counters(name)) is not None:
        # Of a mount that is in the table no more (umount -l) the connection ends with the engine.
        engine = processes.find_engine(counters.words)
        if engine is not None:
            engine.kill()
            engine.close()


def _loss(used_bytes: int) -> str:
    return (
        f"{format_size(used_bytes)} of memory swapped to it are lost, and the processes they belong to get SIGBUS"
        " where they touch them"
    )
