"""How the command speaks to a filesystem process: extended attributes of the file itself (swap/units.py).

Every call runs in a child with a limit, for it waits while the server is away.
"""

import errno
import os

from attrs import frozen

from fuseswap.host.bounded import HostError, call
from fuseswap.host.mounts import Mount, is_ours, mount_of, mounts, path_below


@frozen
class MountedFile:
    """A file on a mount of `fuseswap mount`."""

    path: str
    """Absolute, without links."""
    mount: Mount

    @property
    def below(self) -> str:
        """The path relative to the mount point."""
        return path_below(self.path, self.mount)


def locate(path: str, *, seconds: float) -> MountedFile | None:
    """Where `path` really lies, if that is a fuseswap mount; `Hung` if looking it up takes too long."""
    hang = f"{path}: its server does not answer within {seconds:g} s"
    real = call(lambda: os.path.realpath(path), what=hang, seconds=seconds)
    mount = mount_of(real, mounts())
    return MountedFile(real, mount) if mount is not None and is_ours(mount) else None


def read(path: str, name: str, *, seconds: float) -> bytes | None:
    """The value; None if there is none (ENODATA). OSError, or `Hung` after `seconds`."""
    hang = f"{path}: its server does not answer within {seconds:g} s"
    try:
        return call(lambda: os.getxattr(path, name), what=hang, seconds=seconds)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return None
        raise


def write(path: str, name: str, value: bytes, *, seconds: float) -> None:
    """Set the value. OSError with the filesystem's verdict, or `Hung` after `seconds`."""
    hang = f"{path}: its server does not answer within {seconds:g} s"
    call(lambda: os.setxattr(path, name, value), what=hang, seconds=seconds)


def is_served(mount: Mount, *, seconds: float) -> bool:
    """Whether a filesystem process stands behind the mount: a dead one's answers ENOTCONN. `Hung` as above."""
    hang = f"{mount.mountpoint}: its server does not answer within {seconds:g} s"
    try:
        # Not stat(2): the kernel answers it from its cache, also for the dead.
        call(lambda: os.statvfs(mount.mountpoint), what=hang, seconds=seconds)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return False
        raise HostError(f"{mount.mountpoint}: {error.strerror}") from None
    return True
