"""What each system call on names does and refuses: the cases of POSIX conformance suites, on every backend.

The disk's own file system runs beside ours, so each expectation is Linux's; where we differ, the test says so and
why.
"""

# The system calls themselves are meant:
# ruff: noqa: PTH101, PTH104, PTH115, PTH208, PTH211

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuseswap.backends.handles import read_directory
from tests.filesystem.calls import TYPES, ftruncates, make, named, opens, outcome, remove, tick, touches
from tests.filesystem.conftest import World
from tests.filesystem.users import User

# --- paths ---

Calls = dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]


def calls_on(path: Path, other: Path) -> Calls:
    """Every call that takes a path, on one that may be bad; `other` is a good file."""
    return {
        "stat": (os.stat, (path,)),
        "chmod": (os.chmod, (path, 0o600)),
        "chown": (os.chown, (path, -1, -1)),
        "truncate": (os.truncate, (path, 0)),
        "utimensat": (touches, (path, (1, 0), (1, 0))),
        "open": (opens, (path, os.O_RDONLY)),
        "create": (opens, (path, os.O_CREAT | os.O_WRONLY)),
        "link from": (os.link, (path, other.with_name("new"))),
        "link to": (os.link, (other, path)),
        "mkdir": (os.mkdir, (path,)),
        "mkfifo": (os.mkfifo, (path,)),
        "mknod": (os.mknod, (path, stat.S_IFREG | 0o600)),
        "readlink": (os.readlink, (path,)),
        "rename from": (os.rename, (path, other.with_name("new"))),
        "rename to": (os.rename, (other, path)),
        "rmdir": (os.rmdir, (path,)),
        "symlink": (os.symlink, ("target", path)),
        "unlink": (os.unlink, (path,)),
        "O_PATH": (opens, (path, os.O_PATH)),
    }


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("file/x", errno.ENOTDIR),
        ("none/x", errno.ENOENT),
        ("n" * 256, errno.ENAMETOOLONG),
        ("n" * 256 + "/x", errno.ENAMETOOLONG),
        ("./" * 2100 + "x", errno.ENAMETOOLONG),
        ("loop/x", errno.ELOOP),
    ],
    ids=["ENOTDIR", "ENOENT", "long name", "long component", "long path", "ELOOP"],
)
def test_bad_paths(here: Path, name: str, number: int) -> None:
    (here / "file").touch()
    (here / "loop").symlink_to("pool")
    (here / "pool").symlink_to("loop")
    found = {call: outcome(function, *arguments) for call, (function, arguments) in _bad_path_calls(here, name).items()}
    assert {call: named(end) for call, end in found.items() if end != number} == {}


def _bad_path_calls(here: Path, name: str) -> Calls:
    # pathlib would drop the dots.
    calls = calls_on(here / "BAD", here / "file")
    bad = f"{here}/{name}"
    return {
        call: (function, tuple(bad if argument == here / "BAD" else argument for argument in arguments))
        for call, (function, arguments) in calls.items()
    }


def test_a_name_of_255_bytes_is_none_too_long(here: Path) -> None:
    longest = here / ("n" * 255)
    for call in (os.mkdir, os.mkfifo, lambda path: os.symlink("x", path), lambda path: opens(path, os.O_CREAT)):
        call(longest)
        os.rename(longest, here / ("m" * 255))
        os.rename(here / ("m" * 255), longest)
        remove(longest)


def test_a_missing_last_component(here: Path) -> None:
    (here / "file").touch()
    creators = ("create", "link to", "mkdir", "mkfifo", "mknod", "rename to", "symlink")
    for call, (function, arguments) in calls_on(here / "none", here / "file").items():
        if call not in creators:
            assert (call, named(outcome(function, *arguments))) == (call, "ENOENT")


