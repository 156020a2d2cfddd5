"""What stands on fuseswap, or on memory, is refused by every command: real mounts on real mounts."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from fuseswap.host import loop, rundir
from fuseswap.host.ganesha import Export, GaneshaServer
from fuseswap.host.mounts import FILESYSTEM_TYPE
from fuseswap.host.recursion import fuseswap_below
from fuseswap.host.swap import make_header
from fuseswap.swap.target import MemoryTarget
from tests.cli.command import fuseswap
from tests.engine.running import running
from tests.kit import fuse_stub
from tests.kit.wait import wait_until

IMAGE_BYTES = 64 << 20
FILE_BYTES = 1 << 20


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], check=True, timeout=60, stdin=subprocess.DEVNULL, capture_output=True
    )
    return done.stdout.decode().strip()


def swap_file(path: Path) -> Path:
    path.write_bytes(make_header(FILE_BYTES) + os.urandom(FILE_BYTES - 4096))
    return path


@contextmanager
def fuseswap_mount(source: str, point: Path) -> Iterator[Path]:
    point.mkdir(exist_ok=True)
    assert fuseswap("mount", source, point).code == 0
    try:
        yield point
    finally:
        # A loop device that has gone lets go of its file a little later; or, where a mount namespace of somebody else
        # got a copy of what lies on it, much later: then `disk_dir` frees the rest.
        with suppress(AssertionError):
            wait_until(lambda: fuseswap("umount", point).code == 0, seconds=10)


@contextmanager
def ext4_on(device: str | Path, point: Path, *options: str) -> Iterator[Path]:
    """A file system on a device, or with `-o loop` on a file."""
    point.mkdir()
    run("mkfs.ext4", "-q", device)
    run("mount", *options, device, point)
    try:
        yield point
    finally:
        run("umount", point)


def refused(*arguments: str | Path) -> str:
    """The one line of a command that refuses a recursion."""
    result = fuseswap(*arguments)
    assert result.code == 3, result
    assert ": as swap it could wait for itself: it lies " in result.line
    assert "(EDEADLK); use a file that depends on nothing of fuseswap" in result.line
    return result.line


@pytest.fixture
def outer(nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path) -> Iterator[Path]:
    with fuseswap_mount(nfs_server.url(nfs_dir.name), mount_point) as point:
        yield point


@pytest.fixture
def inner(outer: Path, disk_dir: Path) -> Iterator[Path]:
    """A file system on a loop device on a file of a fuseswap mount."""
    image = outer / "image"
    with image.open("wb") as stream:
        stream.truncate(IMAGE_BYTES)
    with ext4_on(image, disk_dir / "inner", "-o", "loop") as point:
        yield point


def test_a_file_system_on_a_file_of_a_fuseswap_mount(outer: Path, inner: Path, disk_dir: Path) -> None:
    file = swap_file(inner / "file")
    for arguments in (("create", inner / "new", "--size", "1M"), ("check", file)):
        line = refused(*arguments)
        assert f"it lies on {inner}, on /dev/loop" in line
        assert f", on {outer}/image, on the fuseswap mount {outer} (nfs://" in line
    assert [path.name for path in inner.iterdir() if path.is_file()] == ["file"]

    with fuseswap_mount(f"file://{inner}", disk_dir / "local") as local:
        for arguments in (("create", local / "new", "--size", "1M"), ("on", local / "file")):
            refused(*arguments)
        # In the order of the checks, that such a mount has no swap_rw is found first.
        assert fuseswap("check", local / "file").code == 3


def test_a_device_on_a_file_of_a_fuseswap_mount(outer: Path) -> None:
    """The kernel would take it."""
    device = run("losetup", "--find", "--show", swap_file(outer / "file"))
    try:
        line = refused("check", device)
    finally:
        run("losetup", "--detach", device)
    assert f"it lies on {device}, on {outer}/file, on the fuseswap mount {outer} (nfs://" in line


def test_a_server_whose_files_lie_there(inner: Path, disk_dir: Path) -> None:
    # This server calls its exports /NAME, and only a path that is also this machine's can be followed.
    name = disk_dir.name
    here = Path("/", name)
    (inner / "server").mkdir()
    with GaneshaServer(inner / "server", (Export(name),)) as server:
        swap_file(server.export_dir / "file")
        url = server.url("file")
        assert fuseswap("check", url).code == 0
        here.symlink_to(server.export_dir)
        try:
            with fuseswap_mount(server.url(), disk_dir / "mnt2") as point:
                for arguments in (
                    ("create", server.url("new"), "--size", "1M"),
                    ("check", url),
                    ("up", url),
                    ("check", point / "file"),
                    ("on", point / "file"),
                ):
                    assert f"it lies on {inner}, on /dev/loop" in refused(*arguments)
        finally:
            here.unlink()
        assert [path.name for path in server.export_dir.iterdir()] == ["file"]


def test_a_mount_on_a_mount(outer: Path, disk_dir: Path) -> None:
    """A directory of a fuseswap mount as the source of another, and what a local mount shows."""
    (disk_dir / "behind").mkdir()
    file = swap_file(disk_dir / "behind/file")
    (disk_dir / "link").symlink_to("behind")
    with fuseswap_mount(f"file://{disk_dir}/link", disk_dir / "shows") as point:
        for arguments in (("check", file), ("create", file.with_name("new"), "--size", "1M"), ("on", point / "file")):
            assert f"it lies in {disk_dir}/behind, which the fuseswap mount {point} shows" in refused(*arguments)
    assert f"on the fuseswap mount {outer}" in refused("create", f"file://{outer}/new", "--size", "1M")
    result = fuseswap("up", f"file://{file}")
    assert (result.code, file.stat().st_size) == (3, FILE_BYTES)
    assert "the kernel swaps to a local file without fuseswap" in result.line


def test_other_names_of_what_a_mount_shows(disk_dir: Path) -> None:
    """Bind mounts of the directory and of one in it, one of another directory into it, and hard links."""
    behind, elsewhere = disk_dir / "behind", disk_dir / "elsewhere"
    points = {point: disk_dir / f"bound-{point.name}" for point in (behind, behind / "inner")}
    for directory in (behind / "inner", behind / "point", elsewhere, *points.values()):
        directory.mkdir(parents=True)
    points[elsewhere] = behind / "point"
    for directory in (behind, behind / "inner", elsewhere):
        swap_file(directory / "file")
    (disk_dir / "link").hardlink_to(behind / "inner/file")
    swap_file(disk_dir / "beside")
    (disk_dir / "beside-too").hardlink_to(disk_dir / "beside")
    with ExitStack() as stack:
        point = stack.enter_context(fuseswap_mount(f"file://{behind}", disk_dir / "shows"))
        for directory, bound in points.items():
            run("mount", "--bind", directory, bound)
            stack.callback(run, "umount", bound)
        others = [bound / "file" for bound in points.values()]
        for file in (*others, elsewhere / "file", disk_dir / "link"):
            assert f"it lies in {behind}, which the fuseswap mount {point} shows" in refused("check", file)
        assert fuseswap_below(str(disk_dir / "beside"), seconds=10) is None


def test_a_file_system_on_an_engine(disk_dir: Path) -> None:
    with running(MemoryTarget(), IMAGE_BYTES) as engine, ExitStack() as stack:
        below = fuseswap_below(str(engine.path), seconds=10) or ""
        assert below.startswith(f"it lies on the fuseswap mount {engine.path.parent}")
        device = rundir.attach_engine(engine.name).path
        stack.callback(rundir.remove_mark, engine.name)
        stack.callback(loop.detach, device)
        point = stack.enter_context(ext4_on(device, disk_dir / "inner"))
        line = refused("create", point / "file", "--size", "1M")
        assert f"it lies on {point}, on {device}, on the engine's file of {engine.name}" in line


def test_memory() -> None:
    assert "in memory, which swap is to free (/dev/shm is a tmpfs)" in refused("create", "/dev/shm/x", "--size", "1M")


def test_a_mount_of_no_url(mount_point: Path, disk_dir: Path) -> None:
    """As anybody can make it."""
    with fuse_stub.mounted(mount_point, FILESYSTEM_TYPE, "file://[x") as connection:
        assert fuseswap_below(str(disk_dir / "file"), seconds=10) is None
        connection.unmount()


def test_a_disk(disk_dir: Path) -> None:
    assert fuseswap_below(str(disk_dir / "missing"), seconds=10) is None
