"""Files of a directory of this machine, without a way out of it.

Handles are the kernel's own file handles (name_to_handle_at(2)), so like NFS's they name a file whatever
becomes of its path, and nothing is kept open for it. Every step from a directory to a name is one openat(2)
with O_PATH | O_NOFOLLOW of a single component: no symbolic link is ever followed, and a mount below the
directory is not entered. Names are changed as the caller (file system ids and groups of the worker thread);
contents are moved as this process, since who may open a file is decided before.
"""

import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit

import trio

from fuseswap.backends import handles
from fuseswap.backends.permission import permits
from fuseswap.backends.protocol import (
    Attributes,
    Caller,
    Entry,
    FileType,
    Handle,
    Listing,
    SetAttributes,
    SourceError,
    Statistics,
    Written,
)
from fuseswap.swap.units import SECTOR_SIZE

T = TypeVar("T")

_PATH: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_TRANSFER_BYTES_MAX: Final = 1 << 20

ROOT: Final = Caller(0, 0)


@contextlib.asynccontextmanager
async def open_local(source: str) -> AsyncIterator["LocalBackend"]:
    """The directory of a file:///DIR source. Errors: SourceError."""
    path = _path_of(source)
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None
    # Modes come from the kernel with the caller's umask applied already.
    umask = os.umask(0)
    try:
        yield LocalBackend(root, _checked_handle(path, root))
    finally:
        os.umask(umask)
        os.close(root)