def test_search_permission_is_needed(here: Path, alice: User, bob: User) -> None:
    directory = here / "directory"
    alice(os.mkdir, directory)
    alice(opens, directory / "file", os.O_CREAT)
    bob(opens, here / "bobs", os.O_CREAT)
    for mode, number in ((0o755, 0), (0o744, errno.EACCES), (0o700, errno.EACCES)):
        alice(os.chmod, directory, mode)
        assert (mode, bob.errno(os.stat, directory / "file")) == (mode, number)
    for name, other in ((directory / "file", here / "bobs"), (directory / "none", here / "bobs")):
        calls = calls_on(name, other)
        assert {call: named(bob.errno(*_flat(*calls[call]))) for call in calls} == dict.fromkeys(calls, "EACCES")
    # Its owner is bound by it too, root is not.
    alice(os.chmod, directory, 0o600)
    assert alice.errno(os.stat, directory / "file") == errno.EACCES
    (directory / "file").stat()


def _flat(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (function, *arguments)


def test_write_permission_on_the_directory_is_needed(here: Path, alice: User, bob: User) -> None:
    directory = here / "directory"
    alice(os.mkdir, directory)
    alice(opens, directory / "file", os.O_CREAT, 0o666)
    alice(os.mkdir, directory / "below")
    bob(opens, here / "bobs", os.O_CREAT)
    calls = {
        **{call: calls_on(directory / "new", here / "bobs")[call] for call in _CREATORS},
        **{call: calls_on(directory / "file", here / "bobs")[call] for call in ("unlink", "rename from", "rename to")},
        "rmdir": (os.rmdir, (directory / "below",)),
    }
    assert {call: named(bob.errno(*_flat(*calls[call]))) for call in calls} == dict.fromkeys(calls, "EACCES")
    # The group's and everybody's bits count as well.
    alice(os.chmod, directory, 0o757)
    assert bob.errno(os.mkdir, directory / "new") == 0
    alice(os.chmod, directory, 0o770)
    assert bob.errno(os.mkdir, directory / "newer") == errno.EACCES
    os.chown(directory, -1, bob.gid)
    assert bob.errno(os.mkdir, directory / "newer") == 0
    os.chown(directory, 0, alice.groups[0])
    assert alice.errno(os.mkdir, directory / "newest") == 0


_CREATORS = ("create", "link to", "mkdir", "mkfifo", "mknod", "rename to", "symlink")


def test_names_without_search_permission(here: Path, alice: User) -> None:
    directory = here / "directory"
    directory.mkdir()
    make(directory / "file", "regular")
    make(directory / "below", "directory")
    directory.chmod(0o744)
    assert sorted(alice(os.listdir, directory)) == ["below", "file"]
    assert alice.errno(os.stat, directory / "file") == errno.EACCES
    assert alice.errno(os.listdir, directory / "below") == errno.EACCES
    directory.chmod(0o711)
    assert alice.errno(os.listdir, directory) == errno.EACCES
    assert alice(os.listdir, directory / "below") == []


# --- making ---


@pytest.mark.parametrize("type", TYPES)
def test_names_that_are_taken(here: Path, type: str) -> None:
    make(here / "taken", type)
    (here / "file").touch()
    calls = calls_on(here / "taken", here / "file")
    calls["create"] = (opens, (here / "taken", os.O_CREAT | os.O_EXCL))
    for call in ("create", "link to", "mkdir", "mkfifo", "mknod", "symlink"):
        function, arguments = calls[call]
        assert (call, named(outcome(function, *arguments))) == (call, "EEXIST")
    assert (here / "file").stat().st_nlink == 1


@pytest.mark.parametrize("type", [type for type in TYPES if type != "symlink"])
def test_what_is_made(here: Path, alice: User, type: str) -> None:
    """Mode less the umask, owner and group of who makes it, times of now, and of the directory as well."""
    before, path = here.stat(), here / "new"
    tick()
    user = alice if type not in ("character", "block") else None
    for mode, expected in ((0o755, 0o755), (0o666, 0o644), (0o151, 0o151), (0o4777, 0o4755)):
        if type == "directory":
            expected &= 0o1777
        (user or _directly)(make, path, type, mode)
        made = path.lstat()
        if type == "socket":
            expected = 0o755
        assert (type, oct(stat.S_IMODE(made.st_mode)), made.st_nlink) == (type, oct(expected), 1 + path.is_dir())
        assert (made.st_uid, made.st_gid) == ((user.uid, user.gid) if user else (0, 0))
        after = here.stat()
        assert min(after.st_mtime_ns, after.st_ctime_ns) > max(before.st_mtime_ns, before.st_ctime_ns)
        assert min(made.st_atime_ns, made.st_mtime_ns, made.st_ctime_ns) > before.st_ctime_ns
        before = after
        remove(path)
        tick()


def _directly(call: Callable[..., Any], *arguments: Any) -> Any:
    return call(*arguments)


def test_devices_are_roots(here: Path, alice: User) -> None:
    for type in ("character", "block"):
        assert alice.errno(make, here / type, type) == errno.EPERM
        make(here / type, type, 0o600)
        found = (here / type).stat()
        assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == (1, 3)


def test_a_setgid_directory_gives_its_group(here: Path, alice: User) -> None:
    directory = here / "directory"
    alice(os.mkdir, directory)
    alice(os.chown, directory, -1, alice.groups[0])
    alice(os.chmod, directory, 0o2755)
    alice(opens, directory / "file", os.O_CREAT)
    alice(os.mkdir, directory / "below")
    assert (directory / "file").stat().st_gid == alice.groups[0]
    below = (directory / "below").stat()
    assert (below.st_gid, oct(below.st_mode & 0o7000)) == (alice.groups[0], oct(0o2000))


def test_symlinks(here: Path) -> None:
    link = here / "link"
    for target in ("file", "/absolute", "x" * 1000, "a/" * 500, "\udcff\n"):
        link.symlink_to(target)
        assert os.readlink(link) == target
        assert link.lstat().st_size == len(os.fsencode(target))
        link.unlink()
    assert outcome(os.symlink, "", link) == errno.ENOENT
    assert outcome(os.symlink, "x" * 4096, link) == errno.ENAMETOOLONG
    (here / "file").touch()
    assert outcome(os.readlink, here / "file") == errno.EINVAL
    link.symlink_to("link")
    assert outcome(os.stat, link) == errno.ELOOP
    link.unlink()


def test_long_symlinks(here: Path, world: World) -> None:
    # A call must fit into libnfs's buffer of 4 KiB, and PATH_MAX does not.
    length = 3500 if world.kind == "nfs" else 4095
    (here / "link").symlink_to("x" * length)
    assert os.readlink(here / "link") == "x" * length
    assert outcome(os.symlink, "x" * 4095, here / "longer") == (errno.ENAMETOOLONG if world.kind == "nfs" else 0)


# --- link ---


@pytest.mark.parametrize("type", [type for type in TYPES if type != "directory"])
def test_links_count(here: Path, type: str) -> None:
    one, two, three = here / "one", here / "two", here / "three"
    make(one, type)
    first, parent = one.lstat(), here.stat()
    tick()
    os.link(one, two, follow_symlinks=False)
    assert two.lstat().st_nlink == 2
    assert min(two.lstat().st_ctime_ns, here.stat().st_mtime_ns) > max(first.st_ctime_ns, parent.st_mtime_ns)
    os.link(two, three, follow_symlinks=False)
    if type != "symlink":
        os.chmod(one, 0o601)
        os.chown(two, 64001, 64002)
    for path in (one, two, three):
        found = path.lstat()
        assert (found.st_ino, found.st_nlink) == (first.st_ino, 3)
        if type != "symlink":
            assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o601, 64001, 64002)
    before = two.lstat().st_ctime_ns
    tick()
    one.unlink()
    assert (two.lstat().st_nlink, outcome(os.lstat, one)) == (2, errno.ENOENT)
    assert two.lstat().st_ctime_ns > before
    three.unlink()
    assert two.lstat().st_nlink == 1


