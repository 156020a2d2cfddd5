"""Files and names on a real mount, as programs use them."""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

import fuseswap
from fuseswap.host.fiemap import mappings
from tests.contract.syscalls import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, fallocate, get_flags
from tests.filesystem.conftest import Mount


def fails(number: int) -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, match=os.strerror(number))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_source_tree_there_and_back(root: Path, tmp_path: Path) -> None:
    source = Path(fuseswap.__file__).parent
    subprocess.run(["cp", "-a", source, root / "tree"], check=True, timeout=60)
    subprocess.run(["diff", "-r", source, root / "tree"], check=True, timeout=60)
    subprocess.run(["cp", "-a", root / "tree", tmp_path / "back"], check=True, timeout=60)
    subprocess.run(["diff", "-r", source, tmp_path / "back"], check=True, timeout=60)
    for path in (root / "tree").rglob("*"):
        original = (source / path.relative_to(root / "tree")).lstat()
        found = path.lstat()
        assert (found.st_mode, found.st_mtime_ns) == (original.st_mode, original.st_mtime_ns)
    subprocess.run(["rm", "-r", root / "tree"], check=True, timeout=60)
    assert names(root) == []


def test_messages_that_pyfuse3_does_not_know(root: Path) -> None:
    """FALLOCATE, LSEEK, IOCTL; COPY_FILE_RANGE is in test_gathering.py."""
    path = root / "file"
    path.write_bytes(b"x" * 5000)
    with path.open("r+b") as file:
        for mode in (0, FALLOC_KEEP_SIZE, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE):
            with fails(errno.EOPNOTSUPP):
                fallocate(file.fileno(), mode, 0, 20_000)
        os.posix_fallocate(file.fileno(), 0, 20_000)
        assert path.read_bytes() == b"x" * 5000 + bytes(15_000)
        assert os.lseek(file.fileno(), 6000, os.SEEK_DATA) == 6000
        assert os.lseek(file.fileno(), 6000, os.SEEK_HOLE) == 20_000
        with fails(errno.ENOTTY):
            get_flags(file.fileno())
        with fails(errno.EOPNOTSUPP):
            mappings(file.fileno(), 20_000)


def test_contents(root: Path) -> None:
    content = os.urandom(5_000_001)
    path = root / "file"
    path.write_bytes(content)
    assert path.read_bytes() == content
    with path.open("r+b") as file:
        file.seek(1_234_567)
        file.write(b"inserted")
        file.seek(0, os.SEEK_END)
        file.write(b"appended")
        os.fsync(file.fileno())
    expected = content[:1_234_567] + b"inserted" + content[1_234_575:] + b"appended"
    assert path.read_bytes() == expected
    os.truncate(path, 100)
    os.truncate(path, 200)
    assert path.read_bytes() == expected[:100] + bytes(100)
    with path.open("ab") as file:
        file.write(b"end")
    assert path.stat().st_size == 203
    path.write_bytes(b"short")
    assert path.read_bytes() == b"short"


def test_direct_io(root: Path) -> None:
    path = root / "file"
    page = mmap.mmap(-1, 8192)
    page.write(os.urandom(8192))
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    try:
        assert os.pwritev(fd, [page], 4096) == 8192
        back = mmap.mmap(-1, 8192)
        assert os.preadv(fd, [back], 4096) == 8192
        assert back[:] == page[:]
    finally:
        os.close(fd)
    assert path.read_bytes() == bytes(4096) + page[:]


def test_mapped_files(root: Path) -> None:
    path = root / "file"
    path.write_bytes(bytes(20_000))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[10_000:10_005] = b"dirty"
        view.flush()
    assert path.read_bytes()[10_000:10_005] == b"dirty"
    with path.open("rb") as reader, mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert view[10_000:10_005] == b"dirty"


def test_sparse_files_beyond_4_gib(root: Path) -> None:
    path = root / "file"
    with path.open("wb") as file:
        file.seek(6 << 30)
        file.write(b"end")
    found = path.stat()
    assert found.st_size == (6 << 30) + 3
    assert found.st_blocks * 512 < 1 << 20
    with path.open("rb") as file:
        assert file.read(10) == bytes(10)
        file.seek((6 << 30) - 2)
        assert file.read() == b"\0\0end"


def test_open_flags(root: Path) -> None:
    path = root / "file"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with fails(errno.EEXIST):
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    path.write_bytes(b"content")
    fd = os.open(path, os.O_RDONLY | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0
    os.close(fd)
    with fails(errno.ENOENT):
        os.open(root / "none", os.O_RDONLY)
    with fails(errno.EISDIR):
        os.open(root, os.O_WRONLY)
    with fails(errno.ENOTDIR):
        os.open(path / "x", os.O_RDONLY)


def test_names(root: Path) -> None:
    (root / "d").mkdir(mode=0o750)
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o750
    with fails(errno.EEXIST):
        (root / "d").mkdir()
    (root / "d/f").write_text("f")
    with fails(errno.ENOTEMPTY):
        (root / "d").rmdir()
    (root / "d/f").rename(root / "g")
    (root / "d").rename(root / "e")
    assert names(root) == ["e", "g"]
    with fails(errno.ENOENT):
        (root / "d").unlink()
    with fails(errno.EISDIR):
        (root / "e").unlink()
    with fails(errno.ENAMETOOLONG):
        (root / ("x" * 256)).touch()
    name = os.fsencode(root) + b"/\xff\xfe\n"
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY))
    assert "\udcff\udcfe\n" in names(root)
    Path(os.fsdecode(name)).unlink()
    (root / "e").rmdir()


