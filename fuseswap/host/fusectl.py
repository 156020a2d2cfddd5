"""The FUSE control filesystem: the way out when a connection hangs.

See Documentation/filesystems/fuse/fuse.rst in the kernel.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fuseswap.host.bounded import HostError, run
from fuseswap.host.mounts import Mount, mount_at, mounts, unmount

CONNECTIONS = Path("/sys/fs/fuse/connections")


@contextmanager
def control(mount: Mount) -> Iterator[Path]:
    """The control directory of a FUSE mount's connection: its number is the minor of the mount's st_dev.

    The control filesystem is mounted where it is not, and only for as long as the block runs.
    """
    if not mount.type.startswith("fuse"):
        raise HostError(f"{mount.mountpoint} is not a FUSE mount")
    present = mount_at(str(CONNECTIONS)) is not None
    if not present:
        run(["mount", "-t", "fusectl", "none", str(CONNECTIONS)])
    try:
        yield CONNECTIONS / str(mount.minor)
    finally:
        if not present:
            with suppress(HostError):
                # Lazily, because whoever keeps an abort file open would make it busy for ever.
                unmount(str(CONNECTIONS), lazy=True)


def waiting(mount: Mount) -> int:
    """How many requests the kernel waits for; 0 for a mount that has no connection any more."""
    with control(mount) as directory:
        try:
            return int((directory / "waiting").read_text(encoding="ascii"))
        except OSError:
            return 0


def is_connected(mount: Mount) -> bool:
    """Whether its file system is known to be there, that is: mounted anywhere, in any namespace, or in use.

    Nothing is known in a container that may not mount the control filesystem.
    """
    try:
        with control(mount) as directory:
            return directory.exists()
    except HostError:
        return False


def abort(mount: Mount) -> None:
    """End the connection: every pending and later request on it fails at once with ECONNABORTED or ENOTCONN.

    A mount that has no connection any more is left as it is.
    """
    with control(mount) as directory:
        try:
            descriptor = os.open(directory / "abort", os.O_WRONLY)
        except FileNotFoundError:
            return
        except OSError as error:
            raise HostError(f"{mount.mountpoint}: cannot abort its connection: {error.strerror}") from None
        try:
            # Once it is unmounted the next mount gets its number; so look now that this connection cannot change.
            if any((each.mount_id, each.minor) == (mount.mount_id, mount.minor) for each in mounts()):
                os.write(descriptor, b"1")
        finally:
            os.close(descriptor)