def test_links_that_are_refused(here: Path, tmp_path: Path, alice: User) -> None:
    (here / "directory").mkdir()
    (here / "file").touch()
    before = (here / "file").stat()
    assert outcome(os.link, here / "directory", here / "new") == errno.EPERM
    assert alice.errno(os.link, here / "directory", here / "new") == errno.EPERM
    (tmp_path / "elsewhere").touch()
    assert outcome(os.link, tmp_path / "elsewhere", here / "new") in (errno.EXDEV, 0)
    assert (here / "file").stat() == before


# --- rename ---


@pytest.mark.parametrize("target", TYPES)
def test_renames(here: Path, target: str) -> None:
    """Of each type over each type."""
    (here / "other").mkdir()
    for number, type in enumerate(TYPES):
        old, new = here / f"old-{number}", here / f"other/new-{number}"
        make(old, type)
        make(new, target)
        before = old.lstat()
        expected = 0
        if type == "directory" != target:
            expected = errno.ENOTDIR
        elif target == "directory" != type:
            expected = errno.EISDIR
        assert (type, named(outcome(os.rename, old, new))) == (type, named(expected))
        moved = (old if expected else new).lstat()
        assert (moved.st_ino, moved.st_mode) == (before.st_ino, before.st_mode)
        assert os.path.lexists(old) is bool(expected)
        if expected:
            assert stat.S_ISDIR(new.lstat().st_mode) is (target == "directory")


