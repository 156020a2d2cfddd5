"""The commands that turn swap on and off: `up`, `down`, `on`, `off`."""

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fuseswap.cli import ordinary, preflight, recursion
from fuseswap.cli.active import Plan, build_steps, remove_steps
from fuseswap.cli.failure import Exit, Failure
from fuseswap.cli.interrupts import Interrupted, Interrupts
from fuseswap.cli.main import explain
from fuseswap.cli.ordinary import engine_of
from fuseswap.cli.output import say, warn
from fuseswap.cli.size import format_size
from fuseswap.cli.source import is_url, join_url, same_file, split_file_url
from fuseswap.cli.steps import build, tear_down
from fuseswap.cli.swapping_off import Silence, abort_if_silent
from fuseswap.host import rundir, xattr
from fuseswap.host.bounded import HostError
from fuseswap.host.machine import require_root
from fuseswap.host.mounts import mount_at
from fuseswap.host.swap import SwapArea, swap_area, swaps
from fuseswap.swap.target import Activation

_LOCK_SECONDS = 120.0
_LOOK_SECONDS = 10.0


def up(arguments: Any, interrupts: Interrupts) -> Exit:
    """`fuseswap up URL [--size S] [--priority N] [--name NAME] [--steal]`."""
    _, file_name = split_file_url(arguments.url)
    if arguments.url.startswith("file:"):
        raise Failure(f"{arguments.url}: the kernel swaps to a local file without fuseswap: swapon FILE", Exit.REFUSED)
    name = arguments.name or _name_of(file_name)
    preflight.require_swapping()
    if not _already(arguments.url):
        bring_up(
            name,
            arguments.url,
            interrupts,
            size_bytes=arguments.size,
            priority=arguments.priority,
            steal=arguments.steal,
        )
    return Exit.DONE


def bring_up(
    name: str,
    url: str,
    interrupts: Interrupts,
    *,
    size_bytes: int | None,
    priority: int | None,
    steal: bool = False,
) -> None:
    """Make the file if it is missing, mount its directory, activate it and turn swap on; all or nothing.

    Only the file, once whole, stays when a later step fails. Failure, SourceError, EngineError, HostError.
    """
    # Imported here: a second `up` need not load the backends.
    from fuseswap.cli.create import create

    directory, file_name = split_file_url(url)
    say(f"{name}: looking for {url}")
    recursion.require_none(url)
    create(directory, file_name, size_bytes, url)
    file = str(rundir.filesystem_mountpoint(name) / file_name)
    with _lock():
        if not _already(url):
            _turn_on(Plan(name, file, directory, priority, steal), url, interrupts)


def take_down(name: str, *, force: bool) -> None:
    """Undo `bring_up`, whatever of it there is. Failure, HostError."""
    with _lock((name,) if force else ()):
        _turn_off(name, force=force)


def on(arguments: Any, interrupts: Interrupts) -> Exit:
    """`fuseswap on FILE [--priority N] [--name NAME] [--steal]`."""
    preflight.require_swapping()
    located = _locate(arguments.file)
    name = arguments.name or _name_of(Path(located.path).name)
    url = join_url(located.mount.source, located.below)
    recursion.require_none(url)
    with _lock():
        if not _already(url):
            _turn_on(Plan(name, located.path, priority=arguments.priority, steal=arguments.steal), url, interrupts)
    return Exit.DONE


def off(arguments: Any, _interrupts: Interrupts) -> Exit:
    """`fuseswap off FILE [--force]`."""
    require_root()
    located = _locate(arguments.file)
    # The mount knows, too, of what was activated elsewhere, and by another address of the same server.
    active = None
    with contextlib.suppress(OSError, HostError):
        active = ordinary.activation_of(located.path)
    url = join_url(located.mount.source, located.below)

    def wanted() -> tuple[str, ...]:
        return tuple(name for name in rundir.names() if _is_called(name, url) or _swaps_to(name, active))

    with _lock(wanted() if arguments.force else ()):
        found = wanted()
        if not found:
            if active is not None:
                ordinary.deactivate_file(located.path)
            say(f"{arguments.file} is not active" + ", and may be written again" * (active is not None))
        for name in found:
            _turn_off(name, force=arguments.force)
    return Exit.DONE


