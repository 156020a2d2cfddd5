"""The ordinary mount of an active swap file: found, asked, mounted again when its process has died, left."""

import contextlib
import json
import os
from pathlib import Path

from attrs import asdict

from fuseswap.backends.protocol import SourceError
from fuseswap.cli import mount
from fuseswap.cli.failure import Exit, Failure
from fuseswap.cli.output import warn
from fuseswap.cli.source import below, same_file, split_file_url
from fuseswap.host import fusectl, processes, rundir, xattr
from fuseswap.host.bounded import HostError, Hung, call
from fuseswap.host.machine import boot_id, host_name, machine_id
from fuseswap.host.mounts import Mount, is_ours, mount_at, mounts
from fuseswap.swap.target import Activation, ActivationRequest, NfsTarget, activation_from_json
from fuseswap.swap.units import XATTR_ACTIVATE, XATTR_ACTIVATION, XATTR_DEACTIVATE

FILE_SECONDS = 30.0
"""How long one question to the filesystem may take; its server may be slow."""
_FORCED_SECONDS = 2.0
_END_SECONDS = 10.0
"""How long a filesystem process may take to end, which commits what was written."""


def engine_of(source: str) -> str | None:
    """The name under which an engine serves the file `source` now."""
    for name in rundir.names():
        counters = rundir.read_counters(name)
        if counters is None or not same_file(counters.activation.source, source):
            continue
        if processes.runs(processes.find_engine(counters.words)):
            return name
    return None


def this_machine(*, steal: bool = False) -> ActivationRequest:
    """Who asks."""
    return ActivationRequest(machine_id(), boot_id(), steal, host_name())


def request_of_this_machine(*, steal: bool = False) -> bytes:
    """The value of XATTR_ACTIVATE."""
    return json.dumps(asdict(this_machine(steal=steal))).encode()


def activation_of(path: str) -> Activation | None:
    """The activation of a file that its filesystem holds active. OSError, HostError."""
    text = xattr.read(path, XATTR_ACTIVATION, seconds=FILE_SECONDS)
    return activation_from_json(text) if text is not None else None


def deactivate_file(path: str, seconds: float = FILE_SECONDS) -> None:
    """swap_deactivate of the file at `path`. OSError, HostError."""
    xattr.write(path, XATTR_DEACTIVATE, b"1", seconds=seconds)


def is_stale(path: str) -> bool:
    """Whether the filesystem holds the file active for an engine that never came or is gone. OSError, HostError."""
    active = activation_of(path)
    return active is not None and engine_of(active.source) is None


def deactivate(name: str, *, force: bool) -> None:
    """swap_deactivate of NAME's file: its mark leaves the header page, ordinary writes are allowed again.

    A filesystem process that died, or whose mount is gone, is started again for it. A file that another name's
    engine swaps to is left alone. Failure if the server does not answer; with `force` that is only said.
    """
    seconds = _FORCED_SECONDS if force else FILE_SECONDS
    try:
        _deactivate_on_all(name, seconds)
    except (OSError, HostError, SourceError, Failure) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        stays = f"{name}: this machine's mark stays in the file's header page: {text}"
        if not force:
            raise Failure(f"{stays}; bring the server back, or: fuseswap down --force {name}", Exit.SERVER) from None
        warn(stays)


def _deactivate_on_all(name: str, seconds: float) -> None:
    """On each mount that knows the file as active; one that can is enough. What the first said, if none can."""
    paths = _paths_of(name, seconds)
    told, first = False, None
    for path in paths:
        try:
            if xattr.read(path, XATTR_ACTIVATION, seconds=seconds) is not None:
                deactivate_file(path, seconds)
                told = True
        except (OSError, HostError) as error:
            first = first or error
    if told:
        return
    if first is not None:
        raise first
    # A filesystem that began after the engine's end knows of no activation, but our mark is still there:
    # to ask for one with the same mark, and back, clears it. Another machine's mark refuses.
    for path in paths:
        try:
            xattr.write(path, XATTR_ACTIVATE, request_of_this_machine(), seconds=seconds)
        except OSError:
            continue
        deactivate_file(path, seconds)
        return


