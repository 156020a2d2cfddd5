"""What the filesystem process remembers goes when the kernel gives it back: FORGET counts, and memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuseswap.host.ganesha import GaneshaServer
from tests.filesystem.conftest import Mount
from tests.filesystem.mounted import Mounted
from tests.kit.wait import wait_until

LEAK_BYTES_MAX = 2 << 20


def remembers(mounted: Mounted, nodes: int) -> None:
    """Once the kernel has dropped what it does not use, so many nodes are left: too few FORGETs leave more."""
    mounted.forget()
    wait_until(lambda: mounted.nodes() == nodes, seconds=20, what=f"{nodes} nodes")


@contextmanager
def held(*paths: Path) -> Iterator[None]:
    descriptors = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def test_every_node_is_given_back(mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    mounted = mount(nfs_server.url(nfs_dir.name))
    assert mounted.nodes() == 1
    directory = mounted.point / "directory"
    directory.mkdir()
    for number in range(40):
        path = directory / f"file-{number}"
        path.write_bytes(b"content")
        os.link(path, directory / f"link-{number}")
        (directory / f"symbolic-{number}").symlink_to(path.name)
    os.mkfifo(directory / "fifo")
    for _ in range(3):
        for path in directory.iterdir():
            path.lstat()
        assert not (directory / "none").exists()
    for number in range(0, 40, 2):
        (directory / f"file-{number}").rename(directory / f"renamed-{number}")
        (directory / f"link-{number + 1}").unlink()
    assert mounted.nodes() >= 82
    remembers(mounted, 1)
    # What is in use stays, with the way to it; what is removed and open has a name still.
    victim = directory / "file-1"
    with held(directory / "link-0", victim):
        victim.unlink()
        remembers(mounted, 1 + 1 + 2)
    remembers(mounted, 1)
    # An id that was given back is used again, for the same file.
    assert (directory / "link-0").stat().st_ino == (directory / "renamed-0").stat().st_ino
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    wait_until(lambda: mounted.nodes() == 1, seconds=20, what="the nodes of removed files to go")


def list_and_forget(mounted: Mounted, directory: Path, rounds: int) -> None:
    """Each listing looks every entry up (READDIRPLUS)."""
    for _ in range(rounds):
        assert sum(1 for _ in os.scandir(directory)) == ENTRIES
        mounted.forget()


ENTRIES = 1000


@pytest.mark.parametrize("rounds", [40, pytest.param(1000, marks=[pytest.mark.torture, pytest.mark.timeout(3600)])])
def test_memory_is_flat_over_many_lookups(mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path, rounds: int) -> None:
    mounted = mount(nfs_server.url(nfs_dir.name), "actimeo=0")
    behind = nfs_dir / "directory"
    behind.mkdir()
    for number in range(ENTRIES):
        (behind / f"file-{number}").touch()
    directory = mounted.point / "directory"
    list_and_forget(mounted, directory, 10)
    remembers(mounted, 1)
    before = mounted.resident_bytes()
    for _ in range(rounds // 10):
        mounted.watch()
        list_and_forget(mounted, directory, 10)
        for number in range(100):
            (directory / f"file-{number}").stat()
    remembers(mounted, 1)
    assert mounted.resident_bytes() - before < LEAK_BYTES_MAX