@pytest.mark.parametrize("type", TYPES)
def test_renames_to_new_names(here: Path, type: str) -> None:
    (here / "other").mkdir()
    make(here / "old", type)
    before, parents = (here / "old").lstat(), [here.stat(), (here / "other").stat()]
    tick()
    (here / "old").rename(here / "other/new")
    moved = (here / "other/new").lstat()
    assert (moved.st_ino, moved.st_mode, moved.st_nlink) == (before.st_ino, before.st_mode, before.st_nlink)
    assert moved.st_ctime_ns > before.st_ctime_ns
    now = [here.stat(), (here / "other").stat()]
    for then, later in zip(parents, now, strict=True):
        assert min(later.st_mtime_ns, later.st_ctime_ns) > max(then.st_mtime_ns, then.st_ctime_ns)
    change = 1 if type == "directory" else 0
    assert [later.st_nlink - then.st_nlink for then, later in zip(parents, now, strict=True)] == [-change, change]
    assert outcome(os.rename, here / "old", here / "other/new") == errno.ENOENT


def test_renames_of_directories(here: Path) -> None:
    for name in ("a/b/c", "empty", "full"):
        (here / name).mkdir(parents=True)
    (here / "full/file").touch()
    cases = {
        ("a", "a/b"): errno.EINVAL,
        ("a", "a/b/c/d"): errno.EINVAL,
        ("empty", "full"): errno.ENOTEMPTY,
        ("a/b/c", "a"): errno.ENOTEMPTY,
        ("a/.", "x"): errno.EBUSY,
        ("a/..", "x"): errno.EBUSY,
        ("empty", "a/."): errno.EBUSY,
        ("empty", "full/.."): errno.EBUSY,
        ("empty/", "new/"): 0,
        ("full/file", "new2/"): errno.ENOTDIR,
        ("full", "new"): 0,
    }
    for (old, new), expected in cases.items():
        assert (old, new, named(outcome(os.rename, f"{here}/{old}", f"{here}/{new}"))) == (old, new, named(expected))
    assert (here / "new/file").exists()


def test_renames_onto_itself(here: Path) -> None:
    (here / "one").write_text("content")
    os.link(here / "one", here / "two")
    (here / "one").rename(here / "two")
    (here / "one").rename(here / "one")
    assert {path.name: path.stat().st_nlink for path in here.iterdir()} == {"one": 2, "two": 2}
    (here / "three").write_text("victim")
    os.link(here / "three", here / "four")
    (here / "one").rename(here / "three")
    assert ((here / "four").stat().st_nlink, (here / "four").read_text()) == (1, "victim")