class LocalBackend:
    """Made by `open_local`."""

    def __init__(self, root_fd: int, root: Handle) -> None:
        self.root = root
        self.read_bytes_max = self.write_bytes_max = _TRANSFER_BYTES_MAX
        self._root_fd = root_fd
        self._device = os.fstat(root_fd).st_dev

    async def getattr(self, handle: Handle, caller: Caller) -> Attributes:
        return await self._with_file(handle, _attributes_of)

    async def setattr(self, handle: Handle, changes: SetAttributes, caller: Caller) -> Attributes:
        def change(fd: int) -> Attributes:
            path = Path(f"/proc/self/fd/{fd}")
            if changes.size is not None:
                # Who opened it may truncate it, whatever its mode is now; by name, the kernel has decided.
                owner = caller.uid == os.fstat(fd).st_uid
                with handles.acting_as(ROOT if owner else caller):
                    _truncate(path, changes.size)
            with handles.acting_as(caller):
                _apply(path, changes)
            return _attributes_of(fd)

        return await self._with_file(handle, change)

    async def lookup(self, parent: Handle, name: bytes, caller: Caller) -> tuple[Handle, Attributes]:
        return await self._with_directory(parent, lambda fd: self._enter(fd, name, caller))

    async def access(self, handle: Handle, mask: int, caller: Caller) -> bool:
        return permits(await self.getattr(handle, caller), caller, mask)

    async def readlink(self, handle: Handle, caller: Caller) -> bytes:
        def read(fd: int) -> bytes:
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                _fail(errno.EINVAL)
            return os.readlink(b"", dir_fd=fd)

        return await self._with_file(handle, read)

    async def create(
        self, parent: Handle, name: bytes, mode: int, exclusive: bool, caller: Caller
    ) -> tuple[Handle, Attributes]:
        flags = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_RDONLY

        def create(directory: int) -> tuple[Handle, Attributes]:
            with handles.acting_as(caller):
                try:
                    os.close(os.open(name, flags | os.O_EXCL, mode, dir_fd=directory))
                except FileExistsError:
                    if exclusive:
                        raise
            found, attributes = self._enter(directory, name, caller)
            if attributes.type is not FileType.REGULAR:
                _fail(errno.EEXIST)
            return found, attributes

        return await self._with_directory(parent, create)

    async def mkdir(self, parent: Handle, name: bytes, mode: int, caller: Caller) -> tuple[Handle, Attributes]:
        return await self._make(parent, name, caller, lambda fd: os.mkdir(name, mode, dir_fd=fd))

    async def symlink(self, parent: Handle, name: bytes, target: bytes, caller: Caller) -> tuple[Handle, Attributes]:
        return await self._make(parent, name, caller, lambda fd: os.symlink(target, name, dir_fd=fd))

    async def mknod(
        self, parent: Handle, name: bytes, type: FileType, mode: int, rdev: tuple[int, int], caller: Caller
    ) -> tuple[Handle, Attributes]:
        device = os.makedev(*rdev)
        return await self._make(parent, name, caller, lambda fd: os.mknod(name, type.value | mode, device, dir_fd=fd))

    async def link(self, handle: Handle, parent: Handle, name: bytes, caller: Caller) -> Attributes:
        def link(fd: int) -> Attributes:
            with self._opened(parent) as directory, handles.acting_as(caller):
                os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=directory, follow_symlinks=True)
            return _attributes_of(fd)

        return await self._with_file(handle, link)

    async def unlink(self, parent: Handle, name: bytes, caller: Caller) -> None:
        await self._with_directory(parent, _as(caller, lambda fd: os.unlink(name, dir_fd=fd)))

    async def rmdir(self, parent: Handle, name: bytes, caller: Caller) -> None:
        await self._with_directory(parent, _as(caller, lambda fd: os.rmdir(name, dir_fd=fd)))

    async def rename(
        self, old_parent: Handle, old_name: bytes, new_parent: Handle, new_name: bytes, caller: Caller
    ) -> None:
        def rename(old: int) -> None:
            with self._opened(new_parent) as new, handles.acting_as(caller):
                os.rename(old_name, new_name, src_dir_fd=old, dst_dir_fd=new)

        await self._with_directory(old_parent, rename)

    async def readdir(self, handle: Handle, cookie: int, verifier: bytes, caller: Caller) -> Listing:
        def read(directory: int) -> Listing:
            with handles.acting_as(caller):
                fd = os.open(f"/proc/self/fd/{directory}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.lseek(fd, cookie, os.SEEK_SET)
                while raw := handles.read_directory(fd):
                    found = (self._entry(directory, *item) for item in raw if item[2] not in (b".", b".."))
                    if entries := [entry for entry in found if entry is not None]:
                        return Listing(entries, bytes(8), False)
            finally:
                os.close(fd)
            return Listing((), bytes(8), True)

        return await self._with_directory(handle, read)

    async def read(self, handle: Handle, offset: int, length: int, caller: Caller) -> bytes:
        def read(fd: int) -> bytes:
            with _reopened(fd, os.O_RDONLY) as file:
                return b"".join(_read_pieces(file, offset, length))

        return await self._with_file(handle, read)

    async def write(self, handle: Handle, offset: int, data: bytes, stable: bool, caller: Caller) -> Written:
        def write(fd: int) -> Written:
            with _reopened(fd, os.O_WRONLY) as file:
                view = memoryview(data)
                position = offset
                while view:
                    written = os.pwritev(file, [view], position, os.RWF_DSYNC if stable else 0)
                    view, position = view[written:], position + written
            # What it found cannot be told: whoever writes the file beside this mount may do so in between.
            return Written(None, _attributes_of(fd))

        return await self._with_file(handle, write)

    async def commit(self, handle: Handle, caller: Caller) -> None:
        def commit(fd: int) -> None:
            with _reopened(fd, os.O_RDONLY) as file:
                os.fsync(file)

        await self._with_file(handle, commit)

    async def statistics(self, handle: Handle, caller: Caller) -> Statistics:
        numbers = await trio.to_thread.run_sync(os.fstatvfs, self._root_fd)
        unit = numbers.f_frsize
        return Statistics(
            numbers.f_blocks * unit,
            numbers.f_bfree * unit,
            numbers.f_bavail * unit,
            numbers.f_files,
            numbers.f_ffree,
            numbers.f_favail,
            numbers.f_namemax,
        )

    def swap_target(self, handle: Handle) -> NoReturn:
        _fail(errno.EINVAL)

    async def _with_file(self, handle: Handle, work: Callable[[int], T]) -> T:
        def run() -> T:
            with self._opened(handle) as fd:
                return work(fd)

        return await trio.to_thread.run_sync(run)

    async def _with_directory(self, handle: Handle, work: Callable[[int], T]) -> T:
        def checked(fd: int) -> T:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                _fail(errno.ENOTDIR)
            return work(fd)

        return await self._with_file(handle, checked)

    async def _make(
        self, parent: Handle, name: bytes, caller: Caller, make: Callable[[int], None]
    ) -> tuple[Handle, Attributes]:
        def run(directory: int) -> tuple[Handle, Attributes]:
            with handles.acting_as(caller):
                make(directory)
            return self._enter(directory, name, caller)

        return await self._with_directory(parent, run)

    @contextlib.contextmanager
    def _opened(self, handle: Handle) -> Iterator[int]:
        fd = handles.open_by_handle(self._root_fd, handle, _PATH)
        try:
            yield fd
        finally:
            os.close(fd)

    def _enter(self, directory: int, name: bytes, caller: Caller) -> tuple[Handle, Attributes]:
        with handles.acting_as(caller):
            fd = os.open(name, _PATH, dir_fd=directory)
        try:
            if os.fstat(fd).st_dev != self._device:
                _fail(errno.EXDEV)
            return handles.handle_of(fd), _attributes_of(fd)
        finally:
            os.close(fd)

    def _entry(self, directory: int, fileid: int, cookie: int, name: bytes) -> Entry | None:
        try:
            handle, attributes = self._enter(directory, name, ROOT)
        except OSError as error:
            # Removed meanwhile, or a mount, which is not part of this tree.
            if error.errno in (errno.ENOENT, errno.EXDEV):
                return None
            raise
        return Entry(name, fileid, cookie, handle, attributes)


def _as(caller: Caller, work: Callable[[int], T]) -> Callable[[int], T]:
    def run(fd: int) -> T:
        with handles.acting_as(caller):
            return work(fd)

    return run


@contextlib.contextmanager
def _reopened(fd: int, flags: int) -> Iterator[int]:
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        _fail(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL)
    file = os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


def _read_pieces(file: int, offset: int, length: int) -> Iterator[bytes]:
    while length > 0 and (piece := os.pread(file, length, offset)):
        yield piece
        offset += len(piece)
        length -= len(piece)


def _truncate(path: Path, size: int) -> None:
    if not stat.S_ISREG(path.stat().st_mode):
        _fail(errno.EINVAL)
    os.truncate(path, size)


def _apply(path: Path, changes: SetAttributes) -> None:
    if changes.uid is not None or changes.gid is not None:
        os.chown(path, -1 if changes.uid is None else changes.uid, -1 if changes.gid is None else changes.gid)
    if changes.mode is not None:
        path.chmod(changes.mode)
    if changes.touch:
        os.utime(path)
    if changes.atime_ns is not None or changes.mtime_ns is not None:
        now = path.stat()
        atime = now.st_atime_ns if changes.atime_ns is None else changes.atime_ns
        mtime = now.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns
        os.utime(path, ns=(atime, mtime))


def _attributes_of(fd: int) -> Attributes:
    found = os.fstat(fd)
    return Attributes(
        FileType(stat.S_IFMT(found.st_mode)),
        stat.S_IMODE(found.st_mode),
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_size,
        found.st_blocks * SECTOR_SIZE,
        (os.major(found.st_rdev), os.minor(found.st_rdev)),
        found.st_ino,
        found.st_atime_ns,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )


def _path_of(source: str) -> str:
    parts = urlsplit(source)
    if parts.scheme != "file" or parts.netloc or parts.query or parts.fragment or not parts.path.startswith("/"):
        raise SourceError(f"{source}: expected file:///DIRECTORY", usage=True)
    return unquote(parts.path, errors="surrogateescape")


def _checked_handle(path: str, root: int) -> Handle:
    try:
        handle = handles.handle_of(root)
        os.close(handles.open_by_handle(root, handle, _PATH))
    except OSError as error:
        if error.errno == errno.EPERM:
            raise SourceError(f"{path}: opening files by handle needs root") from None
        raise SourceError(f"{path}: its file system has no file handles; use another one") from None
    return handle


def _fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))
