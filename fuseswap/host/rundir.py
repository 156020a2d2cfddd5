"""/run/fuseswap: what is active here, as the engines' counters tell it.

Nothing is kept there that the kernel's tables or the counters do not already say, but which loop device is meant; so
there is nothing to repair after a crash: a directory without an engine is a leftover that `down` removes.
"""

import contextlib
import fcntl
import json
import mmap
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from fuseswap.host.bounded import HostError
from fuseswap.host.loop import LoopDevice, attach, loop_devices
from fuseswap.host.mounts import mount_of, mounts
from fuseswap.swap.counters import COUNTERS_BYTES, Counters, LogRecord
from fuseswap.swap.target import Activation, activation_from_json
from fuseswap.swap.units import RUN_DIRECTORY

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,63}")
_POLL_SECONDS = 0.1
_SHARED_MEMORY = "/dev/shm"


@frozen
class Snapshot:
    """What a counters file says at one moment."""

    name: str
    activation: Activation
    words: dict[str, int]
    """Every `Word` by its lower-case name."""
    log: tuple[LogRecord, ...]
    taken_ns: int
    """CLOCK_MONOTONIC of that moment."""


def is_name(name: str) -> bool:
    """Whether a swap file may be called so here: it becomes a directory, a file and a process title."""
    return _NAME.fullmatch(name) is not None


def directory(name: str) -> Path:
    """NAME's directory; `fs`, `swap`, `counters` and `mark` lie in it."""
    return Path(RUN_DIRECTORY, name)


def filesystem_mountpoint(name: str) -> Path:
    """Where `up` mounts the file's directory on the server."""
    return directory(name) / "fs"


def engine_mountpoint(name: str) -> Path:
    """Where the engine mounts its one file."""
    return directory(name) / "swap"


def engine_file(name: str) -> Path:
    """The engine's file, under the loop device."""
    return engine_mountpoint(name) / name


def attach_engine(name: str) -> LoopDevice:
    """The loop device on the engine's file, with a mark by which `engine_device` knows it. HostError, OSError.

    The mark is its size limit: a number that only this device has, larger than any file. It is written down first, so
    that the device of a command that is killed is found.
    """
    # In sectors, or losetup warns.
    mark = (1 << 62) + (secrets.randbits(52) << 9)
    descriptor = os.open(_mark(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(str(mark))
    return attach(str(engine_file(name)), mark)


def engine_device(name: str, devices: tuple[LoopDevice, ...] | None = None) -> LoopDevice | None:
    """The loop device on the engine's file, whatever has become of the mount under it.

    Loop devices are the whole machine's, paths are not: another container's engine may have the same, and the path of a
    file whose mount was taken out of the table (`umount -l`) ends at that mount's root (prepend_path in fs/d_path.c).
    Device and inode number of the file tell them apart, but the kernel asks the engine for these (LOOP_GET_STATUS64).
    """
    try:
        mark = int(_mark(name).read_text(encoding="ascii"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    table = loop_devices() if devices is None else devices
    return next((device for device in table if device.size_limit == mark), None)


def remove_mark(name: str) -> None:
    """Remove what `engine_device` knows NAME's device by."""
    _mark(name).unlink(missing_ok=True)


def names() -> tuple[str, ...]:
    """Every name that has a directory or a mount here, active or left over."""
    root = Path(RUN_DIRECTORY)
    below = [Path(mount.mountpoint) for mount in mounts() if root in Path(mount.mountpoint).parents]
    found = {path.relative_to(root).parts[0] for path in below}
    with contextlib.suppress(FileNotFoundError), os.scandir(root) as entries:
        found.update(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return tuple(sorted(found))


def read_counters(name: str) -> Snapshot | None:
    """NAME's counters; None if there are none, or none that this version can read."""
    try:
        with (directory(name) / "counters").open("rb") as stream:
            mapping = mmap.mmap(stream.fileno(), COUNTERS_BYTES, access=mmap.ACCESS_READ)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise HostError(f"{directory(name)}/counters: {error.strerror}") from None
    with mapping:
        counters = Counters(mapping)
        try:
            activation = _activation(counters)
            log = tuple(counters.log_since(0))
            return Snapshot(name, activation, counters.snapshot(), log, time.monotonic_ns())
        except (ValueError, KeyError, TypeError):
            return None
        finally:
            counters.close()


def create_in_memory(path: Path) -> int:
    """A new file at `path` (mode 0640), open for reading and writing, whose pages no disk file system ever writes back.

    Each write-back of a mapped page write-protects it, so that the engine's next store to it would fault into the
    file system. Where `path` is not on a tmpfs, as /run should be, it is a symbolic link to a file on /dev/shm.
    """
    mount = mount_of(str(path), mounts())
    if mount is None or mount.type != "tmpfs":
        descriptor, target = tempfile.mkstemp(prefix=f"fuseswap-{path.parent.name}-", dir=_SHARED_MEMORY)
        os.fchmod(descriptor, 0o640)
        path.symlink_to(target)
        return descriptor
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)


def remove_counters(name: str) -> None:
    """Remove NAME's counters, finished or not, and what a link in their place leads to."""
    for path in (directory(name) / "counters", directory(name) / ".counters"):
        if path.is_symlink():
            path.readlink().unlink(missing_ok=True)
        path.unlink(missing_ok=True)


@contextmanager
def lock(
    seconds: float, waiting: Callable[[], None], still_waiting: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Alone with what is active here: two commands that change it follow each other.

    A flock(2) on a file of root's beside the directory, which anybody can open, and lock. The file stays; the
    directory goes with its last content. `waiting()` is called once if another command holds it, `still_waiting()`
    some times a second then. HostError after `seconds`.
    """
    deadline = time.monotonic() + seconds
    descriptor = _lock_once()
    if descriptor is None:
        waiting()
    while descriptor is None:
        if time.monotonic() > deadline:
            raise HostError(f"another fuseswap command is still at work after {seconds:g} s")
        still_waiting()
        time.sleep(_POLL_SECONDS)
        descriptor = _lock_once()
    try:
        Path(RUN_DIRECTORY).mkdir(mode=0o755, exist_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            Path(RUN_DIRECTORY).rmdir()
        os.close(descriptor)


def _lock_once() -> int | None:
    """A descriptor that holds the lock, or None if another holds it."""
    descriptor = os.open(f"{RUN_DIRECTORY}.lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _activation(counters: Counters) -> Activation:
    return activation_from_json(json.dumps(counters.identity()["activation"]))


def _mark(name: str) -> Path:
    return directory(name) / "mark"