def test_dot_and_dotdot_are_listed(root: Path) -> None:
    listed = subprocess.run(["ls", "-a", root], check=True, capture_output=True, timeout=10, text=True)
    assert listed.stdout.split() == [".", ".."]


def test_links(root: Path) -> None:
    path = root / "file"
    path.write_text("content")
    os.link(path, root / "other")
    assert path.stat().st_nlink == 2
    assert path.samefile(root / "other")
    (root / "other").write_text("changed")
    assert path.read_text() == "changed"
    (root / "symbolic").symlink_to("file")
    assert (root / "symbolic").readlink() == Path("file")
    assert (root / "symbolic").read_text() == "changed"
    path.unlink()
    assert (root / "other").stat().st_nlink == 1
    assert not (root / "symbolic").exists()


def test_special_files(root: Path) -> None:
    os.mkfifo(root / "fifo", 0o640)
    assert stat.S_ISFIFO((root / "fifo").stat().st_mode)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    found = (root / "null").stat()
    assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == (1, 3)
    os.mknod(root / "regular", stat.S_IFREG | 0o600)
    assert (root / "regular").read_bytes() == b""


def test_attributes(root: Path) -> None:
    path = root / "file"
    path.touch()
    path.chmod(0o4711)
    assert stat.S_IMODE(path.stat().st_mode) == 0o4711
    os.chown(path, 12, 34)
    found = path.stat()
    assert (found.st_uid, found.st_gid) == (12, 34)
    os.utime(path, ns=(1_111_111_111_222_222_222, 999_999_999_333_333_333))
    found = path.stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_111_111_111_222_222_222, 999_999_999_333_333_333)
    os.utime(path)
    assert abs(path.stat().st_mtime - time.time()) < 60
    space = os.statvfs(root)
    assert 0 < space.f_bavail <= space.f_blocks
    assert space.f_namemax == 255


def test_times_that_nfs_cannot_say(nfs: Path) -> None:
    path = nfs / "file"
    path.touch()
    with fails(errno.EINVAL):
        os.utime(path, (-1, -1))


def test_open_files_live_on_without_a_name(root: Path) -> None:
    path, other = root / "file", root / "other"
    path.write_bytes(b"content")
    other.write_bytes(b"other")
    with path.open("r+b") as file:
        path.unlink()
        assert not path.exists()
        assert file.read() == b"content"
        file.write(b" more")
        file.flush()
        assert os.fstat(file.fileno()).st_size == 12
        path.write_bytes(b"another file")
        assert path.read_bytes() == b"another file"
    with other.open("rb") as file:
        path.rename(other)
        assert file.read() == b"other"
    assert other.read_bytes() == b"another file"
    assert names(root) == ["other"]


@pytest.mark.parametrize("flag", [1, 2], ids=["NOREPLACE", "EXCHANGE"])
def test_rename_flags_are_refused(root: Path, flag: int) -> None:
    (root / "a").touch()
    (root / "b").touch()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.renameat2(-100, bytes(root / "a"), -100, bytes(root / "b"), flag) == -1
    # The VFS answers NOREPLACE itself when the name is taken.
    assert ctypes.get_errno() in (errno.EINVAL, errno.EEXIST)
    assert libc.renameat2(-100, bytes(root / "a"), -100, bytes(root / "c"), 1) == -1
    assert ctypes.get_errno() == errno.EINVAL
    assert names(root) == ["a", "b"]


def test_locks_are_local(root: Path) -> None:
    path = root / "file"
    path.touch()
    with path.open("r+b") as one, path.open("r+b") as two:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with fails(errno.EAGAIN):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_extended_attributes_are_not_there(root: Path) -> None:
    path = root / "file"
    path.touch()
    assert os.listxattr(path) == []
    with fails(errno.EOPNOTSUPP):
        os.setxattr(path, "user.x", b"y")
    with fails(errno.EOPNOTSUPP):
        os.removexattr(path, "user.x")
    with fails(errno.EOPNOTSUPP):
        os.getxattr(path, "user.x")


def test_a_large_directory(root: Path) -> None:
    count = 1500
    for number in range(count):
        (root / f"entry-{number:05}").symlink_to("x")
    assert len(names(root)) == count
    with os.scandir(root) as entries:
        seen = []
        for entry in entries:
            seen.append(entry.name)
            assert entry.is_symlink()
            if len(seen) % 100 == 0:
                (root / f"entry-{len(seen) // 100:05}").unlink()
    assert len(seen) == len(set(seen))
    subprocess.run(["find", root, "-type", "l", "-delete"], check=True, timeout=60)
    assert names(root) == []


def test_mount_options(mount: Mount) -> None:
    mounted = mount("mem:1M", "ro,actimeo=0")
    with fails(errno.EROFS):
        (mounted.point / "x").touch()
