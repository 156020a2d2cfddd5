"""Mounts of the filesystem process."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fuseswap.host.ganesha import GaneshaServer
from tests.filesystem.mounted import Mounted

Mount = Callable[..., Mounted]


@pytest.fixture
def mount(disk_dir: Path) -> Iterator[Mount]:
    """`mount(source, options)` on a new directory."""
    with ExitStack() as stack:
        count = 0

        def make(source: str, options: str = "") -> Mounted:
            nonlocal count
            count += 1
            point = disk_dir / f"mount-{count}"
            point.mkdir()
            return stack.enter_context(Mounted(source, point, options))

        yield make


@pytest.fixture
def nfs(mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path) -> Path:
    """A mount of `nfs_dir`, an empty directory of the server."""
    return mount(nfs_server.url(nfs_dir.name)).point


@pytest.fixture(params=["nfs", "memory", "local"])
def root(request: pytest.FixtureRequest, mount: Mount, disk_dir: Path) -> Path:
    """An empty mount of each kind."""
    if request.param == "memory":
        return mount("mem:256M").point
    if request.param == "local":
        (disk_dir / "behind").mkdir()
        return mount(f"file://{disk_dir}/behind").point
    point: Path = request.getfixturevalue("nfs")
    return point
