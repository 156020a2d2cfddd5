"""The backend protocol on an NFSv3 server."""

import contextlib
import errno
import itertools
import os
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final, TypeVar

import trio

from fuseswap.backends.groups import first_error
from fuseswap.backends.nfs import codec
from fuseswap.backends.nfs.client import Client
from fuseswap.backends.nfs.codec import Call, Created, Limits
from fuseswap.backends.nfs.mount import Mounted, mount
from fuseswap.backends.nfs.status import NFS3ERR_EXIST, NFS3ERR_NOENT
from fuseswap.backends.nfs.unstable import UnstableWrites
from fuseswap.backends.nfs.url import NfsUrl, parse_nfs_url
from fuseswap.backends.protocol import (
    Attributes,
    Caller,
    FileType,
    Handle,
    Listing,
    SetAttributes,
    SourceError,
    Statistics,
    Written,
)
from fuseswap.swap.target import NfsTarget
from fuseswap.swap.units import PAGE_SIZE

T = TypeVar("T")

TRANSFER_BYTES_MAX: Final = 1 << 20
"""libnfs 4 takes no record beyond NFS_MAX_XFER_SIZE (1 MiB) and a little."""

_INTRODUCTION_SECONDS: Final = 10.0
_FAREWELL_SECONDS: Final = 3.0
_READDIR_BYTES: Final = 1 << 16
_EMPTY_REPLIES_MAX: Final = 8
"""Directory pages without entries and without end, before the server is taken for mad."""

_LESSER_REPLIES_MAX: Final = 4
"""WRITEs of one request answered with less than FILE_SYNC, before it fails."""

# ACCESS bits of RFC 1813 3.3.4.
_READ, _LOOKUP, _MODIFY, _EXTEND, _DELETE, _EXECUTE = 1, 2, 4, 8, 16, 32


@contextlib.asynccontextmanager
async def open_nfs(source: str, soft_seconds: float | None = None) -> AsyncIterator["NfsBackend"]:
    """The export of an nfs:// URL. Errors: SourceError.

    Each call waits for its answer, for at most `soft_seconds` if they are given.
    """
    url = parse_nfs_url(source)
    caller = Caller(os.getuid() if url.uid is None else url.uid, os.getgid() if url.gid is None else url.gid)
    mounted = await mount(url, caller)
    client = Client(mounted.addresses, mounted.connection, soft_seconds)
    with first_error():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            try:
                backend = await _introduce(url, caller, mounted, client)
                client.reconnected = lambda: nursery.start_soon(backend.settle)
                yield backend
                # Close and fsync have their promises already; this is for who did neither.
                with trio.move_on_after(_FAREWELL_SECONDS):
                    await backend.settle()
            finally:
                nursery.cancel_scope.cancel()


async def _introduce(url: NfsUrl, caller: Caller, mounted: Mounted, client: Client) -> "NfsBackend":
    try:
        with trio.fail_after(_INTRODUCTION_SECONDS):
            attributes = await client.call(codec.getattr_call(mounted.root), caller)
            limits = await client.call(codec.fsinfo_call(mounted.root), caller)
    except trio.TooSlowError:
        raise SourceError(f"{url.host}: no answer within {_INTRODUCTION_SECONDS:.0f} s after MOUNT") from None
    except OSError as error:
        raise SourceError(f"{url.host}: {url.path}: {os.strerror(error.errno or errno.EIO)}") from None
    if attributes.type is not FileType.DIRECTORY:
        raise SourceError(f"{url.host}: {url.path} is not a directory")
    return NfsBackend(url, caller, mounted, client, limits)


