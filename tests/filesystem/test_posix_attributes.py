"""Modes, owners, times, sizes and opening: the cases of POSIX conformance suites, on every backend.

As in test_posix_names.py the disk's own file system runs beside ours.
"""

# The system calls themselves are meant:
# ruff: noqa: PTH101

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.filesystem.calls import (
    TYPES,
    UTIME_NOW,
    UTIME_OMIT,
    ftruncates,
    make,
    named,
    opens,
    outcome,
    tick,
    touches,
    uses_without_permission,
    writes,
)
from tests.filesystem.conftest import World
from tests.filesystem.users import User


def mode_of(path: Path) -> str:
    return oct(stat.S_IMODE(path.lstat().st_mode))


# --- chmod ---


@pytest.mark.parametrize("type", [type for type in TYPES if type != "symlink"])
def test_chmod(here: Path, alice: User, bob: User, type: str) -> None:
    path = here / "it"
    make(path, type)
    for mode in (0o111, 0o777, 0o1755, 0o4755, 0o2755, 0o6000, 0o7777, 0):
        before = path.stat()
        tick()
        os.chmod(path, mode)
        assert mode_of(path) == oct(mode)
        assert path.stat().st_ctime_ns > before.st_ctime_ns
        assert path.stat().st_mtime_ns == before.st_mtime_ns
    os.chown(path, alice.uid, alice.gid)
    before = path.stat()
    assert bob.errno(os.chmod, path, 0o777) == errno.EPERM
    assert path.stat() == before
    alice(os.chmod, path, 0o641)
    assert mode_of(path) == oct(0o641)


def test_chmod_through_a_symlink(here: Path) -> None:
    (here / "file").touch()
    (here / "link").symlink_to("file")
    os.chmod(here / "link", 0o640)
    assert (mode_of(here / "file"), mode_of(here / "link")) == (oct(0o640), oct(0o777))


def test_setgid_is_for_members(here: Path, alice: User) -> None:
    path = here / "file"
    path.touch()
    for gid, mode in ((alice.gid, 0o2755), (alice.groups[0], 0o2755), (64099, 0o755)):
        os.chown(path, alice.uid, gid)
        alice(os.chmod, path, 0o2755)
        assert (gid, mode_of(path)) == (gid, oct(mode))


# --- setuid and setgid bits go when others change the file ---


@pytest.mark.parametrize("change", ["write", "truncate", "ftruncate", "O_TRUNC"])
@pytest.mark.parametrize("owner", ["own", "another's"])
def test_changed_contents_lose_setuid(here: Path, alice: User, bob: User, change: str, owner: str) -> None:
    path = here / "file"
    user = alice if owner == "own" else bob
    # Of a group that may not execute, setgid means something else, and stays if a member changes the file.
    member = 0o2767 if owner == "own" else 0o767
    for mode, expected in ((0o4777, 0o777), (0o2777, 0o777), (0o6777, 0o777), (0o2767, member), (0o777, 0o777)):
        alice(writes, path, b"content", os.O_WRONLY | os.O_CREAT)
        os.chown(path, alice.uid, alice.gid)
        alice(os.chmod, path, mode)
        if change == "write":
            user(writes, path, b"x")
        elif change == "truncate":
            user(os.truncate, path, 3)
        elif change == "ftruncate":
            user(ftruncates, path, 3)
        else:
            user(opens, path, os.O_WRONLY | os.O_TRUNC)
        assert (oct(mode), mode_of(path)) == (oct(mode), oct(expected))


def test_root_keeps_them(here: Path, alice: User) -> None:
    path = here / "file"
    alice(opens, path, os.O_CREAT)
    alice(os.chmod, path, 0o6777)
    writes(path)
    os.truncate(path, 0)
    assert mode_of(path) == oct(0o6777)


# --- chown ---


