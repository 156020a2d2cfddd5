"""What a file of this machine stands on, from its mount down to the disks: swap must not stand on itself.

To write a page out would then mean to write it to a mount, a device or memory that waits for that very page.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath
from urllib.parse import unquote, urlsplit

from fuseswap.host import rundir
from fuseswap.host.bounded import call
from fuseswap.host.loop import loop_devices
from fuseswap.host.mounts import ENGINE_TYPE, FILESYSTEM_TYPE, Mount, mount_of, mounts, path_below

_IN_MEMORY = ("tmpfs", "ramfs")
_MAY_HANG = ("fuse", "nfs")
"""How the names of types begin whose files somebody else answers for."""


def fuseswap_below(path: str, *, seconds: float) -> str | None:
    """How the file or block device `path`, which need not exist, depends on fuseswap or on memory that swaps, in words.

    None if it does not. `Hung` if looking it up takes longer than `seconds`.
    """
    hang = (
        f"{path}: looking it up takes longer than {seconds:g} s: it lies on a mount that hangs,"
        " or has a second name and a large directory, which fuseswap shows, to look for that in"
    )
    chain = call(lambda: _look(path), what=hang, seconds=seconds)
    return "it lies " + ", ".join(chain) if chain else None


def _look(path: str) -> list[str] | None:
    real, table = os.path.realpath(path), mounts()
    status = None
    with contextlib.suppress(OSError):
        status = Path(real).stat()
        if stat.S_ISBLK(status.st_mode):
            return _device_chain(_block_devices(status.st_rdev), table, _engine_devices())
    return _shown_directory(real, status, table) or _chain(real, table, _engine_devices())


def _chain(path: str, table: tuple[Mount, ...], engines: dict[str, str]) -> list[str] | None:
    """`path` down to what of fuseswap lies below it; None if nothing does."""
    mount = mount_of(path, table)
    if mount is None:
        return None
    if mount.type in (FILESYSTEM_TYPE, ENGINE_TYPE):
        return [f"on the fuseswap mount {mount.mountpoint} ({mount.source})"]
    if mount.type in _IN_MEMORY:
        return [f"in memory, which swap is to free ({mount.mountpoint} is a {mount.type})"]
    below = _device_chain(_devices(mount), table, engines)
    return [f"on {mount.mountpoint}", *below] if below is not None else None


def _device_chain(devices: set[str], table: tuple[Mount, ...], engines: dict[str, str]) -> list[str] | None:
    for device in _disks(devices):
        here = [f"on /dev/{device}"]
        if device in engines:
            return [*here, f"on the engine's file of {engines[device]}"]
        backing = _read(Path("/sys/class/block", device, "loop/backing_file"))
        below = _chain(backing, table, engines) if backing else None
        if below is not None:
            return [*here, f"on {backing}", *below]
    return None


def _shown_directory(path: str, status: os.stat_result | None, table: tuple[Mount, ...]) -> list[str] | None:
    """Whether a directory that a fuseswap mount shows holds the file `path`, under whatever name."""
    device, place = _place(path, table)
    for mount in table:
        if mount.type == FILESYSTEM_TYPE and (directory := _directory_of(mount, table)):
            mounted = (other.mountpoint for other in table if PurePath(other.mountpoint).is_relative_to(directory))
            for top in (directory, *mounted):
                shown_device, shown = _place(top, table)
                if shown_device == device and (place.is_relative_to(shown) or _has_link(top, status, table)):
                    return [f"in {directory}, which the fuseswap mount {mount.mountpoint} shows"]
    return None


def _place(path: str, table: tuple[Mount, ...]) -> tuple[tuple[int, int], PurePath]:
    """The device of the file system to which a path leads, and its path in there: the same by whatever mount."""
    mount = mount_of(path, table)
    if mount is None:
        return (0, 0), PurePath(path)  # in a chroot
    return mount.device, PurePath(mount.root, path_below(path, mount))


def _directory_of(mount: Mount, table: tuple[Mount, ...]) -> str | None:
    """The directory of this machine that a mount shows, if it shows one.

    Links in its path are not followed where that may hang.
    """
    try:
        source = urlsplit(mount.source)
    except ValueError:  # anybody can mount something with any text for its source
        return None
    if source.scheme != "file":
        return None
    path = unquote(source.path, errors="surrogateescape")
    return path if _may_hang(path, table) else os.path.realpath(path)


def _has_link(directory: str, status: os.stat_result | None, table: tuple[Mount, ...]) -> bool:
    """Whether the file has a further name below the directory, which is looked through without leaving its mount."""
    if status is None or status.st_nlink == 1 or not stat.S_ISREG(status.st_mode) or _may_hang(directory, table):
        return False
    points = {mount.mountpoint for mount in table}
    waiting = [directory]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.path in points:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.inode() == status.st_ino and _is_same(entry, status):
                    return True
    return False


def _is_same(entry: os.DirEntry[str], status: os.stat_result) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(entry.stat(follow_symlinks=False), status)
    return False


def _may_hang(path: str, table: tuple[Mount, ...]) -> bool:
    mount = mount_of(path, table)
    return mount is not None and mount.type.startswith(_MAY_HANG)


def _engine_devices() -> dict[str, str]:
    """The loop devices on engines' files, also where the engine's mount was taken out of the table."""
    table = loop_devices()
    found = {name: rundir.engine_device(name, table) for name in rundir.names()}
    return {Path(device.path).name: name for name, device in found.items() if device is not None}


def _devices(mount: Mount) -> set[str]:
    """The block devices of a file system, by their names in /sys/class/block."""
    with contextlib.suppress(OSError):
        # btrfs shows a number of its own, and the first of its devices as source.
        status = Path(mount.source).stat()
        if stat.S_ISBLK(status.st_mode):
            return _block_devices(status.st_rdev)
    return _block_devices(os.makedev(*mount.device))


def _block_devices(number: int) -> set[str]:
    """A device number's name, with the names of all devices where it is one of a btrfs."""
    link = Path("/sys/dev/block", f"{os.major(number)}:{os.minor(number)}")
    if not link.exists():
        return set()
    first = link.resolve().name
    for pool in Path("/sys/fs/btrfs").glob("*/devices"):
        names = {entry.name for entry in pool.iterdir()}
        if first in names:
            return names
    return {first}


def _disks(names: set[str]) -> Iterator[str]:
    """Block devices, with all that they are made of: of a partition its disk, of dm and md devices their parts."""
    for name in sorted(names):
        yield name
        entry = Path("/sys/class/block", name)
        if (entry / "partition").exists():
            yield from _disks({entry.resolve().parent.name})
        with contextlib.suppress(OSError):
            yield from _disks({part.name for part in (entry / "slaves").iterdir()})


def _read(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes()).rstrip("\n").removesuffix(" (deleted)")
    except OSError:
        return ""
