"""The kernel's page cache: kept over our own writes, dropped when another client has changed the file."""

import ctypes
import mmap
import os
from functools import partial
from pathlib import Path

from fuseswap.backends.protocol import Attributes, FileType, Version, Written
from fuseswap.filesystem.inodes import Node
from fuseswap.host.ganesha import GaneshaServer
from tests.filesystem.conftest import Mount
from tests.kit.wait import wait_until

PAGE = mmap.PAGESIZE


def cached_pages(path: Path) -> int:
    """mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        pages = len(mapping) // PAGE
        vector = (ctypes.c_ubyte * pages)()
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapping)), vector):
            raise OSError(ctypes.get_errno(), "mincore")
        return sum(entry & 1 for entry in vector)


def test_what_was_written_here_stays_cached(mount: Mount) -> None:
    path = mount("mem:8M").point / "file"
    path.write_bytes(os.urandom(75 * PAGE))
    assert path.stat().st_size == 75 * PAGE
    assert cached_pages(path) == 75

    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"changed")
    assert cached_pages(path) == 75
    assert path.read_bytes()[1000:1007] == b"changed"


def test_an_open_sees_what_another_client_wrote_and_closed(
    mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path
) -> None:
    one, two = (mount(nfs_server.url(nfs_dir.name)).point / "file" for _ in range(2))
    one.write_bytes(b"a" * PAGE * 4)
    for number in range(10):
        assert two.read_bytes() == one.read_bytes()
        # Each has the pages of the other's half cached.
        with one.open("r+b", buffering=0) as first, two.open("r+b", buffering=0) as second:
            assert first.read() == second.read()
            os.pwrite(second.fileno(), b"%d" % number * PAGE, 2 * PAGE)
            second.close()
            os.pwrite(first.fileno(), b"%d" % number * PAGE, 0)
        expected = b"%d" % number * PAGE + b"a" * PAGE + b"%d" % number * PAGE + b"a" * PAGE
        assert one.read_bytes() == expected
        assert two.read_bytes() == expected


def test_an_open_file_sees_it_when_attributes_grow_old(mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    one, two = (mount(nfs_server.url(nfs_dir.name), "actimeo=1").point / "file" for _ in range(2))
    one.write_bytes(b"a" * PAGE)
    with two.open("rb", buffering=0) as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        assert (file.read(), mapping[:]) == (b"a" * PAGE, b"a" * PAGE)
        with one.open("r+b") as other:
            other.write(b"b" * PAGE)
        wait_until(lambda: os.pread(file.fileno(), PAGE, 0) == b"b" * PAGE, seconds=10, what="the new bytes")
        assert mapping[:] == b"b" * PAGE


def test_with_new_attributes_come_new_pages(mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    one, two = (mount(nfs_server.url(nfs_dir.name), "actimeo=1").point / "file" for _ in range(2))
    one.write_bytes(b"a" * PAGE)
    with two.open("rb", buffering=0) as file:
        for letter in (b"b", b"c", b"d"):
            with one.open("r+b") as other:
                other.write(letter * PAGE)
            changed = one.stat().st_mtime_ns
            wait_until(partial(is_of, two, changed), seconds=10, what="the new time")
            assert os.pread(file.fileno(), PAGE, 0) == letter * PAGE


def is_of(path: Path, time_ns: int) -> bool:
    return path.stat().st_mtime_ns == time_ns


def node(version: Version) -> Node:
    attributes = Attributes(
        FileType.REGULAR, 0o644, 1, 0, 0, version.size, 0, (0, 0), 2, 0, version.mtime_ns, version.ctime_ns
    )
    return Node(2, 0, b"handle", attributes, cached=version)


def test_a_write_that_found_what_is_known_is_the_only_change() -> None:
    known = node(Version(0, 1, 1))
    after = node(Version(5, 2, 2)).attributes

    known.wrote(Written(Version(0, 1, 1), after))
    assert known.cached == after.version
    for unknown in (Written(Version(0, 1, 1), after), Written(None, after), Written(after.version, None)):
        known = node(after.version)
        known.wrote(unknown)
        assert known.cached not in (None, after.version)
        known.wrote(Written(after.version, after))
        assert known.cached not in (None, after.version), "what was missed stays missed"