@pytest.mark.parametrize("type", TYPES)
def test_chown(here: Path, alice: User, bob: User, type: str) -> None:
    path = here / "it"
    make(path, type)
    for uid, gid, owner in (
        (123, 456, (123, 456)),
        (-1, 65533, (123, 65533)),
        (4_000_000_000, -1, (4_000_000_000, 65533)),
        (-1, -1, (4_000_000_000, 65533)),
        (0, 0, (0, 0)),
    ):
        before = path.lstat()
        tick()
        os.lchown(path, uid, gid)
        found = path.lstat()
        assert (found.st_uid, found.st_gid) == owner
        if (uid, gid) != (-1, -1):
            assert found.st_ctime_ns > before.st_ctime_ns
    os.lchown(path, alice.uid, alice.gid)
    before = path.lstat()
    for user, uid, gid, number in (
        (bob, bob.uid, bob.gid, errno.EPERM),
        (bob, -1, bob.gid, errno.EPERM),
        (bob, alice.uid, alice.gid, errno.EPERM),
        (alice, bob.uid, -1, errno.EPERM),
        (alice, -1, bob.gid, errno.EPERM),
        (alice, -1, alice.groups[0], 0),
        (alice, alice.uid, alice.gid, 0),
        (alice, -1, -1, 0),
    ):
        assert (user.uid, uid, gid, named(user.errno(os.lchown, path, uid, gid))) == (
            user.uid,
            uid,
            gid,
            named(number),
        )
        if number:
            assert path.lstat() == before
    found = path.lstat()
    assert (found.st_uid, found.st_gid) == (alice.uid, alice.gid)


def test_chown_through_a_symlink(here: Path) -> None:
    (here / "file").touch()
    (here / "link").symlink_to("file")
    os.chown(here / "link", 12, 34)
    os.lchown(here / "link", 56, 78)
    owners = [((found := os.lstat(here / name)).st_uid, found.st_gid) for name in ("file", "link")]
    assert owners == [(12, 34), (56, 78)]


def test_a_new_owner_takes_the_setuid_bits(here: Path, alice: User) -> None:
    path = here / "it"
    for mode, expected in ((0o6755, 0o755), (0o4700, 0o700), (0o2710, 0o710), (0o2745, 0o2745), (0o1777, 0o1777)):
        for change in ((123, 456), (-1, 456), (123, -1)):
            path.touch()
            os.chmod(path, mode)
            os.chown(path, *change)
            assert (oct(mode), change, mode_of(path)) == (oct(mode), change, oct(expected))
            path.unlink()
        alice(opens, path, os.O_CREAT)
        alice(os.chmod, path, mode)
        alice(os.chown, path, -1, alice.groups[0])
        assert (oct(mode), mode_of(path)) == (oct(mode), oct(expected))
        path.unlink()
    # Directories keep them: there they mean inheritance.
    path.mkdir()
    os.chmod(path, 0o6755)
    os.chown(path, 123, 456)
    assert mode_of(path) == oct(0o6755)


# --- times ---

OLD = (1_000_000_000, 123_456_789)
OLD_NS = 1_000_000_000_123_456_789
NEW = (1_234_567_890, 987_654_321)
NEW_NS = 1_234_567_890_987_654_321


