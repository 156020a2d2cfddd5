"""`create`: a swap file without holes, written in full, or nothing.

The file is written under a hidden name and linked to its own when it is whole, so that there it is either complete
or not at all, and never in the place of another. Its content is random: a server that compresses or drops zeros must
allocate it all.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Protocol

import trio

from fuseswap.backends.protocol import Attributes, Caller, FileType, Handle, Listing, Statistics
from fuseswap.cli.backend_run import with_opened, with_source
from fuseswap.cli.failure import Exit, Failure
from fuseswap.cli.local_directory import open_directory
from fuseswap.cli.output import progress, say, warn
from fuseswap.cli.size import format_size
from fuseswap.host.swap import make_header
from fuseswap.swap.errors import ContractError
from fuseswap.swap.header import parse_header
from fuseswap.swap.units import PAGE_SIZE

DEFAULT_BYTES = 4 << 30

_BLOCK_BYTES = 1 << 20
_BLOCKS_IN_FLIGHT = 8
_CLEANUP_SECONDS = 10.0
_STEM_BYTES_MAX = 200

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)

_GONE = (errno.ENOENT, errno.ESTALE)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Place(Protocol):
    """What of the backend protocol it takes to make a file in a directory (`root`)."""

    root: Handle

    async def lookup(self, parent: Handle, name: bytes, caller: Caller) -> tuple[Handle, Attributes]: ...

    async def create(
        self, parent: Handle, name: bytes, mode: int, exclusive: bool, caller: Caller
    ) -> tuple[Handle, Attributes]: ...

    async def link(self, handle: Handle, parent: Handle, name: bytes, caller: Caller) -> Attributes: ...

    async def unlink(self, parent: Handle, name: bytes, caller: Caller) -> None: ...

    async def rename(
        self, old_parent: Handle, old_name: bytes, new_parent: Handle, new_name: bytes, caller: Caller
    ) -> None: ...

    async def readdir(self, handle: Handle, cookie: int, verifier: bytes, caller: Caller) -> Listing: ...

    async def read(self, handle: Handle, offset: int, length: int, caller: Caller) -> bytes: ...

    async def write(self, handle: Handle, offset: int, data: bytes, stable: bool, caller: Caller) -> object: ...

    async def commit(self, handle: Handle, caller: Caller) -> None: ...

    async def statistics(self, handle: Handle, caller: Caller) -> Statistics: ...


def create(directory: str, name: str, size_bytes: int | None, shown: str) -> bool:
    """Make the file `name` in the source `directory`; True if it was made, False if it is there already.

    `size_bytes` None accepts a swap file of any size, and makes one of DEFAULT_BYTES. `shown` is what the user
    calls the file. Failure, SourceError; whatever happens, nothing half-made remains.
    """
    return with_source(directory, lambda backend: _create(backend, name, size_bytes, shown))


def create_local(directory: str, name: str, size_bytes: int | None, shown: str) -> bool:
    """The same in a directory of this machine."""
    try:
        return with_opened(lambda: open_directory(directory), lambda place: _create(place, name, size_bytes, shown))
    except OSError as error:
        raise Failure(f"{directory}: {error.strerror}") from None


async def _create(place: Place, name: str, size_bytes: int | None, shown: str) -> bool:
    try:
        return await _Creation(place, os.fsencode(name), shown).run(size_bytes)
    except OSError as error:
        raise _explain(error, shown) from None


class _Creation:
    def __init__(self, place: Place, name: bytes, shown: str) -> None:
        self._place = place
        self._name = name
        # A hidden name has no room for all of a long one, whose beginning others share.
        self._stem = name if len(name) <= _STEM_BYTES_MAX else hashlib.sha256(name).hexdigest().encode()
        self._shown = shown
        self._caller = Caller(os.getuid(), os.getgid())

    async def run(self, size_bytes: int | None) -> bool:
        if await self._is_there(size_bytes):
            await self._remove_others()
            return False
        size = DEFAULT_BYTES if size_bytes is None else size_bytes
        await self._require_room(size)
        header = make_header(size)
        hidden = b".%b.%b.part" % (self._stem, secrets.token_hex(4).encode())
        root = self._place.root
        try:
            handle, made = await self._place.create(root, hidden, 0o600, True, self._caller)
        except trio.Cancelled:
            # The server may have made it all the same.
            await self._remove(hidden)
            raise
        try:
            say(f"{self._shown}: writing {format_size(size)}")
            with progress(f"{os.fsdecode(self._name)}", size) as show:
                await self._fill(handle, size, show)
            await self._place.commit(handle, self._caller)
            await self._place.write(handle, 0, header, True, self._caller)
            if not await self._linked(handle, made.fileid):
                await self._require_nothing(size)
                await self._place.rename(root, hidden, root, self._name, self._caller)
        except BaseException as error:
            await self._remove(hidden)
            if isinstance(error, OSError) and error.errno in _GONE:
                await self._require_nothing(None)
            raise
        await self._remove(hidden)
        await self._remove_others()
        return True

    async def _linked(self, handle: Handle, fileid: int) -> bool:
        """Give the file its name, if nothing has it; False if there are no hard links. Failure."""
        try:
            await self._place.link(handle, self._place.root, self._name, self._caller)
        except OSError as error:
            if error.errno == errno.EEXIST:
                await self._require_nothing(None)
            if error.errno in _NO_LINKS:
                return False
            raise
        # Of a call that was sent again, EEXIST passes for its own success.
        found = await self._lookup(self._name)
        if found is None or found[1].fileid != fileid:
            await self._require_nothing(None)
            raise Failure(f"{self._shown}: somebody removed it meanwhile")
        return True

    async def _require_nothing(self, size_bytes: int | None) -> None:
        if await self._is_there(size_bytes):
            raise Failure(f"{self._shown}: another create made it meanwhile")

    async def _is_there(self, size_bytes: int | None) -> bool:
        """Whether the name is a swap file of this size. Failure if it is anything else."""
        found = await self._lookup(self._name)
        if found is None:
            return False
        handle, attributes = found
        if attributes.type is not FileType.REGULAR:
            raise Failure(f"{self._shown} exists and is not a regular file: choose another name", Exit.REFUSED)
        page = await self._place.read(handle, 0, PAGE_SIZE, self._caller)
        try:
            parse_header(page, attributes.size, regular=True)
        except ContractError as error:
            raise Failure(
                f"{self._shown} exists and is not a swap file ({error.text}): it is left as it is; choose another"
                " name, or remove it",
                Exit.REFUSED,
            ) from None
        if size_bytes is not None and attributes.size != size_bytes:
            raise Failure(
                f"{self._shown} exists with {attributes.size} bytes, not {size_bytes}: use --size"
                f" {attributes.size}, or remove it"
            )
        return True

    async def _lookup(self, name: bytes) -> tuple[Handle, Attributes] | None:
        try:
            return await self._place.lookup(self._place.root, name, self._caller)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    async def _require_room(self, size: int) -> None:
        statistics = await self._place.statistics(self._place.root, self._caller)
        if statistics.available_bytes < size:
            # Whether a `create` is at work on them only the user knows.
            hidden = [os.fsdecode(name) for name in await self._hidden()]
            remove = f"remove {', '.join(hidden)} if no other create is at work" if hidden else "make room"
            raise Failure(
                f"{self._shown}: no room: {format_size(statistics.available_bytes)} are free there,"
                f" {format_size(size)} are needed: {remove} or choose a smaller --size",
                Exit.SERVER,
            )

    async def _fill(self, handle: Handle, size: int, show: Callable[[int], None]) -> None:
        """Random bytes behind the header page; all writers stop at the first error, which is raised."""
        offsets = iter(range(PAGE_SIZE, size, _BLOCK_BYTES))
        errors: list[OSError] = []
        async with trio.open_nursery() as nursery:

            async def write(offsets: Iterator[int]) -> None:
                for offset in offsets:
                    data = os.urandom(min(_BLOCK_BYTES, size - offset))
                    try:
                        await self._place.write(handle, offset, data, False, self._caller)
                    except OSError as error:
                        errors.append(error)
                        nursery.cancel_scope.cancel()
                        return
                    show(len(data))

            for _ in range(_BLOCKS_IN_FLIGHT):
                nursery.start_soon(write, offsets)
        if errors:
            raise errors[0]

    async def _remove(self, hidden: bytes) -> None:
        """Remove the half-made file, also when the work was cancelled."""
        with trio.CancelScope(shield=True), trio.move_on_after(_CLEANUP_SECONDS) as limit:
            try:
                await self._place.unlink(self._place.root, hidden, self._caller)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    why = os.strerror(error.errno or errno.EIO)
                    warn(f"{self._shown}: {os.fsdecode(hidden)} stays beside it ({why}): remove it")
        if limit.cancelled_caught:
            warn(f"{self._shown}: the server does not answer: remove {os.fsdecode(hidden)} beside it later")

    async def _remove_others(self) -> None:
        """Remove every hidden file of the name, now that the name has its file.

        Not before: in a COMMIT, or while its server is away, the file of a `create` at work grows no more than what
        a killed one left.
        """
        for name in await self._hidden():
            await self._remove(name)

    async def _hidden(self) -> list[bytes]:
        """The hidden files of the name; those that were seen where the directory cannot be read."""
        pattern = re.compile(rb"\.%b\.[0-9a-f]{8}\.part" % re.escape(self._stem))
        found: list[bytes] = []
        cookie, verifier, end = 0, b"", False
        with contextlib.suppress(OSError):
            while not end:
                listing = await self._place.readdir(self._place.root, cookie, verifier, self._caller)
                found += [entry.name for entry in listing.entries if pattern.fullmatch(entry.name)]
                if listing.entries:
                    cookie = listing.entries[-1].cookie
                verifier, end = listing.verifier, listing.end or not listing.entries
        return found


def _explain(error: OSError, shown: str) -> Failure:
    number = error.errno or errno.EIO
    if number in _FULL:
        return Failure(f"{shown}: disk full there ({os.strerror(number)}); nothing of it remains", Exit.SERVER)
    if number in (errno.EACCES, errno.EPERM):
        return Failure(
            f"{shown}: the server refuses uid {os.getuid()} (root squash?): export it with no_root_squash, or name"
            " the directory's owner in the URL: ?uid=N&gid=N",
            Exit.SERVER,
        )
    if number == errno.EROFS:
        return Failure(f"{shown}: the export is read-only: export it read-write", Exit.SERVER)
    return Failure(f"{shown}: {os.strerror(number)}", Exit.SERVER)
