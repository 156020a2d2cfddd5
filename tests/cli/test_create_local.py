"""`create` on this machine's own file systems."""

import errno
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from fuseswap.backends.protocol import Attributes, Caller, Handle
from fuseswap.cli import create
from fuseswap.cli.failure import Failure
from fuseswap.cli.local_directory import LocalDirectory
from fuseswap.host.ganesha import GaneshaServer
from fuseswap.swap.header import parse_header
from tests.cli.command import finish, fuseswap, start
from tests.kit.wait import wait_until


def test_a_local_file(disk_dir: Path) -> None:
    file = disk_dir / "swap file"
    result = fuseswap("create", file, "--size", "4M")
    assert (result.code, result.errors) == (0, "")
    assert file.stat().st_blocks * 512 >= 4 << 20
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_nlink == 1
    assert parse_header(file.read_bytes()[:4096], 4 << 20, regular=True).last_page == 1023
    assert len({file.read_bytes()[at : at + 4096] for at in range(4096, 4 << 20, 4096)}) == 1023
    again = fuseswap("create", file, "--size", "4M")
    assert again.code == 0
    assert "is there already" in again.output
    assert [path.name for path in disk_dir.iterdir()] == ["swap file"]


def test_what_a_killed_create_left_goes_with_the_next(disk_dir: Path) -> None:
    """Also where it was killed after the file had its name, so that there is nothing left to make."""
    file, unfinished = disk_dir / "file", disk_dir / ".file.00000000.part"
    assert fuseswap("create", file, "--size", "1M").code == 0
    (disk_dir / ".file.ffffffff.part").hardlink_to(file)
    unfinished.write_bytes(b"half")
    (disk_dir / ".other.00000000.part").write_bytes(b"somebody else's")
    assert fuseswap("create", file, "--size", "1M").code == 0
    assert sorted(path.name for path in disk_dir.iterdir()) == [".other.00000000.part", "file"]
    assert (file.stat().st_nlink, file.stat().st_size) == (1, 1 << 20)


def test_what_others_may_have_called_so_is_kept(disk_dir: Path) -> None:
    """A file of no `create`, of the `create` of another name, and of one whose long name begins alike."""
    long = "x" * 230
    kept = [".host.notes.part", ".host.1.deadbeef.part", ".host.DEADBEEF.part", f".{long[:200]}.deadbeef.part"]
    for name in kept:
        (disk_dir / name).write_bytes(b"somebody else's")
    for name in ("host", long):
        assert fuseswap("create", disk_dir / name, "--size", "40K").code == 0
    assert {path.name for path in disk_dir.iterdir()} == {*kept, "host", long}


def test_what_a_killed_create_of_a_long_name_left_goes(disk_dir: Path) -> None:
    file = disk_dir / ("x" * 255)
    process = start("create", file, "--size", "8G")
    wait_until(lambda: list(disk_dir.iterdir()), seconds=20, what="the beginning of the file")
    process.kill()
    finish(process)
    assert fuseswap("create", file, "--size", "40K").code == 0
    assert list(disk_dir.iterdir()) == [file]


def test_dots_behind_a_link(disk_dir: Path) -> None:
    (disk_dir / "real" / "sub").mkdir(parents=True)
    (disk_dir / "link").symlink_to(disk_dir / "real" / "sub")
    assert fuseswap("create", f"{disk_dir}/link/../file", "--size", "40K").code == 0
    assert (disk_dir / "real" / "file").exists()


def test_local_files_are_kept(disk_dir: Path) -> None:
    (disk_dir / "notes").write_text("important")
    assert fuseswap("create", disk_dir / "notes", "--size", "1M").code == 3
    (disk_dir / "link").symlink_to("notes")
    result = fuseswap("create", disk_dir / "link", "--size", "1M")
    assert result.code == 3
    assert "is not a regular file" in result.line
    assert (disk_dir / "notes").read_text() == "important"
    missing = fuseswap("create", disk_dir / "missing" / "file", "--size", "1M")
    assert missing.code == 1
    assert "No such file or directory" in missing.line


def test_an_interrupted_local_create_leaves_nothing(disk_dir: Path) -> None:
    process = start("create", disk_dir / "file", "--size", "8G")
    wait_until(lambda: list(disk_dir.iterdir()), seconds=20, what="the beginning of the file")
    process.send_signal(signal.SIGTERM)
    result = finish(process)
    assert (result.code, result.line) == (1, "interrupted by SIGTERM")
    assert list(disk_dir.iterdir()) == []


