"""The mount table, read from /proc/self/mountinfo and never by a stat: on a hung mount that hangs too."""

import ctypes
import os
from pathlib import PurePath

from attrs import frozen

from fuseswap.host.bounded import HostError, call
from fuseswap.host.procfs import read_table, unescape

FILESYSTEM_TYPE = "fuse.fuseswap"
"""The ordinary mount, as /proc/self/mountinfo names it."""
ENGINE_TYPE = "fuse.fuseswap-engine"
"""The engine's private mount."""

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8
_UNMOUNT_SECONDS = 20.0
_LOOK_SECONDS = 5.0


@frozen
class Mount:
    """One line of /proc/self/mountinfo (proc(5))."""

    mount_id: int
    parent_id: int
    major: int
    minor: int
    """Of a FUSE mount: the number of its connection in the FUSE control filesystem."""
    root: str
    mountpoint: str
    options: str
    type: str
    source: str
    super_options: str

    @property
    def device(self) -> tuple[int, int]:
        """Of its file system, wherever and how often that is mounted: st_dev, as major and minor."""
        return self.major, self.minor


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """The lines of a mountinfo table, oldest mount first. ValueError if it is none."""
    return tuple(_parse_line(line) for line in text.split("\n") if line)


def mounts() -> tuple[Mount, ...]:
    """The mounts of this process's mount namespace."""
    return parse_mountinfo(read_table("/proc/self/mountinfo"))


def is_ours(mount: Mount) -> bool:
    """Whether it is of `fuseswap mount`, as root or as who asks ran it.

    Anybody can mount something of that type, with any text for its source (fusermount3 -o subtype=,fsname=).
    """
    users = {"user_id=0", f"user_id={os.geteuid()}"}
    return mount.type == FILESYSTEM_TYPE and not users.isdisjoint(mount.super_options.split(","))


def mount_at(mountpoint: str, table: tuple[Mount, ...] | None = None) -> Mount | None:
    """The topmost mount on `mountpoint` (an absolute path without links), if there is one."""
    found = [mount for mount in (mounts() if table is None else table) if mount.mountpoint == mountpoint]
    return found[-1] if found else None


def mount_of(path: str, table: tuple[Mount, ...]) -> Mount | None:
    """The mount on which `path` (absolute, no links) lies: the longest mount point wins, then the latest."""
    pure = PurePath(path)
    best: Mount | None = None
    for mount in table:
        if pure.is_relative_to(mount.mountpoint) and (best is None or len(mount.mountpoint) >= len(best.mountpoint)):
            best = mount
    return best


def absolute(path: str) -> str:
    """`path` made absolute as text: no link is followed, so no mount is asked.

    But `..` is the parent of what a link leads to, so there the links before the last name are followed: `Hung` if
    that takes too long.
    """
    pure = PurePath(path)
    if ".." not in pure.parts:
        return os.path.abspath(path)  # noqa: PTH100
    parent, name = (pure, "") if pure.name == ".." else (pure.parent, pure.name)
    hang = f"{path}: looking it up takes longer than {_LOOK_SECONDS:g} s: it lies on a mount that hangs"
    real = call(lambda: os.path.realpath(parent), what=hang, seconds=_LOOK_SECONDS)
    return str(PurePath(real, name))


def path_below(path: str, mount: Mount) -> str:
    """`path` relative to the root of the mount's file system, without a leading slash."""
    return str(PurePath(path).relative_to(mount.mountpoint))


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """umount2(2), with MNT_DETACH if `lazy`; nothing is looked up on the mount itself.

    HostError if it is busy or not mounted, `Hung` if its dirty pages cannot be written out.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    try:
        call(
            lambda: _umount2(mountpoint, flags),
            what=f"unmounting {mountpoint} does not end: its server does not answer",
            seconds=_UNMOUNT_SECONDS,
        )
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise HostError(f"{mountpoint} cannot be unmounted: {reason}") from None


def _umount2(mountpoint: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _parse_line(line: str) -> Mount:
    fields = line.split(" ")
    # Any number of optional fields end at the separator; before them a path, too, can be a dash.
    tail = fields[fields.index("-", 6) + 1 :] if "-" in fields[6:] else []
    if len(tail) < 3:
        raise ValueError(f"not a line of mountinfo: {line!r}")
    major, minor = fields[2].split(":")
    return Mount(
        mount_id=int(fields[0]),
        parent_id=int(fields[1]),
        major=int(major),
        minor=int(minor),
        root=unescape(fields[3]),
        mountpoint=unescape(fields[4]),
        options=fields[5],
        type=unescape(tail[0]),
        source=unescape(tail[1]),
        super_options=unescape(tail[2]),
    )
