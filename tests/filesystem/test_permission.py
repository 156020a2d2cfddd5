"""Who enters a mount, and as whom the server sees them."""

import errno
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuseswap.host.ganesha import Export, GaneshaServer
from tests.filesystem.calls import make, named, opens, writes
from tests.filesystem.conftest import Mount
from tests.filesystem.users import User


@pytest.fixture
def open_disk_dir(disk_dir: Path) -> Path:
    disk_dir.chmod(0o755)
    return disk_dir


@pytest.fixture
def carol() -> Iterator[User]:
    """A user of more groups than AUTH_SYS carries."""
    with User(64003, 64003, *range(65000, 65020)) as user:
        yield user


@pytest.fixture
def nobody() -> Iterator[User]:
    """A user with a name, which fusermount(1) asks for."""
    entry = pwd.getpwnam("nobody")
    with User(entry.pw_uid, entry.pw_gid) as user:
        yield user


@pytest.fixture
def fuse_for_everybody() -> Iterator[None]:
    """The mode that udev gives the device; a machine without udev leaves it to root."""
    device = Path("/dev/fuse")
    before = stat.S_IMODE(device.stat().st_mode)
    device.chmod(0o666)
    yield
    device.chmod(before)


def test_others_enter_only_if_they_may(mount: Mount, open_disk_dir: Path, alice: User) -> None:
    closed, opened = mount("mem:1M").point, mount("mem:1M", "allow_other").point
    for point in (closed, opened):
        point.chmod(0o777)
    assert alice.errno(os.listdir, closed) == errno.EACCES
    assert alice.errno(os.mkdir, closed / "directory") == errno.EACCES
    assert alice(os.listdir, opened) == []
    alice(os.mkdir, opened / "directory")
    assert (opened / "directory").stat().st_uid == alice.uid


def test_sixteen_groups_reach_the_server(
    mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path, open_disk_dir: Path, carol: User
) -> None:
    point = mount(nfs_server.url(nfs_dir.name), "allow_other").point
    point.chmod(0o755)
    for group, expected in ((65000, 0), (65015, 0), (65016, errno.EACCES), (65030, errno.EACCES)):
        directory = point / str(group)
        directory.mkdir()
        os.chown(directory, 0, group)
        directory.chmod(0o770)
        assert (group, named(carol.errno(os.mkdir, directory / "new"))) == (group, named(expected))


def test_a_squashed_root_is_nobody(
    mount: Mount, make_nfs_server: Callable[..., GaneshaServer], open_disk_dir: Path, alice: User
) -> None:
    server = make_nfs_server(Export("squash", squash="root"))
    behind = server.export_dir / "open"
    behind.mkdir()
    behind.chmod(0o777)
    point = mount(server.url("open"), "allow_other").point
    alice(writes, point / "alices", b"secret", os.O_CREAT | os.O_WRONLY)
    alice(os.chmod, point / "alices", 0o600)
    alice(os.mkdir, point / "closed", 0o755)
    # The kernel lets root try, the server has the last word.
    refused: dict[str, Callable[[], object]] = {
        "read": lambda: (point / "alices").read_bytes(),
        "write": lambda: (point / "alices").write_bytes(b"x"),
        "chmod": lambda: (point / "alices").chmod(0o666),
        "chown": lambda: os.chown(point / "alices", 0, 0),
        "create": lambda: (point / "closed/new").touch(),
        "device": lambda: make(point / "device", "character"),
    }
    for name, call in refused.items():
        with pytest.raises(PermissionError):
            call()
        assert (behind / "alices").read_bytes() == b"secret", name
    for call in (lambda: (point / "file").write_bytes(b"content"), lambda: (point / "directory").mkdir()):
        call()
    assert (point / "file").read_bytes() == b"content"
    assert 0 not in {(point / name).stat().st_uid for name in ("file", "directory")}
    (point / "file").chmod(0o640)
    assert stat.S_IMODE((behind / "file").stat().st_mode) == 0o640
    alice(os.unlink, point / "alices")
    (point / "file").unlink()


def test_an_ordinary_user_mounts(
    nfs_server: GaneshaServer, nfs_dir: Path, mount: Mount, open_disk_dir: Path, nobody: User, fuse_for_everybody: None
) -> None:
    os.chown(nfs_dir, nobody.uid, nobody.gid)
    point = mount(nfs_server.url(nfs_dir.name), user=nobody).point
    assert "allow_other" not in _options(point)
    nobody(opens, point / "file", os.O_CREAT | os.O_WRONLY)
    assert (nfs_dir / "file").stat().st_uid == nobody.uid
    with pytest.raises(PermissionError):
        point.stat()


def _options(point: Path) -> str:
    (line,) = (line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {point} " in line)
    return line.split()[3]