def down(arguments: Any, _interrupts: Interrupts) -> Exit:
    """`fuseswap down NAME|URL|--all [--force]`."""
    require_root()

    def wanted() -> tuple[str, ...]:
        if arguments.all:
            return rundir.names()
        called = arguments.name
        return tuple(name for name in rundir.names() if name == called or (is_url(called) and _is_called(name, called)))

    with _lock(wanted() if arguments.force else ()):
        names = wanted()
        if not names:
            say("nothing is up" if arguments.all else f"{arguments.name} is not up")
        failures: list[tuple[str, Exception]] = []
        for name in names:
            try:
                _turn_off(name, force=arguments.force)
            except Exception as error:
                if len(names) == 1:
                    raise
                failures.append((name, error))
        for name, later in failures[1:]:
            warn(f"{name}: {explain(later)[0]}")
        if failures:
            raise failures[0][1]
    return Exit.DONE


def _turn_on(plan: Plan, url: str, interrupts: Interrupts) -> None:
    name = plan.name
    _require_counters()
    if name in rundir.names():
        counters = rundir.read_counters(name)
        if counters is not None and _area(name) is not None:
            raise Failure(f"{name} is in use for {counters.activation.source}: choose another name with --name")
        say(f"{name}: removing what an earlier command left")
        tear_down(remove_steps(name, force=False))

    def failed(error: BaseException) -> None:
        what = "interrupted" if isinstance(error, Interrupted) else "failed"
        say(f"{name}: {what}: undoing what was done")

    build(build_steps(plan, interrupts), failed=failed, shield=interrupts.shield)
    area = _area(name)
    if area is None:
        raise Failure(f"{name}: swap was turned off by somebody else: fuseswap down {name}")
    say(f"{name}: {format_size(area.size_bytes)} of swap on {area.path}, priority {area.priority}: {url}")
    for other_area in swaps():
        if other_area.path != area.path and other_area.priority >= area.priority:
            say(f"{name}: {other_area.path} has priority {other_area.priority} and is used first")


def _require_counters() -> None:
    """Failure if an engine may be at work whose counters do not tell on which file: it may be the one wanted."""
    for name in rundir.names():
        if rundir.read_counters(name) is not None:
            continue
        device = rundir.engine_device(name)
        if device is not None or mount_at(str(rundir.engine_mountpoint(name))) is not None:
            what = device.path if device is not None else "an engine's mount"
            raise Failure(f"{name}: {what} is there without readable counters of its engine: fuseswap down {name}")


def _turn_off(name: str, *, force: bool) -> None:
    tear_down(remove_steps(name, force=force))
    say(f"{name} is down")


def _already(url: str) -> bool:
    """Whether swap to `url` is on, which is said. Failure if it is, but on a dead engine."""
    for name in rundir.names():
        area = _area(name) if _is_called(name, url) else None
        if area is None:
            continue
        if engine_of(url) != name:
            raise Failure(f"{name}: its engine is dead, its pages are lost: fuseswap down {name}")
        say(f"{name}: already swapping to {url} on {area.path}")
        return True
    return False


def _is_called(name: str, url: str) -> bool:
    counters = rundir.read_counters(name)
    return counters is not None and same_file(counters.activation.source, url)


def _swaps_to(name: str, active: Activation | None) -> bool:
    counters = rundir.read_counters(name)
    return active is not None and counters is not None and ordinary.is_same(counters.activation, active)


def _area(name: str) -> SwapArea | None:
    device = rundir.engine_device(name)
    return swap_area(device.path) if device is not None else None


def _locate(file: str) -> xattr.MountedFile:
    try:
        located = xattr.locate(file, seconds=_LOOK_SECONDS)
    except FileNotFoundError:
        raise Failure(f"{file} does not exist: fuseswap create {file} --size SIZE") from None
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from None
    if located is None:
        raise Failure(f"{file} does not lie on a fuseswap mount: fuseswap mount SOURCE DIR, or fuseswap up URL")
    return located


def _name_of(file_name: str) -> str:
    if not rundir.is_name(file_name):
        raise Failure(f"{file_name!r} cannot be a name here: choose one with --name", Exit.USAGE)
    return file_name


def _lock(forced: tuple[str, ...] = ()) -> AbstractContextManager[None]:
    """Alone; the command that is waited for may hang in swapoff of a name that is to go by force."""
    silences = [Silence(name) for name in forced]

    def still_waiting() -> None:
        silences[:] = [silence for silence in silences if not abort_if_silent(silence)]

    return rundir.lock(_LOCK_SECONDS, lambda: say("waiting for another fuseswap command"), still_waiting)
