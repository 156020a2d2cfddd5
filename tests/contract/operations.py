"""Every operation of the table, really tried on a file, wherever that file lies.

A `World` is a directory and a way to make a file in it swap and ordinary again: natively by swapon(2), on a
fuseswap mount by fuseswap. `outcome_of` makes a fresh file, brings it into one state, tries one operation by
all its variants (which must agree), and undoes everything.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from attrs import frozen

from fuseswap.host.fiemap import mappings
from fuseswap.swap.header import Mark, SwapHeader, format_header, put_mark
from fuseswap.swap.rules import Operation
from fuseswap.swap.units import PAGE_SIZE
from tests.contract import syscalls

PAGES = 32
SIZE_BYTES = PAGES * PAGE_SIZE
MARK = Mark("contract-test", "this-boot", os.uname().nodename[:64])
"""Of whoever activates here: a file that bears it already is not waited for (RIVAL_SECONDS)."""
CONTENT = put_mark(format_header(SwapHeader(last_page=PAGES - 1)), MARK) + os.urandom(SIZE_BYTES - PAGE_SIZE)

_FS_NOATIME_FL = 0x80
_XATTR = "user.fuseswap-test"

# Stores to a mapping that is older than activation; a process of its own, since the kernel may kill it.
_STORER = """
import errno, mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
mapping = mmap.mmap(fd, 4096, offset=4096)
mapping[0:1]
sys.stdout.write("mapped\\n")
sys.stdout.flush()
sys.stdin.readline()
try:
    mapping[0:1] = b"x"
    mapping.flush()
except OSError as error:
    os._exit(error.errno)