def unmount_own(name: str, *, force: bool) -> None:
    """Take NAME/fs away, with its process; with `force` also when its server does not answer."""
    point = str(rundir.filesystem_mountpoint(name))
    seconds = _FORCED_SECONDS if force else _END_SECONDS
    while (mounted := mount_at(point)) is not None:
        try:
            mount.stop(mounted, seconds=seconds)
        except HostError:
            if not force:
                raise
            fusectl.abort(mounted)
            mount.stop(mounted, seconds=seconds)


def _paths_of(name: str, seconds: float) -> list[str]:
    """NAME's file on each ordinary mount that is served, one of which is made if there is none."""
    counters = rundir.read_counters(name)
    if counters is None:
        found = _active_files_in(str(rundir.filesystem_mountpoint(name)), seconds)
        return [path for path, activation in found.items() if not _is_of_another(name, activation)]
    if _is_of_another(name, counters.activation):
        return []
    source = counters.activation.source
    if paths := _mounted_paths(source, seconds):
        return paths
    directory, file_name = split_file_url(source)
    point = rundir.filesystem_mountpoint(name)
    unmount_own(name, force=False)
    point.mkdir(mode=0o700, exist_ok=True)
    mount.start(directory, str(point), "")
    return [str(point / file_name)]


def is_same(one: Activation, other: Activation) -> bool:
    """Whether both are of one file, by whatever address of its server."""
    mine, its = one.target, other.target
    same = isinstance(mine, NfsTarget) and isinstance(its, NfsTarget) and mine.file_handle == its.file_handle
    return same or same_file(one.source, other.source)


def _is_of_another(name: str, activation: Activation) -> bool:
    """Whether the engine of another name serves this file now, by whatever address of its server."""
    for other in rundir.names():
        counters = rundir.read_counters(other)
        if other == name or counters is None:
            continue
        if is_same(counters.activation, activation) and processes.runs(processes.find_engine(counters.words)):
            return True
    return False


def _mounted_paths(source: str, seconds: float) -> list[str]:
    """Where `source` lies on mounts that can be told, once for each file system. `Hung` if none answers."""
    paths: dict[tuple[int, int], str] = {}
    hung = None
    for mounted in mounts():
        options = (*mounted.options.split(","), *mounted.super_options.split(","))
        if not is_ours(mounted) or mounted.root != "/" or "ro" in options or mounted.device in paths:
            continue
        try:
            path = below(mounted.source, source)
            if path is not None and _is_reached(mounted, seconds):
                paths[mounted.device] = f"{mounted.mountpoint.rstrip('/')}/{path}"
        except ValueError:
            continue
        except Hung as error:
            hung = error
    if not paths and hung is not None:
        raise hung
    return list(paths.values())


def _is_reached(mounted: Mount, seconds: float) -> bool:
    """Whether its mount point leads to the mount, not to one that covers it, and somebody serves it. `Hung`."""
    hang = f"{mounted.mountpoint}: its server does not answer within {seconds:g} s"
    try:
        device = call(lambda: Path(mounted.mountpoint).stat().st_dev, what=hang, seconds=seconds)
        return device == os.makedev(*mounted.device) and xattr.is_served(mounted, seconds=seconds)
    except Hung:
        raise
    except (OSError, HostError):
        return False


def _active_files_in(point: str, seconds: float) -> dict[str, Activation]:
    """The active files of a mount that no counters tell of: `up` was killed before its engine began."""
    mounted = mount_at(point)
    if mounted is None or not xattr.is_served(mounted, seconds=seconds):
        return {}

    def find() -> dict[str, Activation]:
        found = {}
        for entry in os.scandir(point):
            with contextlib.suppress(OSError):
                found[entry.path] = activation_from_json(os.getxattr(entry.path, XATTR_ACTIVATION))
        return found

    return call(find, what=f"{point}: its server does not answer within {seconds:g} s", seconds=seconds)