class LateComer(LocalDirectory):
    """Another file gets the name at the last moment; without links its maker is seen."""

    errno_of_link = 0

    async def link(self, handle: Handle, parent: Handle, name: bytes, caller: Caller) -> Attributes:
        if self.errno_of_link:
            raise OSError(self.errno_of_link, "no links")
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=self._directory))
        return await super().link(handle, parent, name, caller)


def test_a_file_that_appeared_meanwhile_is_not_replaced(disk_dir: Path) -> None:
    directory = LateComer(str(disk_dir))
    try:
        with pytest.raises(Failure, match="exists and is not a swap file"):
            trio.run(create._create, directory, "file", 1 << 20, "file")
    finally:
        directory.close()
    assert [path.name for path in disk_dir.iterdir()] == ["file"]
    assert (disk_dir / "file").stat().st_size == 0


class SlowCommit(LocalDirectory):
    """A server that has all of the file, and is long at writing it to its disk."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.begun, self.end = trio.Event(), trio.Event()

    async def commit(self, handle: Handle, caller: Caller) -> None:
        self.begun.set()
        await self.end.wait()
        await super().commit(handle, caller)


class NoSpace(LocalDirectory):
    async def write(self, handle: Handle, offset: int, data: bytes, stable: bool, caller: Caller) -> None:
        raise OSError(errno.ENOSPC, "no space")


def during_a_commit(path: Path, other: Callable[[], Awaitable[object]]) -> bool:
    """Whether a `create` of `file` makes it, with `other()` while it does not get on."""

    async def run() -> bool:
        first = SlowCommit(str(path))
        made: list[bool] = []
        failed: list[Failure] = []

        async def make() -> None:
            try:
                made.append(await create._create(first, "file", 1 << 20, "file"))
            except Failure as failure:
                failed.append(failure)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(make)
                await first.begun.wait()
                await other()
                first.end.set()
        finally:
            first.close()
        if failed:
            raise failed[0]
        return made[0]

    return trio.run(run)


def test_a_create_that_does_not_get_on_keeps_its_file(disk_dir: Path) -> None:
    second = NoSpace(str(disk_dir))

    async def fail() -> None:
        with pytest.raises(Failure, match="disk full"):
            await create._create(second, "file", 1 << 20, "file")

    try:
        assert during_a_commit(disk_dir, fail)
    finally:
        second.close()
    assert [path.name for path in disk_dir.iterdir()] == ["file"]


def test_of_two_at_once_the_later_says_so(disk_dir: Path) -> None:
    second = LocalDirectory(str(disk_dir))
    try:
        with pytest.raises(Failure, match="another create made it meanwhile"):
            during_a_commit(disk_dir, lambda: create._create(second, "file", 1 << 20, "file"))
    finally:
        second.close()
    assert [path.name for path in disk_dir.iterdir()] == ["file"]
    assert (disk_dir / "file").stat().st_size == 1 << 20


def test_no_room_names_what_may_take_it(disk_dir: Path) -> None:
    (disk_dir / ".file.00000000.part").write_bytes(b"half")
    result = fuseswap("create", disk_dir / "file", "--size", "8000000G")
    assert result.code == 4
    assert "remove .file.00000000.part if no other create is at work or choose a smaller --size" in result.line
    assert [path.name for path in disk_dir.iterdir()] == [".file.00000000.part"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_system_without_links(disk_dir: Path, number: int) -> None:
    directory = LateComer(str(disk_dir))
    directory.errno_of_link = number
    try:
        assert trio.run(create._create, directory, "file", 1 << 20, "file")
    finally:
        directory.close()
    assert [path.name for path in disk_dir.iterdir()] == ["file"]
    assert (disk_dir / "file").stat().st_size == 1 << 20


def test_a_file_on_a_mount_goes_to_its_server(nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path) -> None:
    assert fuseswap("mount", nfs_server.url(nfs_dir.name), mount_point).code == 0
    (mount_point / "below").mkdir()
    assert fuseswap("create", mount_point / "below" / "file", "--size", "1M").code == 0
    assert (nfs_dir / "below" / "file").stat().st_size == 1 << 20
    assert fuseswap("check", mount_point / "below" / "file").code == 0
    assert fuseswap("umount", mount_point).code == 0