os._exit(0)
"""


@frozen
class World:
    """A file system, and how files on it become swap."""

    directory: Path
    activate: Callable[[Path], None]
    """Make a file swap. OSError with the errno of the refusal."""
    deactivate: Callable[[Path], None]
    unmounted: Callable[[], AbstractContextManager[None]]
    """Unmount the file system and, leaving the context, mount it again. OSError if it cannot be unmounted."""
    read_only: Callable[[], AbstractContextManager[None]]
    """The same for a remount read-only."""

    @contextmanager
    def active(self, path: Path) -> Iterator[None]:
        """A file that is swap meanwhile."""
        self.activate(path)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                self.deactivate(path)


State = Callable[[Path], AbstractContextManager[None]]
"""Brings a file into a state, and back: `World.active` is one."""


def ordinary(_: Path) -> AbstractContextManager[None]:
    """The state in which a file is at first."""
    return contextlib.nullcontext()


@frozen
class Scene:
    """One file in one state, and what stands around it."""

    world: World
    path: Path
    other_name: Path
    """A hard link to it."""
    neighbour: Path
    """An ordinary file with the same content."""
    handle: int
    """A descriptor (O_RDWR) from before activation."""
    old_shared: mmap.mmap | None
    old_private: mmap.mmap | None
    storer: "subprocess.Popen[str] | None"

    def opened(self, flags: int = os.O_RDWR) -> AbstractContextManager[int]:
        """A descriptor of the file, opened now."""
        return descriptor(self.path, flags)


@contextmanager
def descriptor(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


Attempt = Callable[[Scene], None]
_ATTEMPTS: dict[Operation, list[Attempt]] = {}


def at_once(attempt: Callable[[], None]) -> None:
    """The plain way to make an attempt."""
    attempt()


def outcome_of(
    world: World, operation: Operation, state: State, make: Callable[[Callable[[], None]], None] = at_once
) -> int:
    """0, the errno, or the negative signal that `operation` gets on a fresh file; its variants must agree.

    `make` makes each attempt.
    """
    outcomes = {
        attempt.__name__: _one_outcome(world, operation, attempt, state, make) for attempt in _ATTEMPTS[operation]
    }
    assert len(set(outcomes.values())) == 1, f"{operation}: {outcomes}"
    return next(iter(outcomes.values()))


def _one_outcome(
    world: World, operation: Operation, attempt: Attempt, state: State, make: Callable[[Callable[[], None]], None]
) -> int:
    with _scene(world, operation) as scene, state(scene.path):
        try:
            make(lambda: attempt(scene))
        except OSError as error:
            assert error.errno, f"{operation}: {error!r}"
            return error.errno
        except _Killed as killed:
            return -killed.signal
        return 0


class _Killed(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


@contextmanager
def _scene(world: World, operation: Operation) -> Iterator[Scene]:
    directory = world.directory / "scene"
    with ExitStack() as stack:
        directory.mkdir()
        stack.callback(_remove, world.directory)
        path, neighbour = directory / "swapfile", directory / "neighbour"
        for file in (path, neighbour):
            with descriptor(file, os.O_WRONLY | os.O_CREAT) as fd:
                os.write(fd, CONTENT)
                os.fsync(fd)
        other_name = directory / "other-name"
        other_name.hardlink_to(path)
        handle = -1
        shared = private = storer = None
        # A handle or a mapping changes what other operations get (a mount with users), so only where asked.
        if operation in (Operation.READ_OLD_HANDLE, Operation.WRITE_OLD_HANDLE):
            handle = stack.enter_context(descriptor(path, os.O_RDWR))
        if operation is Operation.LOAD_OLD_SHARED_MAPPING:
            shared = stack.enter_context(_mapped(path, mmap.MAP_SHARED))
        if operation is Operation.STORE_OLD_PRIVATE_MAPPING:
            private = stack.enter_context(_mapped(path, mmap.MAP_PRIVATE))
        if operation is Operation.STORE_OLD_SHARED_MAPPING:
            storer = stack.enter_context(_started_storer(path))
        yield Scene(world, path, other_name, neighbour, handle, shared, private, storer)


def _remove(directory: Path) -> None:
    for current, _, files in os.walk(directory, topdown=False):
        for name in files:
            Path(current, name).unlink()
        if Path(current) != directory:
            Path(current).rmdir()


@contextmanager
def _mapped(path: Path, flags: int, prot: int = mmap.PROT_READ | mmap.PROT_WRITE) -> Iterator[mmap.mmap]:
    with descriptor(path, os.O_RDWR) as fd:
        mapping = mmap.mmap(fd, SIZE_BYTES, flags=flags, prot=prot)
    try:
        yield mapping
    finally:
        mapping.close()


@contextmanager
def _started_storer(path: Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _STORER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "mapped\n"
            yield process
        finally:
            process.kill()
            process.wait()
            # A store that was refused at writeback stays an error of the whole file system until it is told.
            with descriptor(path.parent, os.O_RDONLY) as fd, contextlib.suppress(OSError):
                syscalls.syncfs(fd)


def attempts(operation: Operation) -> Callable[[Attempt], Attempt]:
    """Register one variant of an operation."""

    def register(attempt: Attempt) -> Attempt:
        _ATTEMPTS.setdefault(operation, []).append(attempt)
        return attempt

    return register


def _page() -> mmap.mmap:
    """A page of memory, aligned as O_DIRECT asks."""
    return mmap.mmap(-1, PAGE_SIZE)


# --- open ---


def _open_variants(operation: Operation, *flag_sets: int) -> None:
    for flags in flag_sets:

        def attempt(scene: Scene, flags: int = flags) -> None:
            with scene.opened(flags):
                pass

        attempt.__name__ = f"open_{flags:o}"
        attempts(operation)(attempt)


_open_variants(Operation.OPEN_READ, os.O_RDONLY, os.O_RDONLY | os.O_DIRECT)
_open_variants(
    Operation.OPEN_WRITE,
    os.O_WRONLY,
    os.O_RDWR,
    os.O_RDWR | os.O_DIRECT,
    os.O_WRONLY | os.O_APPEND,
    os.O_RDWR | os.O_SYNC,
    os.O_RDWR | os.O_CREAT,
)
_open_variants(Operation.OPEN_EXCLUSIVE, os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDONLY | os.O_CREAT | os.O_EXCL)
_open_variants(
    Operation.OPEN_TRUNCATE,
    os.O_WRONLY | os.O_TRUNC,
    os.O_RDWR | os.O_TRUNC | os.O_DIRECT,
    os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
)


# --- read and write ---


@attempts(Operation.READ)
def read(scene: Scene) -> None:
    with scene.opened(os.O_RDONLY) as fd:
        assert os.read(fd, 100) == CONTENT[:100]
        assert os.pread(fd, PAGE_SIZE, PAGE_SIZE) == CONTENT[PAGE_SIZE : 2 * PAGE_SIZE]


@attempts(Operation.READ_DIRECT)
def read_direct(scene: Scene) -> None:
    with scene.opened(os.O_RDONLY | os.O_DIRECT) as fd, _page() as page:
        assert os.preadv(fd, [page], PAGE_SIZE) == PAGE_SIZE
        assert page[:] == CONTENT[PAGE_SIZE : 2 * PAGE_SIZE]


@attempts(Operation.READ_UNALIGNED)
def read_unaligned(scene: Scene) -> None:
    with scene.opened(os.O_RDONLY | os.O_DIRECT) as fd, _page() as page, memoryview(page) as view:
        os.preadv(fd, [view[:100]], 10)


@attempts(Operation.READ_OLD_HANDLE)
def read_old_handle(scene: Scene) -> None:
    assert os.pread(scene.handle, PAGE_SIZE, PAGE_SIZE) == CONTENT[PAGE_SIZE : 2 * PAGE_SIZE]


@attempts(Operation.WRITE)
def write(scene: Scene) -> None:
    with scene.opened() as fd:
        os.write(fd, b"x")


@attempts(Operation.WRITE)
def pwrite(scene: Scene) -> None:
    with scene.opened() as fd:
        os.pwrite(fd, bytes(PAGE_SIZE), PAGE_SIZE)


@attempts(Operation.WRITE)
def writev(scene: Scene) -> None:
    with scene.opened() as fd:
        os.writev(fd, [b"x", b"y"])


@attempts(Operation.WRITE)
def pwritev2_dsync(scene: Scene) -> None:
    with scene.opened() as fd:
        os.pwritev(fd, [b"x"], 0, os.RWF_DSYNC)


@attempts(Operation.WRITE)
def append(scene: Scene) -> None:
    with scene.opened(os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"x")


@attempts(Operation.WRITE_DIRECT)
def write_direct(scene: Scene) -> None:
    with scene.opened(os.O_RDWR | os.O_DIRECT) as fd, _page() as page:
        os.pwritev(fd, [page], PAGE_SIZE)


@attempts(Operation.WRITE_UNALIGNED)
def write_unaligned(scene: Scene) -> None:
    with scene.opened(os.O_RDWR | os.O_DIRECT) as fd, _page() as page, memoryview(page) as view:
        os.pwritev(fd, [view[:100]], 10)


@attempts(Operation.WRITE_OLD_HANDLE)
def write_old_handle(scene: Scene) -> None:
    os.pwrite(scene.handle, b"x", PAGE_SIZE)


@attempts(Operation.WRITE_BEHIND_END)
def write_behind_end(scene: Scene) -> None:
    with scene.opened() as fd:
        os.pwrite(fd, b"x", SIZE_BYTES)


@attempts(Operation.WRITE_EMPTY)
def write_empty(scene: Scene) -> None:
    with scene.opened() as fd:
        os.write(fd, b"")


@attempts(Operation.SPLICE_INTO)
def sendfile_into(scene: Scene) -> None:
    with scene.opened() as fd, descriptor(scene.neighbour, os.O_RDONLY) as source:
        os.sendfile(fd, source, 0, PAGE_SIZE)


@attempts(Operation.SPLICE_INTO)
def splice_into(scene: Scene) -> None:
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, bytes(PAGE_SIZE))
        with scene.opened() as fd:
            os.splice(read_end, fd, PAGE_SIZE)
    finally:
        os.close(read_end)
        os.close(write_end)


# --- size and allocation ---


def _truncate_variants(operation: Operation, size_bytes: int) -> None:
    def truncate(scene: Scene) -> None:
        os.truncate(scene.path, size_bytes)

    def ftruncate(scene: Scene) -> None:
        with scene.opened() as fd:
            os.ftruncate(fd, size_bytes)

    attempts(operation)(truncate)
    attempts(operation)(ftruncate)


_truncate_variants(Operation.TRUNCATE_SMALLER, SIZE_BYTES - PAGE_SIZE)
_truncate_variants(Operation.TRUNCATE_SAME, SIZE_BYTES)
_truncate_variants(Operation.TRUNCATE_LARGER, SIZE_BYTES + PAGE_SIZE)


def _fallocate_variants(operation: Operation, mode: int, *offsets: int) -> None:
    for offset in offsets:

        def attempt(scene: Scene, offset: int = offset) -> None:
            with scene.opened() as fd:
                syscalls.fallocate(fd, mode, offset, PAGE_SIZE)

        attempt.__name__ = f"fallocate_{mode:x}_{offset}"
        attempts(operation)(attempt)


_fallocate_variants(Operation.FALLOCATE, 0, PAGE_SIZE, SIZE_BYTES)
_fallocate_variants(Operation.FALLOCATE_KEEP_SIZE, syscalls.FALLOC_KEEP_SIZE, PAGE_SIZE, SIZE_BYTES)
_fallocate_variants(Operation.FALLOCATE_PUNCH_HOLE, syscalls.FALLOC_PUNCH_HOLE | syscalls.FALLOC_KEEP_SIZE, PAGE_SIZE)
_fallocate_variants(Operation.FALLOCATE_ZERO_RANGE, syscalls.FALLOC_ZERO_RANGE, PAGE_SIZE)
_fallocate_variants(Operation.FALLOCATE_COLLAPSE_RANGE, syscalls.FALLOC_COLLAPSE_RANGE, PAGE_SIZE)
_fallocate_variants(Operation.FALLOCATE_INSERT_RANGE, syscalls.FALLOC_INSERT_RANGE, PAGE_SIZE)
_fallocate_variants(Operation.FALLOCATE_UNSHARE_RANGE, syscalls.FALLOC_UNSHARE_RANGE, PAGE_SIZE)


# --- names ---


@attempts(Operation.UNLINK)
def unlink(scene: Scene) -> None:
    scene.path.unlink()


@attempts(Operation.UNLINK_OTHER_NAME)
def unlink_other_name(scene: Scene) -> None:
    scene.other_name.unlink()


@attempts(Operation.RENAME_SOURCE)
def rename_source(scene: Scene) -> None:
    scene.path.rename(scene.path.with_name("renamed"))


@attempts(Operation.RENAME_TARGET)
def rename_target(scene: Scene) -> None:
    scene.neighbour.rename(scene.path)


@attempts(Operation.RENAME_EXCHANGE)
def rename_exchange(scene: Scene) -> None:
    syscalls.exchange(scene.path, scene.neighbour)


@attempts(Operation.RENAME_EXCHANGE)
def rename_exchanged(scene: Scene) -> None:
    syscalls.exchange(scene.neighbour, scene.path)


@attempts(Operation.LINK)
def link(scene: Scene) -> None:
    scene.path.with_name("linked").hardlink_to(scene.path)


@attempts(Operation.RENAME_DIRECTORY)
def rename_directory(scene: Scene) -> None:
    directory = scene.path.parent
    moved = directory.with_name("moved")
    directory.rename(moved)
    moved.rename(directory)


@attempts(Operation.REMOVE_DIRECTORY)
def remove_directory(scene: Scene) -> None:
    scene.path.parent.rmdir()


# --- attributes ---


@attempts(Operation.STAT)
def stat(scene: Scene) -> None:
    assert scene.path.stat().st_size == SIZE_BYTES


@attempts(Operation.CHMOD)
def chmod(scene: Scene) -> None:
    scene.path.chmod(0o640)
    assert scene.path.stat().st_mode & 0o7777 == 0o640


@attempts(Operation.CHOWN)
def chown(scene: Scene) -> None:
    os.chown(scene.path, 12, 34)
    assert (scene.path.stat().st_uid, scene.path.stat().st_gid) == (12, 34)


@attempts(Operation.UTIMES)
def utimes(scene: Scene) -> None:
    os.utime(scene.path, ns=(1_000_000_000, 2_000_000_000))
    assert scene.path.stat().st_mtime_ns == 2_000_000_000


@attempts(Operation.GETXATTR)
def listxattr(scene: Scene) -> None:
    try:
        os.listxattr(scene.path)
        os.getxattr(scene.path, _XATTR)
    except OSError as error:
        # Nothing is there, or nothing can be: the question itself was allowed.
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise


@attempts(Operation.SETXATTR)
def setxattr(scene: Scene) -> None:
    os.setxattr(scene.path, _XATTR, b"value")


@attempts(Operation.REMOVEXATTR)
def removexattr(scene: Scene) -> None:
    try:
        os.removexattr(scene.path, _XATTR)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise


@attempts(Operation.CHATTR)
def chattr(scene: Scene) -> None:
    with scene.opened(os.O_RDONLY) as fd:
        syscalls.set_flags(fd, syscalls.get_flags(fd) | _FS_NOATIME_FL)


# --- mappings ---


@attempts(Operation.MMAP_SHARED_WRITE)
def mmap_shared_write(scene: Scene) -> None:
    with scene.opened() as fd:
        mmap.mmap(fd, SIZE_BYTES, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE).close()


@attempts(Operation.MMAP_SHARED_READ)
def mmap_shared_read(scene: Scene) -> None:
    with scene.opened(os.O_RDONLY) as fd, mmap.mmap(fd, SIZE_BYTES, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as m:
        assert m[PAGE_SIZE : 2 * PAGE_SIZE] == CONTENT[PAGE_SIZE : 2 * PAGE_SIZE]


@attempts(Operation.MMAP_PRIVATE)
def mmap_private(scene: Scene) -> None:
    with _mapped(scene.path, mmap.MAP_PRIVATE) as mapping:
        assert mapping[PAGE_SIZE : 2 * PAGE_SIZE] == CONTENT[PAGE_SIZE : 2 * PAGE_SIZE]
        mapping[0:1] = b"x"


@attempts(Operation.LOAD_OLD_SHARED_MAPPING)
def load_old_shared_mapping(scene: Scene) -> None:
    assert scene.old_shared is not None
    assert scene.old_shared[PAGE_SIZE : 2 * PAGE_SIZE] == CONTENT[PAGE_SIZE : 2 * PAGE_SIZE]


@attempts(Operation.STORE_OLD_SHARED_MAPPING)
def store_old_shared_mapping(scene: Scene) -> None:
    assert scene.storer is not None
    scene.storer.communicate("store\n", timeout=30)
    if scene.storer.returncode < 0:
        raise _Killed(-scene.storer.returncode)
    if scene.storer.returncode > 0:
        raise OSError(scene.storer.returncode, os.strerror(scene.storer.returncode))


@attempts(Operation.STORE_OLD_PRIVATE_MAPPING)
def store_old_private_mapping(scene: Scene) -> None:
    assert scene.old_private is not None
    scene.old_private[PAGE_SIZE : PAGE_SIZE + 1] = b"x"


# --- copies that never pass user space ---


@attempts(Operation.COPY_RANGE_FROM)
def copy_range_from(scene: Scene) -> None:
    with scene.opened(os.O_RDONLY) as fd, descriptor(scene.neighbour, os.O_RDWR) as target:
        os.copy_file_range(fd, target, PAGE_SIZE)


@attempts(Operation.COPY_RANGE_INTO)
def copy_range_into(scene: Scene) -> None:
    with scene.opened() as fd, descriptor(scene.neighbour, os.O_RDONLY) as source:
        os.copy_file_range(source, fd, PAGE_SIZE)


@attempts(Operation.CLONE_FROM)
def clone_from(scene: Scene) -> None:
    with scene.opened(os.O_RDONLY) as fd, descriptor(scene.neighbour, os.O_RDWR) as target:
        syscalls.clone(fd, target)


@attempts(Operation.CLONE_FROM)
def clone_range_from(scene: Scene) -> None:
    with scene.opened(os.O_RDONLY) as fd, descriptor(scene.neighbour, os.O_RDWR) as target:
        syscalls.clone_range(fd, target, 0, PAGE_SIZE)


@attempts(Operation.CLONE_INTO)
def clone_into(scene: Scene) -> None:
    with scene.opened() as fd, descriptor(scene.neighbour, os.O_RDONLY) as source:
        syscalls.clone(source, fd)


@attempts(Operation.CLONE_INTO)
def clone_range_into(scene: Scene) -> None:
    with scene.opened() as fd, descriptor(scene.neighbour, os.O_RDONLY) as source:
        syscalls.clone_range(source, fd, 0, PAGE_SIZE)


@attempts(Operation.DEDUPE_FROM)
def dedupe_from(scene: Scene) -> None:
    with scene.opened(os.O_RDONLY) as fd, descriptor(scene.neighbour, os.O_RDWR) as target:
        syscalls.dedupe(fd, target, PAGE_SIZE)


@attempts(Operation.DEDUPE_INTO)
def dedupe_into(scene: Scene) -> None:
    with scene.opened() as fd, descriptor(scene.neighbour, os.O_RDONLY) as source:
        syscalls.dedupe(source, fd, PAGE_SIZE)


# --- where it lies ---


@attempts(Operation.SEEK_DATA)
def seek_data(scene: Scene) -> None:
    with scene.opened(os.O_RDONLY) as fd:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 0


@attempts(Operation.SEEK_HOLE)
def seek_hole(scene: Scene) -> None:
    with scene.opened(os.O_RDONLY) as fd:
        assert os.lseek(fd, 0, os.SEEK_HOLE) == SIZE_BYTES


@attempts(Operation.FIEMAP)
def fiemap(scene: Scene) -> None:
    with scene.opened(os.O_RDONLY) as fd:
        mappings(fd, SIZE_BYTES)


@attempts(Operation.FIBMAP)
def fibmap(scene: Scene) -> None:
    with scene.opened(os.O_RDONLY) as fd:
        syscalls.bmap(fd, 0)


# --- flushing, advice, locks ---


@attempts(Operation.FSYNC)
def fsync(scene: Scene) -> None:
    with scene.opened() as fd:
        os.fsync(fd)


@attempts(Operation.FSYNC)
def fdatasync(scene: Scene) -> None:
    with scene.opened() as fd:
        os.fdatasync(fd)


@attempts(Operation.SYNC_FILE_RANGE)
def sync_file_range(scene: Scene) -> None:
    with scene.opened() as fd:
        syscalls.sync_file_range(fd)


@attempts(Operation.SYNCFS)
def syncfs(scene: Scene) -> None:
    with scene.opened(os.O_RDONLY) as fd:
        syscalls.syncfs(fd)


@attempts(Operation.FADVISE)
def fadvise(scene: Scene) -> None:
    with scene.opened(os.O_RDONLY) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


@attempts(Operation.LOCK)
def lock(scene: Scene) -> None:
    with scene.opened() as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


@attempts(Operation.FLOCK)
def flock(scene: Scene) -> None:
    with scene.opened() as fd:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- swap and the mount ---


@attempts(Operation.ACTIVATE)
def activate(scene: Scene) -> None:
    scene.world.activate(scene.path)
    scene.world.deactivate(scene.path)


@attempts(Operation.ACTIVATE_OTHER_NAME)
def activate_other_name(scene: Scene) -> None:
    scene.world.activate(scene.other_name)
    scene.world.deactivate(scene.other_name)


@attempts(Operation.DEACTIVATE)
def deactivate(scene: Scene) -> None:
    scene.world.deactivate(scene.path)


@attempts(Operation.DEACTIVATE)
def deactivate_by_other_name(scene: Scene) -> None:
    scene.world.deactivate(scene.other_name)


@attempts(Operation.UNMOUNT)
def unmount(scene: Scene) -> None:
    with scene.world.unmounted():
        pass


@attempts(Operation.REMOUNT_READ_ONLY)
def remount_read_only(scene: Scene) -> None:
    with scene.world.read_only():
        pass


assert set(_ATTEMPTS) == set(Operation), set(Operation) - set(_ATTEMPTS)
