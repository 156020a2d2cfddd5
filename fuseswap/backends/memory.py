"""Files in the memory of this process: tests, teaching, and a model of what a backend must do."""

import errno
import itertools
import os
import time
from collections.abc import Iterator
from typing import Final, NoReturn

from attrs import define, evolve, field, frozen

from fuseswap.backends.permission import may_remove, permits
from fuseswap.backends.protocol import (
    Attributes,
    Caller,
    Entry,
    FileType,
    Handle,
    Listing,
    SetAttributes,
    Statistics,
    Written,
)

_CHUNK_BYTES: Final = 1 << 16
"""Unit of allocation."""

_NAME_BYTES_MAX: Final = 255
_FILE_BYTES_MAX: Final = (1 << 63) - 1
_FILES_MAX: Final = 1 << 20
_LISTING_ENTRIES_MAX: Final = 512
_ROOT_MODE: Final = 0o755


@frozen
class _Name:
    cookie: int
    handle: Handle


@define(eq=False)
class _Inode:
    attributes: Attributes
    chunks: dict[int, bytearray] = field(factory=dict)
    names: dict[bytes, _Name] = field(factory=dict)
    """Of a directory, in the order of cookies."""
    target: bytes = b""
    parent: Handle = b""
    """Of a directory."""


class MemoryBackend:
    """A tree that holds at most `size_bytes` of data."""

    def __init__(self, size_bytes: int) -> None:
        self.root = _handle(1)
        self.read_bytes_max = self.write_bytes_max = 1 << 20
        self._size_bytes = size_bytes
        self._used_bytes = 0
        self._numbers = itertools.count(2)
        self._cookies = itertools.count(1)
        owner = Caller(os.getuid(), os.getgid())
        root = _new_attributes(1, FileType.DIRECTORY, _ROOT_MODE, owner, (0, 0))
        self._inodes = {self.root: _Inode(root, parent=self.root)}

    async def getattr(self, handle: Handle, caller: Caller) -> Attributes:
        return self._inode(handle).attributes

    async def setattr(self, handle: Handle, changes: SetAttributes, caller: Caller) -> Attributes:
        inode = self._inode(handle)
        self._check_setattr(inode.attributes, changes, caller)
        if changes.size is not None:
            self._truncate(inode, changes.size)
        values = {name: getattr(changes, name) for name in ("mode", "uid", "gid", "atime_ns", "mtime_ns")}
        given = {name: value for name, value in values.items() if value is not None}
        now = time.time_ns()
        if changes.touch:
            given |= {"atime_ns": now, "mtime_ns": now}
        inode.attributes = evolve(inode.attributes, ctime_ns=now, **given)
        return inode.attributes

    async def lookup(self, parent: Handle, name: bytes, caller: Caller) -> tuple[Handle, Attributes]:
        entry = self._directory(parent, caller, os.X_OK).names.get(_checked(name))
        if entry is None:
            _fail(errno.ENOENT)
        return entry.handle, self._inode(entry.handle).attributes

    async def access(self, handle: Handle, mask: int, caller: Caller) -> bool:
        return permits(self._inode(handle).attributes, caller, mask)

    async def readlink(self, handle: Handle, caller: Caller) -> bytes:
        inode = self._inode(handle)
        if inode.attributes.type is not FileType.SYMLINK:
            _fail(errno.EINVAL)
        return inode.target

    async def create(
        self, parent: Handle, name: bytes, mode: int, exclusive: bool, caller: Caller
    ) -> tuple[Handle, Attributes]:
        existing = self._directory(parent, caller, os.X_OK).names.get(_checked(name))
        if existing is not None and not exclusive:
            attributes = self._inode(existing.handle).attributes
            if attributes.type is not FileType.REGULAR:
                _fail(errno.EEXIST)
            return existing.handle, attributes
        return self._make(parent, name, FileType.REGULAR, mode, caller)

    async def mkdir(self, parent: Handle, name: bytes, mode: int, caller: Caller) -> tuple[Handle, Attributes]:
        return self._make(parent, name, FileType.DIRECTORY, mode, caller)

    async def symlink(self, parent: Handle, name: bytes, target: bytes, caller: Caller) -> tuple[Handle, Attributes]:
        handle, _ = self._make(parent, name, FileType.SYMLINK, 0o777, caller)
        inode = self._inodes[handle]
        inode.target = target
        inode.attributes = evolve(inode.attributes, size=len(target))
        return handle, inode.attributes

    async def mknod(
        self, parent: Handle, name: bytes, type: FileType, mode: int, rdev: tuple[int, int], caller: Caller
    ) -> tuple[Handle, Attributes]:
        if type in (FileType.REGULAR, FileType.DIRECTORY, FileType.SYMLINK):
            _fail(errno.EINVAL)
        return self._make(parent, name, type, mode, caller, rdev)

    async def link(self, handle: Handle, parent: Handle, name: bytes, caller: Caller) -> Attributes:
        inode = self._inode(handle)
        if inode.attributes.type is FileType.DIRECTORY:
            _fail(errno.EPERM)
        directory = self._directory(parent, caller, os.X_OK)
        if _checked(name) in directory.names:
            _fail(errno.EEXIST)
        if not permits(directory.attributes, caller, os.W_OK):
            _fail(errno.EACCES)
        self._enter(directory, name, handle)
        inode.attributes = evolve(inode.attributes, nlink=inode.attributes.nlink + 1, ctime_ns=time.time_ns())
        return inode.attributes

    async def unlink(self, parent: Handle, name: bytes, caller: Caller) -> None:
        directory, victim = self._victim(parent, name, caller)
        if self._inodes[victim].attributes.type is FileType.DIRECTORY:
            _fail(errno.EISDIR)
        self._leave(directory, name)
        self._drop_link(victim)

    async def rmdir(self, parent: Handle, name: bytes, caller: Caller) -> None:
        directory, victim = self._victim(parent, name, caller)
        self._check_empty_directory(victim)
        self._leave(directory, name)
        self._drop_directory(directory, victim)

    async def rename(
        self, old_parent: Handle, old_name: bytes, new_parent: Handle, new_name: bytes, caller: Caller
    ) -> None:
        target = self._directory(new_parent, caller, os.X_OK)
        existing = target.names.get(_checked(new_name))
        if existing is not None and existing == self._directory(old_parent, caller, os.X_OK).names.get(old_name):
            return
        source, moved = self._victim(old_parent, old_name, caller)
        if not permits(target.attributes, caller, os.W_OK):
            _fail(errno.EACCES)
        is_directory = self._inodes[moved].attributes.type is FileType.DIRECTORY
        if is_directory and moved in self._ancestors(new_parent):
            _fail(errno.EINVAL)
        if existing is not None:
            if existing.handle == moved:
                return  # two links of one file
            self._victim(new_parent, new_name, caller)
            if is_directory:
                self._check_empty_directory(existing.handle)
            elif self._inodes[existing.handle].attributes.type is FileType.DIRECTORY:
                _fail(errno.EISDIR)
            self._leave(target, new_name)
            if is_directory:
                self._drop_directory(target, existing.handle)
            else:
                self._drop_link(existing.handle)
        self._leave(source, old_name)
        self._enter(target, new_name, moved)
        if is_directory:
            self._inodes[moved].parent = new_parent
            _add_links(source, -1)
            _add_links(target, 1)
        inode = self._inodes[moved]
        inode.attributes = evolve(inode.attributes, ctime_ns=time.time_ns())

    async def readdir(self, handle: Handle, cookie: int, verifier: bytes, caller: Caller) -> Listing:
        directory = self._directory(handle, caller, os.R_OK)
        later = ((name, entry) for name, entry in directory.names.items() if entry.cookie > cookie)
        entries = [self._entry(name, entry) for name, entry in itertools.islice(later, _LISTING_ENTRIES_MAX)]
        return Listing(entries, bytes(8), len(entries) < _LISTING_ENTRIES_MAX)

    async def read(self, handle: Handle, offset: int, length: int, caller: Caller) -> bytes:
        inode = self._file(handle)
        length = min(length, max(0, inode.attributes.size - offset))
        return b"".join(
            bytes(inode.chunks[index][start:end]) if index in inode.chunks else bytes(end - start)
            for index, start, end in _pieces(offset, length)
        )

    async def write(self, handle: Handle, offset: int, data: bytes, stable: bool, caller: Caller) -> Written:
        inode = self._file(handle)
        before = inode.attributes.version
        if offset + len(data) > _FILE_BYTES_MAX:
            _fail(errno.EFBIG)
        position = 0
        for index, start, end in _pieces(offset, len(data)):
            chunk = inode.chunks.get(index)
            if chunk is None:
                chunk = inode.chunks[index] = self._new_chunk()
            chunk[start:end] = data[position : position + end - start]
            position += end - start
        self._touch(inode, max(inode.attributes.size, offset + len(data)))
        return Written(before, inode.attributes)

    async def commit(self, handle: Handle, caller: Caller) -> None:
        self._inode(handle)

    async def statistics(self, handle: Handle, caller: Caller) -> Statistics:
        free = self._size_bytes - self._used_bytes
        free_files = _FILES_MAX - len(self._inodes)
        return Statistics(self._size_bytes, free, free, _FILES_MAX, free_files, free_files, _NAME_BYTES_MAX)

    def swap_target(self, handle: Handle) -> NoReturn:
        _fail(errno.EINVAL)

    def _inode(self, handle: Handle) -> _Inode:
        inode = self._inodes.get(handle)
        if inode is None:
            _fail(errno.ESTALE)
        return inode

    def _file(self, handle: Handle) -> _Inode:
        inode = self._inode(handle)
        if inode.attributes.type is not FileType.REGULAR:
            _fail(errno.EISDIR if inode.attributes.type is FileType.DIRECTORY else errno.EINVAL)
        return inode

    def _directory(self, handle: Handle, caller: Caller, mask: int) -> _Inode:
        inode = self._inode(handle)
        if inode.attributes.type is not FileType.DIRECTORY:
            _fail(errno.ENOTDIR)
        if not permits(inode.attributes, caller, mask):
            _fail(errno.EACCES)
        return inode

    def _victim(self, parent: Handle, name: bytes, caller: Caller) -> tuple[_Inode, Handle]:
        directory = self._directory(parent, caller, os.X_OK)
        entry = directory.names.get(_checked(name))
        if entry is None:
            _fail(errno.ENOENT)
        if not permits(directory.attributes, caller, os.W_OK):
            _fail(errno.EACCES)
        if not may_remove(directory.attributes, self._inodes[entry.handle].attributes, caller):
            _fail(errno.EPERM)
        return directory, entry.handle

    def _make(
        self,
        parent: Handle,
        name: bytes,
        type: FileType,
        mode: int,
        caller: Caller,
        rdev: tuple[int, int] = (0, 0),
    ) -> tuple[Handle, Attributes]:
        directory = self._directory(parent, caller, os.X_OK)
        if _checked(name) in directory.names:
            _fail(errno.EEXIST)
        if not permits(directory.attributes, caller, os.W_OK):
            _fail(errno.EACCES)
        if len(self._inodes) >= _FILES_MAX:
            _fail(errno.ENOSPC)
        number = next(self._numbers)
        handle = _handle(number)
        attributes = _new_attributes(number, type, mode, caller, rdev)
        if directory.attributes.mode & 0o2000:
            inherited = mode | (0o2000 if type is FileType.DIRECTORY else 0)
            attributes = evolve(attributes, gid=directory.attributes.gid, mode=inherited)
        self._inodes[handle] = _Inode(attributes, parent=parent)
        self._enter(directory, name, handle)
        if type is FileType.DIRECTORY:
            _add_links(directory, 1)
        return handle, attributes

    def _enter(self, directory: _Inode, name: bytes, handle: Handle) -> None:
        directory.names[name] = _Name(next(self._cookies), handle)
        self._touch(directory, directory.attributes.size)

    def _leave(self, directory: _Inode, name: bytes) -> None:
        del directory.names[name]
        self._touch(directory, directory.attributes.size)

    def _drop_link(self, handle: Handle) -> None:
        inode = self._inodes[handle]
        if inode.attributes.nlink == 1:
            self._used_bytes -= len(inode.chunks) * _CHUNK_BYTES
            del self._inodes[handle]
        else:
            inode.attributes = evolve(inode.attributes, nlink=inode.attributes.nlink - 1, ctime_ns=time.time_ns())

    def _drop_directory(self, parent: _Inode, handle: Handle) -> None:
        del self._inodes[handle]
        _add_links(parent, -1)

    def _check_empty_directory(self, handle: Handle) -> None:
        inode = self._inodes[handle]
        if inode.attributes.type is not FileType.DIRECTORY:
            _fail(errno.ENOTDIR)
        if inode.names:
            _fail(errno.ENOTEMPTY)

    def _check_setattr(self, attributes: Attributes, changes: SetAttributes, caller: Caller) -> None:
        owner = caller.uid in (0, attributes.uid)
        if changes.mode is not None and not owner:
            _fail(errno.EPERM)
        if changes.uid is not None and caller.uid != 0 and changes.uid != attributes.uid:
            _fail(errno.EPERM)
        if changes.gid is not None and caller.uid != 0:
            member = changes.gid in (attributes.gid, caller.gid, *caller.groups)
            if not owner or not member:
                _fail(errno.EPERM)
        if (changes.atime_ns is not None or changes.mtime_ns is not None) and not owner:
            _fail(errno.EPERM)
        if changes.touch and not owner and not permits(attributes, caller, os.W_OK):
            _fail(errno.EACCES)
        if changes.size is not None:
            if attributes.type is FileType.DIRECTORY:
                _fail(errno.EISDIR)
            if attributes.type is not FileType.REGULAR:
                _fail(errno.EINVAL)
            if not owner and not permits(attributes, caller, os.W_OK):
                _fail(errno.EACCES)

    def _truncate(self, inode: _Inode, size: int) -> None:
        if size > _FILE_BYTES_MAX:
            _fail(errno.EFBIG)
        keep, rest = divmod(size, _CHUNK_BYTES)
        for index in [index for index in inode.chunks if index >= keep + (rest > 0)]:
            del inode.chunks[index]
            self._used_bytes -= _CHUNK_BYTES
        if rest and keep in inode.chunks:
            inode.chunks[keep][rest:] = bytes(_CHUNK_BYTES - rest)
        self._touch(inode, size)

    def _new_chunk(self) -> bytearray:
        if self._used_bytes + _CHUNK_BYTES > self._size_bytes:
            _fail(errno.ENOSPC)
        self._used_bytes += _CHUNK_BYTES
        return bytearray(_CHUNK_BYTES)

    def _touch(self, inode: _Inode, size: int) -> None:
        now = time.time_ns()
        used = len(inode.chunks) * _CHUNK_BYTES
        inode.attributes = evolve(inode.attributes, size=size, used=used, mtime_ns=now, ctime_ns=now)

    def _ancestors(self, handle: Handle) -> Iterator[Handle]:
        yield handle
        while handle != self.root:
            handle = self._inodes[handle].parent
            yield handle

    def _entry(self, name: bytes, entry: _Name) -> Entry:
        attributes = self._inodes[entry.handle].attributes
        return Entry(name, attributes.fileid, entry.cookie, entry.handle, attributes)


def _add_links(directory: _Inode, count: int) -> None:
    directory.attributes = evolve(directory.attributes, nlink=directory.attributes.nlink + count)


def _checked(name: bytes) -> bytes:
    if len(name) > _NAME_BYTES_MAX:
        _fail(errno.ENAMETOOLONG)
    return name


def _handle(number: int) -> Handle:
    return number.to_bytes(8, "big")


def _new_attributes(number: int, type: FileType, mode: int, owner: Caller, rdev: tuple[int, int]) -> Attributes:
    now = time.time_ns()
    nlink = 2 if type is FileType.DIRECTORY else 1
    return Attributes(type, mode, nlink, owner.uid, owner.gid, 0, 0, rdev, number, now, now, now)


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(chunk index, start, end) of each chunk that the range touches."""
    end = offset + length
    while offset < end:
        index, start = divmod(offset, _CHUNK_BYTES)
        stop = min(_CHUNK_BYTES, start + end - offset)
        yield index, start, stop
        offset += stop - start


def _fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))
