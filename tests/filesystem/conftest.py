"""Mounts of the filesystem process."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from attrs import frozen

from fuseswap.host.ganesha import GaneshaServer
from tests.filesystem.mounted import Mounted
from tests.filesystem.users import User
from tests.kit.rescue import Leftovers

Mount = Callable[..., Mounted]


@pytest.fixture
def mount(disk_dir: Path) -> Iterator[Mount]:
    """`mount(source, options)` on a new directory, by root or another `user`."""
    with ExitStack() as stack:
        count = 0

        def make(source: str, options: str = "", user: User | None = None) -> Mounted:
            nonlocal count
            count += 1
            point = disk_dir / f"mount-{count}"
            point.mkdir()
            if user is not None:
                os.chown(point, user.uid, user.gid)
            return stack.enter_context(Mounted(source, point, options, user))

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


# --- one mount for a whole module ---

WORLD_SECONDS = 110.0
"""For a test on it: programs take their time on a busy machine; pytest ends them after 120."""


@frozen
class World:
    """A file system; `native` is the disk's own, which says what Linux does."""

    kind: str
    root: Path
    mounted: Mounted | None = None


@pytest.fixture(scope="module", params=["native", "nfs", "memory", "local"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """One mount of each kind that every user may enter, shared by the tests of a module."""
    kind = request.param
    with tempfile.TemporaryDirectory(prefix="fuseswap-test-", dir="/var/tmp") as name, ExitStack() as stack:
        directory, behind = Path(name), Path(name) / "behind"
        directory.chmod(0o755)
        behind.mkdir()
        stack.callback(lambda: Leftovers.of(directory).free())
        if kind == "native":
            yield World(kind, behind)
            return
        sources = {"memory": "mem:256M", "local": f"file://{behind}"}
        if kind == "nfs":
            server: GaneshaServer = request.getfixturevalue("nfs_server")
            sources["nfs"] = server.url(Path(tempfile.mkdtemp(prefix="world-", dir=server.export_dir)).name)
        point = directory / "mount"
        point.mkdir()
        mounted = stack.enter_context(Mounted(sources[kind], point, "allow_other"))
        point.chmod(0o755)
        yield World(kind, point, mounted)


@pytest.fixture
def here(world: World) -> Path:
    """A new directory on the shared mount, open to everybody."""
    if world.mounted is not None:
        world.mounted.watch(WORLD_SECONDS)
    directory = Path(tempfile.mkdtemp(dir=world.root))
    directory.chmod(0o777)
    return directory


@pytest.fixture(scope="session")
def alice() -> Iterator[User]:
    """An ordinary user with a second group."""
    with User(64001, 64001, 64010) as user:
        yield user


@pytest.fixture(scope="session")
def bob() -> Iterator[User]:
    """Another one, without."""
    with User(64002, 64002) as user:
        yield user