def test_renames_to_another_file_system(here: Path) -> None:
    (here / "file").touch()
    assert outcome(os.rename, here / "file", "/dev/shm/fuseswap-never") == errno.EXDEV
    assert outcome(os.rename, "/proc/self/status", here / "file") == errno.EXDEV


@pytest.mark.parametrize("type", ["regular", "directory"])
def test_sticky_directories(here: Path, alice: User, bob: User, type: str) -> None:
    """Who owns neither the file nor the directory may not take its name away."""
    directory = here / "sticky"
    directory.mkdir()
    take = os.rmdir if type == "directory" else os.unlink
    for directory_owner, file_owner, mode, refused in (
        (0, alice.uid, 0o1777, True),
        (0, bob.uid, 0o1777, False),
        (bob.uid, alice.uid, 0o1777, False),
        (alice.uid, alice.uid, 0o1777, True),
        (0, alice.uid, 0o777, False),
    ):
        os.chown(directory, directory_owner, -1)
        directory.chmod(mode)
        number = errno.EPERM if refused else 0
        make(directory / "file", type)
        os.chown(directory / "file", file_owner, -1)
        if type == "directory":
            # Its ".." changes when it moves, which takes write permission on itself.
            (directory / "file").chmod(0o777)
        assert bob.errno(os.rename, directory / "file", here / "away") == number
        if not refused:
            (here / "away").rename(directory / "file")
        bob(make, here / "mine", type)
        assert bob.errno(os.rename, here / "mine", directory / "file") == number
        if refused:
            remove(here / "mine")
        else:
            os.chown(directory / "file", file_owner, -1)
        assert bob.errno(take, directory / "file") == number
        if refused:
            remove(directory / "file")


def test_moving_a_directory_takes_write_permission_on_it(here: Path, alice: User, bob: User) -> None:
    alice(os.mkdir, here / "alices")
    (here / "other").mkdir()
    (here / "other").chmod(0o777)
    assert bob.errno(os.rename, here / "alices", here / "other/x") == errno.EACCES
    assert bob.errno(os.rename, here / "alices", here / "renamed") == 0
    alice(os.chmod, here / "renamed", 0o777)
    assert bob.errno(os.rename, here / "renamed", here / "other/x") == 0


# --- removal ---


@pytest.mark.parametrize("type", TYPES)
def test_removal(here: Path, type: str) -> None:
    make(here / "it", type)
    before = here.stat()
    tick()
    if type == "directory":
        assert outcome(os.unlink, here / "it") == errno.EISDIR
        (here / "it").rmdir()
    else:
        assert outcome(os.rmdir, here / "it") == errno.ENOTDIR
        (here / "it").unlink()
    after = here.stat()
    assert min(after.st_mtime_ns, after.st_ctime_ns) > max(before.st_mtime_ns, before.st_ctime_ns)
    assert after.st_nlink == before.st_nlink - (type == "directory")
    assert outcome(os.lstat, here / "it") == errno.ENOENT


@pytest.mark.parametrize("type", TYPES)
def test_only_empty_directories_go(here: Path, type: str) -> None:
    (here / "directory").mkdir()
    make(here / "directory/entry", type)
    assert outcome(os.rmdir, here / "directory") == errno.ENOTEMPTY
    assert outcome(os.rmdir, f"{here}/directory/.") == errno.EINVAL
    assert outcome(os.rmdir, f"{here}/directory/..") == errno.ENOTEMPTY
    remove(here / "directory/entry")
    (here / "directory").rmdir()


def test_mount_points_stay(world: World) -> None:
    if world.kind != "native":
        assert outcome(os.rmdir, world.root) == errno.EBUSY
        assert outcome(os.rename, world.root, world.root.with_name("x")) == errno.EBUSY


