"""The sides that are compared as ordinary mounts: fuseswap, and peers where they are installed.

Each is a context manager that mounts a directory of its own, from a cold start: nothing of it is in any cache of
its client. The peers that cannot speak NFS mirror a directory on the disk below the server's export.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

from fuseswap.host.bounded import HostError, run
from fuseswap.host.ganesha import GaneshaServer
from fuseswap.host.mounts import mount_at, unmount

PASSTHROUGH: Final = Path(__file__).parent / "peers/passthroughfs.py"
READY_SECONDS_MAX: Final = 20.0
END_SECONDS_MAX: Final = 20.0


@frozen
class MountSide:
    """One way to the files: `mounted(server, name, point)` mounts the directory `name` of the export."""

    name: str
    mounted: Callable[[GaneshaServer, str, Path], AbstractContextManager[None]]
    installed: Callable[[], bool] = lambda: True


@contextmanager
def fuseswap_mounted(server: GaneshaServer, name: str, point: Path) -> Iterator[None]:
    command = str(Path(sys.executable).with_name("fuseswap"))
    run([command, "mount", server.url(name), str(point)])
    try:
        yield
    finally:
        run([command, "umount", str(point)], seconds=END_SECONDS_MAX)


@contextmanager
def passthrough_mounted(server: GaneshaServer, name: str, point: Path) -> Iterator[None]:
    with served([sys.executable, str(PASSTHROUGH), str(server.export_dir / name), str(point)], point):
        yield


@contextmanager
def fuse_nfs_mounted(server: GaneshaServer, name: str, point: Path) -> Iterator[None]:
    with served(["fuse-nfs", "-n", server.url(name), "-m", str(point)], point):
        yield


@contextmanager
def rclone_mounted(server: GaneshaServer, name: str, point: Path) -> Iterator[None]:
    """Writes through its cache on disk, for without one it cannot do what tar and git ask of a file system."""
    cache = server.directory / "rclone-cache"
    with served(
        [
            *("rclone", "--config", "", "mount", str(server.export_dir / name), str(point)),
            *("--vfs-cache-mode", "writes", "--cache-dir", str(cache)),
        ],
        point,
    ):
        yield


MOUNT_SIDES: Final = (
    MountSide("fuseswap", fuseswap_mounted),
    MountSide("passthrough", passthrough_mounted),
    MountSide("fuse-nfs", fuse_nfs_mounted, lambda: shutil.which("fuse-nfs") is not None),
    MountSide("rclone", rclone_mounted, lambda: shutil.which("rclone") is not None),
)


@contextmanager
def served(command: list[str], point: Path) -> Iterator[None]:
    """Around a daemon that serves the mount on `point`, and leaves with it; it may go into the background."""
    log_path = point.with_name(f"{point.name}.log")
    with log_path.open("ab") as log:
        daemon = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "HOME": str(point.parent)},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while mount_at(str(point)) is None:
            if daemon.poll() or time.monotonic() > deadline:
                raise HostError(f"{command[0]} did not mount: {last_line(log_path)}")
            time.sleep(0.02)
        yield
        unmount(str(point))
        daemon.wait(END_SECONDS_MAX)
    finally:
        if mount_at(str(point)) is not None:
            unmount(str(point), lazy=True)
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "it said nothing"
