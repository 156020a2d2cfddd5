"""Writes that are answered before the server has them, and who sees them."""

import contextlib
import errno
import fcntl
import mmap
import os
import subprocess
from pathlib import Path

import pytest

from fuseswap.host.ganesha import GaneshaServer
from tests.filesystem.calls import outcome
from tests.filesystem.conftest import Mount
from tests.kit.wait import wait_until


def test_small_writes_are_seen_at_once_and_in_their_order(nfs: Path, nfs_dir: Path) -> None:
    path = nfs / "file"
    expected = bytearray()
    with path.open("wb", buffering=0) as one, path.open("rb", buffering=0) as two:
        os.link(path, nfs / "other")
        for number in range(300):
            piece = bytes([number % 251]) * (number % 97 + 1)
            one.write(piece)
            expected += piece
            if number % 50 == 0:
                assert (nfs / "other").stat().st_size == len(expected)
                assert os.pread(two.fileno(), 1 << 20, 0) == expected
        for number in range(100):
            at = number * 7
            os.pwrite(one.fileno(), b"%03d" % number * 5, at)
            expected[at : at + 15] = b"%03d" % number * 5
        os.ftruncate(one.fileno(), 5000)
        one.write(b"end")  # behind the cut
        assert path.stat().st_size == len(expected) + 3
        os.fsync(one.fileno())
        assert (nfs_dir / "file").read_bytes()[:5000] == expected[:5000]
    assert (nfs_dir / "file").read_bytes() == expected[:5000] + bytes(len(expected) - 5000) + b"end"


def test_writes_reach_the_server_without_a_close(nfs: Path, nfs_dir: Path) -> None:
    with (nfs / "file").open("wb", buffering=0) as file:
        file.write(b"content")
        wait_until(lambda: (nfs_dir / "file").read_bytes() == b"content", seconds=10, what="the bytes")


def test_a_failed_write_is_told_by_write_and_by_fsync(mount: Mount) -> None:
    point = mount("mem:2M").point
    with (point / "file").open("wb", buffering=0) as file:
        with pytest.raises(OSError) as caught:
            for _ in range(4096):
                file.write(b"x" * 4096)
        assert caught.value.errno == errno.ENOSPC
        assert outcome(os.fsync, file.fileno()) == errno.ENOSPC
        os.fsync(file.fileno())


def test_a_failure_in_the_middle_of_a_large_write_is_told(mount: Mount) -> None:
    """The kernel makes it a short write, and drops the error."""
    point = full(mount("mem:8M").point)
    fd = os.open(point / "file", os.O_RDWR | os.O_CREAT)
    content = os.urandom(6 << 20)
    assert 0 < os.write(fd, content) < len(content)
    assert outcome(os.fsync, fd) == errno.ENOSPC
    os.close(fd)


def test_another_s_failure_takes_no_page_of_a_mapping(mount: Mount) -> None:
    """The kernel drops what its writeback cannot bring to the file system."""
    point = mount("mem:8M").point
    (point / "file").write_bytes(bytes(mmap.PAGESIZE))
    full(point)
    with (point / "file").open("r+b") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE) as mapping:
        other = os.open(point / "file", os.O_RDWR)
        os.pwrite(other, b"x" * (1 << 20), 1 << 20)
        assert outcome(os.fsync, other) == errno.ENOSPC
        (point / "full").unlink()
        mapping[:4] = b"page"
        with contextlib.suppress(OSError):
            mapping.flush()
        os.close(other)
        with contextlib.suppress(OSError):
            os.fsync(file.fileno())
    direct = os.open(point / "file", os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, mmap.PAGESIZE) as buffer:
        os.preadv(direct, [buffer], 0)
        assert buffer[:4] == b"page"
    os.close(direct)


def full(point: Path) -> Path:
    """A mount without room."""
    with pytest.raises(OSError):
        (point / "full").write_bytes(bytes(16 << 20))
    return point