def test_an_open_file_has_no_link_left(here: Path, world: World) -> None:
    for remove_it in (os.unlink, lambda path: os.rename(here / "other", path)):
        (here / "file").write_bytes(b"content")
        (here / "other").touch()
        fd = os.open(here / "file", os.O_RDWR)
        try:
            remove_it(here / "file")
            # NFS has no open files: one that has no name must have a hidden one.
            assert os.fstat(fd).st_nlink == (0 if world.kind == "native" else 1)
            assert os.pread(fd, 10, 0) == b"content"
            os.pwrite(fd, b"C", 0)
            os.ftruncate(fd, 4)
            os.fchmod(fd, 0o600)
            assert os.pread(fd, 10, 0) == b"Cont"
            assert (os.fstat(fd).st_size, stat.S_IMODE(os.fstat(fd).st_mode)) == (4, 0o600)
        finally:
            os.close(fd)
    assert sorted(path.name for path in here.iterdir()) == ["file"]


def test_a_directory_of_an_open_file_can_be_removed_once_it_is_closed(here: Path, world: World) -> None:
    (here / "directory").mkdir()
    with (here / "directory/file").open("w"):
        (here / "directory/file").unlink()
        # The hidden name is in the way, as with the kernel's client.
        assert outcome(os.rmdir, here / "directory") == (0 if world.kind == "native" else errno.ENOTEMPTY)
    if world.kind != "native":
        deadline = time.monotonic() + 10
        while outcome(os.rmdir, here / "directory") and time.monotonic() < deadline:  # RELEASE comes after close
            time.sleep(0.01)
    assert not (here / "directory").exists()


def test_a_removed_working_directory(here: Path) -> None:
    (here / "directory").mkdir()
    fd = os.open(here / "directory", os.O_RDONLY | os.O_DIRECTORY)
    try:
        (here / "directory").rmdir()
        assert outcome(lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)) == errno.ENOENT
    finally:
        os.close(fd)


@pytest.mark.parametrize("world", ["native", "memory"], indirect=True)
def test_positions_in_a_directory(here: Path) -> None:
    """telldir(3) and seekdir(3): each entry's position leads to what was behind it."""
    for number in range(700):
        (here / f"entry-{number}").symlink_to("x")
    descriptor = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    try:
        entries = []
        while part := read_directory(descriptor):
            entries += part
        assert len({name for _, _, name in entries}) == len(entries) == 702
        for index in (0, 1, 2, 350, 699, 5, 701):
            os.lseek(descriptor, entries[index][1], os.SEEK_SET)
            behind = read_directory(descriptor)
            assert behind == entries[index + 1 : index + 1 + len(behind)]
            assert behind or index == 701
        os.lseek(descriptor, 0, os.SEEK_SET)
        (here / "new").touch()
        (here / "entry-1").unlink()
        names = []
        while part := read_directory(descriptor):
            names += [name for _, _, name in part]
        assert b"new" in names
        assert b"entry-1" not in names
    finally:
        os.close(descriptor)


# --- a mount that is read-only ---


def test_nothing_changes_on_a_read_only_mount(mount: Callable[..., Any], disk_dir: Path, alice: User) -> None:
    behind = disk_dir / "behind"
    behind.mkdir()
    (behind / "file").touch()
    (behind / "directory").mkdir()
    point = mount(f"file://{behind}", "ro").point
    calls = calls_on(point / "file", point / "file")
    new = calls_on(point / "new", point / "file")
    cases: Calls = {
        **{call: calls[call] for call in ("chmod", "chown", "truncate", "utimensat", "unlink", "rename from")},
        **{call: new[call] for call in ("create", "link to", "mkdir", "mkfifo", "mknod", "rename to", "symlink")},
        "rmdir": (os.rmdir, (point / "directory",)),
        "write": (opens, (point / "file", os.O_WRONLY)),
        "O_TRUNC": (opens, (point / "file", os.O_RDONLY | os.O_TRUNC)),
        "ftruncate": (ftruncates, (point / "file", 0)),
    }
    assert {call: named(outcome(*_flat(*cases[call]))) for call in cases} == dict.fromkeys(cases, "EROFS")
    assert os.listdir(point) and (point / "file").read_bytes() == b""
