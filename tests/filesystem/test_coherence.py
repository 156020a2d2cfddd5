"""What two mounts of one export see of each other, and what a mount uses without asking."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fuseswap.host.ganesha import GaneshaServer
from tests.filesystem.conftest import Mount
from tests.kit.proxy import Proxy


@pytest.fixture
def proxy(nfs_server: GaneshaServer) -> Iterator[Proxy]:
    with Proxy(nfs_server.nfs_port) as proxy:
        yield proxy


def url(proxy: Proxy, server: GaneshaServer, directory: Path) -> str:
    return f"nfs://127.0.0.1/swap/{directory.name}?nfsport={proxy.port}&mountport={server.mount_port}"


def test_names_and_attributes_are_used_without_asking(
    mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path, proxy: Proxy
) -> None:
    (nfs_dir / "directory").mkdir()
    (nfs_dir / "directory/file").write_bytes(b"content")
    cached = mount(url(proxy, nfs_server, nfs_dir), "actimeo=600").point
    (cached / "directory/file").stat()
    asked = proxy.calls
    for _ in range(100):
        (cached / "directory/file").stat()
    assert proxy.calls == asked
    asking = mount(url(proxy, nfs_server, nfs_dir), "actimeo=0").point
    (asking / "directory/file").stat()
    asked = proxy.calls
    for _ in range(10):
        (asking / "directory/file").stat()
    assert proxy.calls >= asked + 10
    # What others change is not seen meanwhile; an open asks, and what it learns is good for all.
    (asking / "directory/file").write_bytes(b"another")
    (asking / "directory/file").chmod(0o600)
    assert (cached / "directory/file").stat().st_mode & 0o777 == 0o644
    assert (cached / "directory/file").read_bytes() == b"another"
    assert (cached / "directory/file").stat().st_mode & 0o777 == 0o600


def test_one_of_two_mounts_makes_a_file(mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    points = [mount(nfs_server.url(nfs_dir.name)).point for _ in range(2)]

    def make(point: Path) -> list[int]:
        made = []
        for number in range(30):
            try:
                os.close(os.open(point / f"lock-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                made.append(number)
            except FileExistsError:
                pass
        return made

    with ThreadPoolExecutor(4) as pool:
        made = [number for part in pool.map(make, points * 2) for number in part]
    assert sorted(made) == list(range(30))


def test_what_another_client_puts_in_the_place_of_a_name(
    mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path
) -> None:
    """A stale handle behind a cached name is no error: the name is looked up again."""
    one, two = (mount(nfs_server.url(nfs_dir.name), "actimeo=600").point for _ in range(2))
    (two / "directory").mkdir()
    (two / "directory/file").write_text("old")
    (two / "file").write_text("old")
    assert ((one / "directory/file").read_text(), (one / "file").read_text()) == ("old", "old")
    (two / "new").write_text("new")
    (two / "new").rename(two / "file")
    (two / "directory/file").unlink()
    (two / "directory").rmdir()
    (two / "directory").mkdir()
    (two / "directory/file").write_text("new")
    assert ((one / "directory/file").read_text(), (one / "file").read_text()) == ("new", "new")
    (two / "file").unlink()
    with pytest.raises(FileNotFoundError):
        (one / "file").read_text()