def test_a_failed_write_is_not_told_to_a_child_only(mount: Mount) -> None:
    point = mount("mem:2M").point
    with pytest.raises(OSError):
        (point / "full").write_bytes(bytes(4 << 20))
    with (point / "file").open("wb", buffering=0) as file:
        file.write(b"x" * 65536)
        subprocess.run(["true"], check=True)  # closes its copy of the descriptor
        with pytest.raises(OSError) as caught:
            os.fsync(file.fileno())
        assert caught.value.errno == errno.ENOSPC
        os.fsync(file.fileno())
    with (point / "file").open("r+b", buffering=0) as file:
        file.write(b"x" * 65536)
        with pytest.raises(OSError):
            os.close(os.dup(file.fileno()))
        with pytest.raises(OSError):
            os.fsync(file.fileno())


def test_a_failed_write_is_told_once_to_each_open_file(mount: Mount) -> None:
    """As errseq_t has it (lib/errseq.c)."""
    point = mount("mem:2M").point
    with pytest.raises(OSError):
        (point / "full").write_bytes(bytes(4 << 20))
    (point / "file").touch()

    def opened(flags: int = os.O_RDWR) -> int:
        return os.open(point / "file", flags)

    writer, other, reader, closed = opened(), opened(), opened(os.O_RDONLY), opened()
    os.write(writer, b"x" * 65536)
    with pytest.raises(OSError):
        os.close(closed)
    untold = opened()
    assert outcome(os.fsync, writer) == errno.ENOSPC
    later = opened()
    os.truncate(point / "file", 10)
    assert [outcome(os.fsync, fd) for fd in (other, reader, untold)] == [errno.ENOSPC] * 3
    for fd in (writer, other, reader, untold, later):
        os.fsync(fd)
        os.close(fd)

    # Who closed was told, and whoever opens the file afterwards has nothing in it.
    writer = opened()
    os.write(writer, b"x" * 65536)
    assert outcome(os.close, writer) == errno.ENOSPC
    again = opened()
    os.fsync(again)
    os.close(again)


def test_what_pyfuse3_does_not_know(mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    point = mount(nfs_server.url(nfs_dir.name)).point
    (point / "file").write_bytes(b"x" * 10_000)
    with (point / "file").open("r+b", buffering=0) as file, (point / "copy").open("wb", buffering=0) as copy:
        assert os.copy_file_range(file.fileno(), copy.fileno(), 10_000) == 10_000
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 10_000
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.lockf(file, fcntl.LOCK_EX)
        with pytest.raises(OSError) as caught:
            fcntl.ioctl(file, 0x5401)
        assert caught.value.errno in (errno.ENOTTY, errno.ENOSYS)
    assert (point / "copy").read_bytes() == b"x" * 10_000


def test_a_sparse_file_beyond_4_gib(nfs: Path, nfs_dir: Path) -> None:
    path = nfs / "file"
    far = (5 << 30) + 123
    with path.open("w+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"far", far)
        os.pwrite(file.fileno(), b"near", 10)
        assert os.pread(file.fileno(), 10, far - 3) == bytes(3) + b"far"
    found = path.stat()
    assert (found.st_size, found.st_blocks * 512 < 1 << 20) == (far + 3, True)
    with (nfs_dir / "file").open("rb") as behind:
        assert os.pread(behind.fileno(), 4, 10) == b"near"
        assert os.pread(behind.fileno(), 3, far) == b"far"
    os.truncate(path, 1 << 32)
    assert path.stat().st_size == 1 << 32


def test_the_kernel_reads_ahead(nfs: Path) -> None:
    bdi = Path(f"/sys/class/bdi/0:{os.minor(nfs.stat().st_dev)}/read_ahead_kb")
    wait_until(lambda: bdi.read_text() == "4096\n", seconds=10, what="the wider window")
    content = os.urandom(10_000_000)
    (nfs / "file").write_bytes(content)
    with (nfs / "file").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert b"".join(iter(lambda: file.read(70_001), b"")) == content
