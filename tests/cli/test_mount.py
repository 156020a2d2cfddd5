"""`mount` and `umount`: in the background, in the foreground, again after a death, and interrupted."""

import errno
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuseswap.host import processes
from fuseswap.host.ganesha import GaneshaServer
from fuseswap.host.mounts import mount_at
from tests.cli.command import finish, fuseswap, start
from tests.cli.swapped import kill
from tests.kit.cover import covered
from tests.kit.wait import wait_until


def servers(point: Path) -> list[int]:
    """The filesystem processes of a mount point."""
    title = f"{processes.FILESYSTEM} {point}".encode()
    return [
        pid
        for pid in processes.named(processes.FILESYSTEM)
        if Path(f"/proc/{pid}/cmdline").read_bytes().strip(b"\0") == title
    ]


def test_in_the_background(nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path) -> None:
    url = nfs_server.url(nfs_dir.name)
    result = fuseswap("mount", url, mount_point)
    assert (result.code, result.output, result.errors) == (0, "", "")
    mounted = mount_at(str(mount_point))
    assert mounted is not None
    assert (mounted.type, mounted.source) == ("fuse.fuseswap", url)
    (pid,) = servers(mount_point)
    assert os.getsid(pid) == pid
    (mount_point / "file").write_bytes(b"content")
    assert (nfs_dir / "file").read_bytes() == b"content"
    again = fuseswap("mount", url, mount_point)
    assert again.code == 0
    assert "is already mounted" in again.output
    assert fuseswap("umount", mount_point).code == 0
    assert servers(mount_point) == []
    again = fuseswap("umount", mount_point)
    assert again.code == 0
    assert again.output == f"{mount_point} is not mounted\n"


def test_read_only(nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path) -> None:
    assert fuseswap("mount", nfs_server.url(nfs_dir.name), mount_point, "-o", "ro,actimeo=0").code == 0
    with pytest.raises(OSError, match="Read-only") as caught:
        (mount_point / "file").touch()
    assert caught.value.errno == errno.EROFS
    assert fuseswap("umount", mount_point).code == 0


def test_in_the_foreground(nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path) -> None:
    process = start("mount", "-f", nfs_server.url(nfs_dir.name), mount_point)
    assert process.stdout is not None
    assert process.stdout.readline().endswith(f"is mounted on {mount_point}\n")
    assert servers(mount_point) == [process.pid]
    process.send_signal(signal.SIGTERM)
    result = finish(process)
    assert result.code == 0, result
    assert mount_at(str(mount_point)) is None


def test_umount_of_a_busy_mount(nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path) -> None:
    assert fuseswap("mount", nfs_server.url(nfs_dir.name), mount_point).code == 0
    with (mount_point / "file").open("w"):
        result = fuseswap("umount", mount_point)
        assert result.code == 1
        assert "cannot be unmounted: device or resource busy" in result.line
    assert fuseswap("umount", mount_point).code == 0


def test_again_after_its_process_died(nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path) -> None:
    url = nfs_server.url(nfs_dir.name)
    assert fuseswap("mount", url, mount_point).code == 0
    kill(servers(mount_point)[0])
    result = fuseswap("mount", url, mount_point)
    assert result.code == 0
    assert "has died: mounting again" in result.output
    (mount_point / "file").touch()
    kill(servers(mount_point)[0])
    assert fuseswap("umount", mount_point).code == 0
    assert mount_at(str(mount_point)) is None


def test_dots_behind_a_link(nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path) -> None:
    """Another mount, whose path is the same but for the link, is neither unmounted nor taken for it."""
    real = mount_point.parent / "real"
    for directory in (real / "sub", real / mount_point.name):
        directory.mkdir(parents=True)
    (mount_point.parent / "link").symlink_to(real / "sub")
    dotted = f"{mount_point.parent}/link/../{mount_point.name}"
    url = nfs_server.url(nfs_dir.name)
    assert fuseswap("mount", url, mount_point).code == 0
    assert fuseswap("umount", dotted).output == f"{dotted} is not mounted\n"
    assert mount_at(str(mount_point)) is not None
    assert fuseswap("mount", url, dotted).code == 0
    assert mount_at(str(real / mount_point.name)) is not None
    for each in (dotted, mount_point):
        assert fuseswap("umount", each).code == 0
        assert mount_at(os.path.realpath(each)) is None