def times(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_atime_ns, found.st_mtime_ns


@pytest.mark.parametrize("type", TYPES)
def test_utimensat(here: Path, type: str, world: World) -> None:
    path = here / "it"
    make(path, type)
    if type == "symlink" and world.kind == "nfs":
        # nfs-ganesha answers SETATTR of a link's times with success, and leaves them.
        mtime_ns = times(path)[1]
        touches(path, OLD, NEW)
        assert times(path)[1] == mtime_ns
        return
    touches(path, OLD, NEW)
    assert times(path) == (OLD_NS, NEW_NS)
    touches(path, (0, UTIME_OMIT), OLD)
    assert times(path) == (OLD_NS, OLD_NS)
    touches(path, NEW, (0, UTIME_OMIT))
    assert times(path) == (NEW_NS, OLD_NS)
    before = path.lstat()
    touches(path, (0, UTIME_OMIT), (0, UTIME_OMIT))
    assert path.lstat() == before
    touches(path, (0, UTIME_NOW), (0, UTIME_OMIT))
    assert abs(times(path)[0] - time.time_ns()) < 10e9
    assert times(path)[1] == OLD_NS
    touches(path, OLD, (0, UTIME_NOW))
    assert times(path)[0] == OLD_NS
    assert abs(times(path)[1] - time.time_ns()) < 10e9
    for bad in (1_000_000_000, -1):
        assert outcome(touches, path, (0, bad), OLD) == errno.EINVAL
    tick()
    before = path.lstat()
    touches(path, OLD, NEW)
    assert path.lstat().st_ctime_ns > before.st_ctime_ns


def test_times_at_the_edges(here: Path, world: World) -> None:
    path = here / "it"
    path.touch()
    touches(path, (0, 0), ((1 << 32) - 1, 999_999_999))
    assert times(path) == (0, (1 << 32) * 10**9 - 1)
    # NFSv3 counts seconds from 1970 in 32 bits.
    for seconds in (-1, 1 << 32):
        number = errno.EINVAL if world.kind == "nfs" else 0
        assert outcome(touches, path, (seconds, 0), (seconds, 1)) == number
        if not number:
            assert times(path) == (seconds * 10**9, seconds * 10**9 + 1)


NOW = ((0, UTIME_NOW), (0, UTIME_NOW))


def test_who_may_set_times(here: Path, alice: User, bob: User) -> None:
    """Its owner may; who may write may set them to now."""
    path = here / "it"
    alice(opens, path, os.O_CREAT)
    mixed = ((0, UTIME_NOW), (0, UTIME_OMIT))
    for mode, given, number in (
        (0o644, NOW, errno.EACCES),
        (0o644, (OLD, NEW), errno.EPERM),
        (0o666, (OLD, NEW), errno.EPERM),
        (0o666, mixed, errno.EPERM),
        (0o666, ((0, UTIME_NOW), OLD), errno.EPERM),
        (0o644, ((0, UTIME_OMIT), (0, UTIME_OMIT)), 0),
        (0o666, NOW, 0),
    ):
        alice(os.chmod, path, mode)
        alice(touches, path, OLD, OLD)
        assert (oct(mode), given, named(bob.errno(touches, path, *given))) == (oct(mode), given, named(number))
        if number:
            assert times(path) == (OLD_NS, OLD_NS)
    assert all(abs(found - time.time_ns()) < 10e9 for found in times(path))
    alice(os.chmod, path, 0o444)
    alice(touches, path, OLD, NEW)
    assert times(path) == (OLD_NS, NEW_NS)
    alice(touches, path, *NOW)
    touches(path, NEW, OLD)
    assert times(path) == (NEW_NS, OLD_NS)


# --- size ---


def test_truncate(here: Path, alice: User, bob: User) -> None:
    path = here / "it"
    alice(writes, path, b"content", os.O_WRONLY | os.O_CREAT)
    for call in (os.truncate, ftruncates):
        path.write_bytes(b"content")
        for size, content in ((3, b"con"), (6, b"con\0\0\0"), (0, b""), (10_000, bytes(10_000)), (7, bytes(7))):
            before = path.stat()
            tick()
            call(path, size)
            after = path.stat()
            assert (path.read_bytes(), after.st_size) == (content, size)
            assert min(after.st_mtime_ns, after.st_ctime_ns) > before.st_ctime_ns
        assert outcome(call, path, -1) == errno.EINVAL
        assert outcome(call, path, (1 << 63) - 1) in (errno.EFBIG, 0)
        call(path, 7)
    assert outcome(ftruncates, path, 0, os.O_RDONLY) == errno.EINVAL
    assert bob.errno(os.truncate, path, 0) == errno.EACCES
    alice(os.chmod, path, 0o666)
    assert bob.errno(os.truncate, path, 1) == 0
    # Who has it open may go on although its mode has changed.
    alice(os.chmod, path, 0o444)
    assert alice.errno(os.truncate, path, 0) == errno.EACCES
    assert path.stat().st_size == 1


@pytest.mark.parametrize("type", [type for type in TYPES if type not in ("regular", "character", "block")])
def test_what_cannot_be_truncated(here: Path, type: str) -> None:
    make(here / "it", type)
    expected = {"directory": errno.EISDIR, "symlink": errno.ENOENT}.get(type, errno.EINVAL)
    assert outcome(os.truncate, here / "it", 0) == expected


def test_a_file_that_is_open_may_be_changed_whatever_its_mode(here: Path, alice: User) -> None:
    assert alice(uses_without_permission, here / "it") == b"cont"
    (here / "it").unlink()


def test_a_program_that_runs_is_not_written(here: Path) -> None:
    path = here / "sleep"
    shutil.copy("/bin/sleep", path)
    with subprocess.Popen([path, "60"]) as program:
        try:
            assert outcome(opens, path, os.O_WRONLY) == errno.ETXTBSY
            assert outcome(os.truncate, path, 0) == errno.ETXTBSY
        finally:
            program.kill()
    with contextlib.closing(os.fdopen(os.open(path, os.O_RDWR))):
        assert outcome(subprocess.run, [path, "0"]) == errno.ETXTBSY


def test_a_program_that_may_only_be_run(here: Path, alice: User) -> None:
    path = here / "true"
    shutil.copy("/bin/true", path)
    path.chmod(0o711)
    assert alice.errno(opens, path, os.O_RDONLY) == errno.EACCES
    assert alice(subprocess.call, [path]) == 0
    path.chmod(0o744)
    assert alice.errno(subprocess.call, [path]) == errno.EACCES


def test_permission_that_goes_while_the_file_is_open(here: Path, alice: User, bob: User, world: World) -> None:
    path = here / "file"
    alice(writes, path, b"content", os.O_WRONLY | os.O_CREAT)
    alice(os.chmod, path, 0o666)
    descriptor = bob(os.open, path, os.O_RDWR)
    alice(os.chmod, path, 0o600)
    # An NFS server knows of no open files: it looks at the mode with every call, but for the owner's.
    expected = errno.EACCES if world.kind == "nfs" else 0
    assert bob.errno(os.pwrite, descriptor, b"C", 0) == 0
    assert bob.errno(os.fsync, descriptor) == expected
    assert bob.errno(os.close, descriptor) == 0
    assert path.read_bytes() == (b"content" if expected else b"Content")


# --- open ---


@pytest.mark.parametrize("whose", ["owner", "group", "other"])
def test_modes_decide_who_opens(here: Path, alice: User, bob: User, whose: str) -> None:
    path = here / "file"
    alice(opens, path, os.O_CREAT)
    alice(os.mkdir, here / "directory")
    user, shift = {"owner": (alice, 6), "group": (alice, 3), "other": (bob, 0)}[whose]
    if whose == "group":
        for name in (path, here / "directory"):
            os.chown(name, 0, alice.groups[0])
    for bits in range(8):
        # Only the class that one belongs to counts.
        mode = bits << shift | 0o777 & ~(7 << shift) if whose == "owner" else bits << shift
        os.chmod(path, mode)
        os.chmod(here / "directory", mode)
        for flags, needed in (
            (os.O_RDONLY, 4),
            (os.O_WRONLY, 2),
            (os.O_RDWR, 6),
            (os.O_RDONLY | os.O_TRUNC, 6),
            (os.O_WRONLY | os.O_APPEND, 2),
        ):
            number = 0 if bits & needed == needed else errno.EACCES
            assert (oct(mode), flags, user.errno(opens, path, flags)) == (oct(mode), flags, number)
        for mask in range(1, 8):
            assert (oct(mode), mask, user(os.access, path, mask)) == (oct(mode), mask, bits & mask == mask)
        assert (user.errno(os.listdir, here / "directory") == 0) is bool(bits & 4)
        assert (user.errno(os.stat, f"{here}/directory/.") == 0) is bool(bits & 1)


def test_root_opens_everything(here: Path, alice: User) -> None:
    alice(opens, here / "file", os.O_CREAT, 0)
    opens(here / "file", os.O_RDWR)
    assert os.access(here / "file", os.R_OK | os.W_OK)
    assert not os.access(here / "file", os.X_OK)


def test_flags_of_open(here: Path, alice: User) -> None:
    for type in TYPES:
        make(here / type, type)
    (here / "file-link").symlink_to("regular")
    (here / "directory-link").symlink_to("directory")
    for name, flags, number in (
        ("directory", os.O_WRONLY, errno.EISDIR),
        ("directory", os.O_RDWR, errno.EISDIR),
        ("directory", os.O_RDONLY | os.O_TRUNC, errno.EISDIR),
        ("directory", os.O_CREAT, errno.EISDIR),
        ("directory", os.O_RDONLY | os.O_DIRECTORY, 0),
        ("directory/", os.O_RDONLY, 0),
        ("regular", os.O_RDONLY | os.O_DIRECTORY, errno.ENOTDIR),
        ("regular/", os.O_RDONLY, errno.ENOTDIR),
        ("file-link", os.O_RDONLY | os.O_NOFOLLOW, errno.ELOOP),
        ("file-link", os.O_RDONLY, 0),
        ("file-link", os.O_CREAT | os.O_EXCL, errno.EEXIST),
        ("directory-link", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, errno.ENOTDIR),
        ("symlink", os.O_RDONLY, errno.ENOENT),
        ("fifo", os.O_WRONLY | os.O_NONBLOCK, errno.ENXIO),
        ("fifo", os.O_RDONLY | os.O_NONBLOCK, 0),
        ("fifo", os.O_RDWR, 0),
        ("socket", os.O_RDONLY, errno.ENXIO),
        # Mounts of ordinary file systems hold no devices (nodev); the disk's own does.
        ("new/", os.O_CREAT, errno.EISDIR),
        ("new/x", os.O_CREAT, errno.ENOENT),
    ):
        assert (name, flags, named(outcome(opens, f"{here}/{name}", flags))) == (name, flags, named(number))
    # O_CREAT through a dangling link makes its target.
    opens(here / "symlink", os.O_CREAT | os.O_WRONLY)
    assert (here / "target").read_bytes() == b""


def test_devices_are_not_opened(here: Path, world: World) -> None:
    make(here / "character", "character")
    # libfuse mounts nodev,nosuid.
    assert outcome(opens, here / "character", os.O_RDONLY) == (0 if world.kind == "native" else errno.EACCES)


def test_fifos_and_sockets_carry_bytes(here: Path) -> None:
    make(here / "fifo", "fifo")
    reader = os.open(here / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(here / "fifo", os.O_WRONLY)
    try:
        os.write(writer, b"through")
        assert os.read(reader, 10) == b"through"
    finally:
        os.close(reader)
        os.close(writer)


def test_what_opening_changes(here: Path, alice: User) -> None:
    path = here / "file"
    alice(writes, path, b"content", os.O_WRONLY | os.O_CREAT)
    before, parent = path.stat(), here.stat()
    tick()
    opens(path, os.O_RDWR)
    opens(path, os.O_RDWR | os.O_CREAT)
    assert (path.stat().st_mtime_ns, path.stat().st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    opens(path, os.O_WRONLY | os.O_TRUNC)
    after = path.stat()
    assert (after.st_size, after.st_ino, after.st_uid) == (0, before.st_ino, alice.uid)
    assert min(after.st_mtime_ns, after.st_ctime_ns) > before.st_ctime_ns
    assert here.stat().st_mtime_ns == parent.st_mtime_ns


def test_appending(here: Path) -> None:
    path = here / "file"
    one, two = (os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND) for _ in range(2))
    try:
        for number in range(50):
            os.write(one, b"a%02d" % number)
            os.write(two, b"b%02d" % number)
            os.lseek(one, 0, os.SEEK_SET)
        assert path.read_bytes() == b"".join(b"a%02db%02d" % (number, number) for number in range(50))
    finally:
        os.close(one)
        os.close(two)


def test_offsets_at_the_edges(here: Path) -> None:
    path = here / "file"
    path.write_bytes(b"content")
    fd = os.open(path, os.O_RDWR)
    try:
        top = (1 << 63) - 1
        assert outcome(os.pwrite, fd, b"x", top) in (errno.EFBIG, errno.EINVAL)
        assert outcome(os.pwrite, fd, b"xx", top - 1) in (errno.EFBIG, errno.EINVAL, 0)
        assert outcome(os.pwrite, fd, b"x", -1) == errno.EINVAL
        assert outcome(os.pread, fd, 1, -1) == errno.EINVAL
        assert outcome(os.lseek, fd, -1, os.SEEK_SET) == errno.EINVAL
        assert os.pread(fd, 10, 1 << 62) in (b"", bytes(1))
        os.ftruncate(fd, 7)
        assert os.pread(fd, 10, 0) == b"content"
    finally:
        os.close(fd)