class NfsBackend:
    """Files of one export; made by `open_nfs`."""

    def __init__(self, url: NfsUrl, caller: Caller, mounted: Mounted, client: Client, limits: Limits) -> None:
        self.root = mounted.root
        self.read_bytes_max = _transfer_bytes(limits.read_bytes_max)
        self.write_bytes_max = _transfer_bytes(limits.write_bytes_max)
        self.client = client
        self._url = url
        self._process = caller
        self._addresses = mounted.addresses
        self._limits = limits
        self._name_bytes_max: int | None = None
        self._unstable = UnstableWrites(self._write_unstable, self._write_stable, self._commit)

    async def getattr(self, handle: Handle, caller: Caller) -> Attributes:
        return await self._call(codec.getattr_call(handle), caller)

    async def setattr(self, handle: Handle, changes: SetAttributes, caller: Caller) -> Attributes:
        if changes.size is not None:
            if changes.size > self._limits.file_bytes_max:
                raise OSError(errno.EFBIG, "beyond the server's maxfilesize")
            # Else a write repeated after a server's crash could bring back what is cut off here.
            await self._unstable.settle(handle)
        attributes = await self._call(codec.setattr_call(handle, changes), caller)
        return attributes or await self.getattr(handle, caller)

    async def lookup(self, parent: Handle, name: bytes, caller: Caller) -> tuple[Handle, Attributes]:
        found = await self._call(codec.lookup_call(parent, name), caller)
        return await self._complete(found, parent, name, caller)

    async def access(self, handle: Handle, mask: int, caller: Caller) -> bool:
        wanted = _READ if mask & os.R_OK else 0
        if mask & os.W_OK:
            wanted |= _MODIFY | _EXTEND | _DELETE
        if mask & os.X_OK:
            wanted |= _LOOKUP | _EXECUTE
        granted = await self._call(codec.access_call(handle, wanted), caller)
        # DELETE and MODIFY of a file, LOOKUP of a file and EXECUTE of a directory are never granted:
        # one bit of each group is enough (nfs_access_calc_mask of fs/nfs/dir.c).
        return (
            (not mask & os.R_OK or bool(granted & _READ))
            and (not mask & os.W_OK or bool(granted & (_MODIFY | _EXTEND)))
            and (not mask & os.X_OK or bool(granted & (_LOOKUP | _EXECUTE)))
        )

    async def readlink(self, handle: Handle, caller: Caller) -> bytes:
        return await self._call(codec.readlink_call(handle), caller)

    async def create(
        self, parent: Handle, name: bytes, mode: int, exclusive: bool, caller: Caller
    ) -> tuple[Handle, Attributes]:
        if not exclusive:
            call = codec.create_call(parent, name, SetAttributes(mode=mode), None)
            handle, attributes = await self._complete(await self._call(call, caller), parent, name, caller)
            if attributes.type is not FileType.REGULAR:
                raise OSError(errno.EEXIST, "not a regular file")
            return handle, attributes
        try:
            # A repetition with the same 8 bytes is recognized by the server: EXIST means another's file.
            made = await self._call(codec.create_call(parent, name, SetAttributes(), os.urandom(8)), caller)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return await self._make(
                codec.guarded_create_call(parent, name, SetAttributes(mode=mode)), parent, name, caller
            )
        handle, _ = await self._complete(made, parent, name, caller)
        now = time.time_ns()
        # The server keeps the 8 bytes in the times; so they are set, as the kernel's client does.
        changes = SetAttributes(mode=mode, atime_ns=now, mtime_ns=now)
        return handle, await self.setattr(handle, changes, caller)

    async def mkdir(self, parent: Handle, name: bytes, mode: int, caller: Caller) -> tuple[Handle, Attributes]:
        call = codec.mkdir_call(parent, name, SetAttributes(mode=mode))
        return await self._make(call, parent, name, caller)

    async def symlink(self, parent: Handle, name: bytes, target: bytes, caller: Caller) -> tuple[Handle, Attributes]:
        call = codec.symlink_call(parent, name, target, SetAttributes(mode=0o777))
        return await self._make(call, parent, name, caller)

    async def mknod(
        self, parent: Handle, name: bytes, type: FileType, mode: int, rdev: tuple[int, int], caller: Caller
    ) -> tuple[Handle, Attributes]:
        call = codec.mknod_call(parent, name, type, rdev, SetAttributes(mode=mode))
        return await self._make(call, parent, name, caller)

    async def link(self, handle: Handle, parent: Handle, name: bytes, caller: Caller) -> Attributes:
        attributes = await self.client.call_once(codec.link_call(handle, parent, name), self._as(caller), NFS3ERR_EXIST)
        return attributes or await self.getattr(handle, caller)

    async def unlink(self, parent: Handle, name: bytes, caller: Caller) -> None:
        await self.client.call_once(codec.remove_call(parent, name), self._as(caller), NFS3ERR_NOENT)

    async def rmdir(self, parent: Handle, name: bytes, caller: Caller) -> None:
        await self.client.call_once(codec.rmdir_call(parent, name), self._as(caller), NFS3ERR_NOENT)

    async def rename(
        self, old_parent: Handle, old_name: bytes, new_parent: Handle, new_name: bytes, caller: Caller
    ) -> None:
        call = codec.rename_call(old_parent, old_name, new_parent, new_name)
        await self.client.call_once(call, self._as(caller), NFS3ERR_NOENT)

    async def readdir(self, handle: Handle, cookie: int, verifier: bytes, caller: Caller) -> Listing:
        for _ in range(_EMPTY_REPLIES_MAX):
            call = codec.readdirplus_call(handle, cookie, verifier, _READDIR_BYTES)
            page = await self._call(call, caller)
            entries = [entry for entry in page.entries if entry.name not in (b".", b"..")]
            if entries or page.end:
                return Listing(entries, page.verifier, page.end)
            if not page.entries or page.entries[-1].cookie == cookie:
                break
            cookie, verifier = page.entries[-1].cookie, page.verifier
        raise OSError(errno.EIO, "READDIRPLUS makes no progress")

    async def read(self, handle: Handle, offset: int, length: int, caller: Caller) -> bytes:
        parts = []
        while length > 0:
            count = min(length, self.read_bytes_max)
            data, end = await self._call(codec.read_call(handle, offset, count), caller)
            if not data and not end:
                raise OSError(errno.EIO, "READ makes no progress")
            parts.append(data)
            if end:
                break
            offset += len(data)
            length -= len(data)
        return b"".join(parts) if len(parts) != 1 else parts[0]

    async def write(self, handle: Handle, offset: int, data: bytes, stable: bool, caller: Caller) -> Written:
        if offset + len(data) > self._limits.file_bytes_max:
            raise OSError(errno.EFBIG, "beyond the server's maxfilesize")
        if stable:
            return await self._write_stable(handle, offset, data, caller)
        parts = []
        for start in range(0, len(data), self.write_bytes_max):
            piece = data[start : start + self.write_bytes_max]
            parts.append(await self._unstable.write(handle, offset + start, piece, caller))
        return _together(parts)

    async def commit(self, handle: Handle, caller: Caller) -> None:
        await self._unstable.commit(handle)

    async def settle(self) -> None:
        """Commit what the server may still lose; errors wait for each file's `commit`."""
        await self._unstable.settle_all()

    async def statistics(self, handle: Handle, caller: Caller) -> Statistics:
        return await self._call(codec.fsstat_call(handle), caller)

    def swap_target(self, handle: Handle) -> NfsTarget:
        if min(self._limits.read_bytes_max, self._limits.write_bytes_max) < PAGE_SIZE:
            raise OSError(errno.EINVAL, "the server's rsize or wsize is below a page")
        return NfsTarget(
            addresses=self._addresses,
            file_handle=handle,
            uid=self._process.uid,
            gid=self._process.gid,
            machine_name=os.uname().nodename,
            read_bytes_max=self._limits.read_bytes_max,
            write_bytes_max=self._limits.write_bytes_max,
        )

    def _as(self, caller: Caller) -> Caller:
        """The ids in the URL, where given, stand for everybody's."""
        return caller if self._url.uid is None and self._url.gid is None else self._process

    async def _call(self, call: Call[T], caller: Caller) -> T:
        return await self.client.call(call, self._as(caller))

    async def _make(
        self, call: Call[Created], parent: Handle, name: bytes, caller: Caller
    ) -> tuple[Handle, Attributes]:
        made = await self.client.call_once(call, self._as(caller), NFS3ERR_EXIST)
        return await self._complete(made or Created(None, None), parent, name, caller)

    async def _complete(self, made: Created, parent: Handle, name: bytes, caller: Caller) -> tuple[Handle, Attributes]:
        if made.handle is None:
            made = await self._call(codec.lookup_call(parent, name), caller)
        assert made.handle is not None
        return made.handle, made.attributes or await self.getattr(made.handle, caller)

    async def _write_unstable(
        self, handle: Handle, offset: int, data: bytes, caller: Caller
    ) -> tuple[bytes | None, Written]:
        reply = await self._call(codec.write_call(handle, offset, data, False), caller)
        verifier = None if reply.committed == codec.FILE_SYNC else reply.verifier
        if reply.count == len(data):
            return verifier, reply.written
        rest = await self._write_stable(handle, offset + reply.count, data[reply.count :], caller)
        return verifier, _together([reply.written, rest])

    async def _write_stable(self, handle: Handle, offset: int, data: bytes, caller: Caller) -> Written:
        start = 0
        lesser = 0
        parts = []
        while start < len(data):
            piece = data[start : start + self.write_bytes_max]
            reply = await self._call(codec.write_call(handle, offset + start, piece, True), caller)
            parts.append(reply.written)
            if reply.committed != codec.FILE_SYNC:
                lesser += 1
                if lesser == _LESSER_REPLIES_MAX:
                    raise OSError(errno.EIO, "the server answers FILE_SYNC writes with less")
                continue
            start += reply.count
        return _together(parts)

    async def _commit(self, handle: Handle, caller: Caller) -> bytes:
        return await self._call(codec.commit_call(handle), caller)


def _together(parts: Sequence[Written]) -> Written:
    """Of several writes that follow each other; what came between two of them is not known."""
    if len(parts) == 1:
        return parts[0]
    for one, next_one in itertools.pairwise(parts):
        if one.after is None or one.after.version != next_one.before:
            return Written(None, parts[-1].after)
    return Written(parts[0].before, parts[-1].after) if parts else Written(None, None)


def _transfer_bytes(advertised: int) -> int:
    """rtmax or wtmax as used here; a server that advertises 0 gets what NFSv2 allowed."""
    return min(advertised or 8192, TRANSFER_BYTES_MAX)