def test_umount_ends_no_process_of_another_mount(nfs_server: GaneshaServer, nfs_dir: Path, disk_dir: Path) -> None:
    """Neither of a mount point with whose name its own begins, nor of the same one in another mount namespace."""
    url = nfs_server.url(nfs_dir.name)
    point, longer = disk_dir / "mnt", disk_dir / "mnt2"
    for each in (point, longer):
        each.mkdir()
    elsewhere = start("mount", "-f", url, longer, wrapper=("unshare", "--mount", "--propagation", "private"))
    try:
        assert elsewhere.stdout is not None
        assert "is mounted on" in elsewhere.stdout.readline()
        for each in (point, longer):
            assert fuseswap("mount", url, each).code == 0
        assert fuseswap("umount", longer).code == 0
        assert (len(servers(point)), servers(longer)) == (1, [elsewhere.pid])
        assert fuseswap("umount", point).code == 0
    finally:
        elsewhere.terminate()
        finish(elsewhere)


@pytest.mark.parametrize("how", ["bind", "move", "namespace"])
def test_umount_ends_no_process_of_what_is_mounted_elsewhere_too(
    nfs_server: GaneshaServer, nfs_dir: Path, disk_dir: Path, how: str
) -> None:
    url = nfs_server.url(nfs_dir.name)
    point, other = disk_dir / "mnt", disk_dir / "other"
    for each in (point, other):
        each.mkdir()
    assert fuseswap("mount", url, point).code == 0
    (point / "file").write_bytes(b"content")
    process = servers(point)
    if how == "namespace":
        assert fuseswap("umount", point, wrapper=("unshare", "--mount", "--propagation", "private")).code == 0
        other = point
    else:
        subprocess.run(["mount", f"--{how}", point, other], check=True)
        if how == "move":
            assert fuseswap("mount", url, point).code == 0
        assert fuseswap("umount", point).code == 0
        assert mount_at(str(point)) is None
    assert (other / "file").read_bytes() == b"content"
    assert servers(point) == process
    assert fuseswap("umount", other).code == 0
    assert servers(point) == []


def test_what_somebody_mounted_on_it_stays(nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path) -> None:
    """When the filesystem process below is told to leave."""
    process = start("mount", "-f", nfs_server.url(nfs_dir.name), mount_point)
    assert process.stdout is not None
    assert "is mounted on" in process.stdout.readline()
    with covered(mount_point):
        (mount_point / "file").touch()
        process.terminate()
        assert finish(process).code == 0
        assert (mount_point / "file").exists()


def test_what_somebody_mounted_meanwhile_stays(mount_point: Path) -> None:
    """When a mount fails."""
    with silent_mount(mount_point) as process, covered(mount_point):
        process.send_signal(signal.SIGINT)
        assert finish(process).code == 1
        assert mount_at(str(mount_point)) is not None


@contextmanager
def silent_mount(mount_point: Path) -> Iterator["subprocess.Popen[str]"]:
    """A mount whose server has taken the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        process = start("mount", f"nfs://127.0.0.1/export?nfsport={port}&mountport={port}", mount_point)
        with silent.accept()[0]:
            yield process


def test_an_interrupted_mount_leaves_nothing(mount_point: Path) -> None:
    with silent_mount(mount_point) as process:
        process.send_signal(signal.SIGINT)
        result = finish(process)
    assert (result.code, result.line) == (1, "interrupted by SIGINT")
    wait_until(lambda: not servers(mount_point), seconds=5, what="the end of the filesystem process")
    assert mount_at(str(mount_point)) is None
