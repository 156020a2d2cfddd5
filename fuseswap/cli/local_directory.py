"""A directory of this machine, with those methods of the backend protocol that `create` needs."""

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from fuseswap.backends.protocol import Attributes, Caller, Entry, FileType, Handle, Listing, Statistics


@asynccontextmanager
async def open_directory(path: str) -> AsyncIterator["LocalDirectory"]:
    """The directory `path`. OSError if it cannot be opened."""
    directory = LocalDirectory(path)
    try:
        yield directory
    finally:
        directory.close()


class LocalDirectory:
    """Handles are names in the directory; every call that may wait does so in a thread."""

    root: Handle = b"."

    def __init__(self, path: str) -> None:
        self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._files: dict[Handle, int] = {}

    def close(self) -> None:
        """Let go of everything."""
        for descriptor in (*self._files.values(), self._directory):
            os.close(descriptor)

    async def lookup(self, parent: Handle, name: bytes, caller: Caller) -> tuple[Handle, Attributes]:
        """As the protocol's; a link is not followed."""
        status = await trio.to_thread.run_sync(lambda: os.stat(name, dir_fd=self._directory, follow_symlinks=False))
        return name, _attributes(status)

    async def create(
        self, parent: Handle, name: bytes, mode: int, exclusive: bool, caller: Caller
    ) -> tuple[Handle, Attributes]:
        """As the protocol's, always exclusive."""
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=self._directory)
        self._files[name] = descriptor
        return name, _attributes(os.fstat(descriptor))

    async def read(self, handle: Handle, offset: int, length: int, caller: Caller) -> bytes:
        """As the protocol's."""

        def read() -> bytes:
            descriptor = os.open(handle, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
            try:
                return os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)

        return await trio.to_thread.run_sync(read)

    async def write(self, handle: Handle, offset: int, data: bytes, stable: bool, caller: Caller) -> None:
        """As the protocol's, into a file that `create` made."""
        descriptor = self._files[handle]

        def write() -> None:
            done = 0
            while done < len(data):
                done += os.pwrite(descriptor, memoryview(data)[done:], offset + done)
            if stable:
                os.fsync(descriptor)

        await trio.to_thread.run_sync(write)

    async def commit(self, handle: Handle, caller: Caller) -> None:
        """As the protocol's."""
        await trio.to_thread.run_sync(os.fsync, self._files[handle])

    async def rename(
        self, old_parent: Handle, old_name: bytes, new_parent: Handle, new_name: bytes, caller: Caller
    ) -> None:
        """As the protocol's; the new name is durable at return."""
        os.rename(old_name, new_name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        await trio.to_thread.run_sync(os.fsync, self._directory)

    async def link(self, handle: Handle, parent: Handle, name: bytes, caller: Caller) -> Attributes:
        """As the protocol's; the new name is durable at return."""
        os.link(handle, name, src_dir_fd=self._directory, dst_dir_fd=self._directory, follow_symlinks=False)
        await trio.to_thread.run_sync(os.fsync, self._directory)
        return _attributes(os.fstat(self._files[handle]))

    async def unlink(self, parent: Handle, name: bytes, caller: Caller) -> None:
        """As the protocol's."""
        os.unlink(name, dir_fd=self._directory)

    async def readdir(self, handle: Handle, cookie: int, verifier: bytes, caller: Caller) -> Listing:
        """As the protocol's, in one piece."""
        names = os.listdir(self._directory)  # noqa: PTH208
        return Listing([Entry(os.fsencode(name), 0, 0, None, None) for name in names], b"", end=True)

    async def statistics(self, handle: Handle, caller: Caller) -> Statistics:
        """As the protocol's."""
        found = os.fstatvfs(self._directory)
        return Statistics(
            total_bytes=found.f_blocks * found.f_frsize,
            free_bytes=found.f_bfree * found.f_frsize,
            available_bytes=found.f_bavail * found.f_frsize,
            total_files=found.f_files,
            free_files=found.f_ffree,
            available_files=found.f_favail,
            name_bytes_max=found.f_namemax,
        )


def _attributes(status: os.stat_result) -> Attributes:
    return Attributes(
        type=FileType(stat.S_IFMT(status.st_mode)),
        mode=stat.S_IMODE(status.st_mode),
        nlink=status.st_nlink,
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size,
        used=status.st_blocks * 512,
        rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)),
        fileid=status.st_ino,
        atime_ns=status.st_atime_ns,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
    )
