"""The protocol between the ordinary mount and the place where its files live.

It is handle-based, as FUSE and NFSv3 are: a `Handle` is opaque bytes that name one file for as long as it
exists, whatever its path. Every method is a coroutine of trio, may wait for as long as the backend is out of
reach (a hard mount), and raises OSError with the errno that the user shall see. Terms and arguments follow
RFC 1813 section 3.3. Many operations may be under way at once; a cancelled one may still take effect.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from attrs import frozen

from fuseswap.swap.target import MemoryTarget, NfsTarget

Handle = bytes


class SourceError(Exception):
    """A source cannot be opened: one line for the user that says what is wrong and what to do."""

    def __init__(self, text: str, *, usage: bool = False) -> None:
        super().__init__(text)
        self.usage = usage
        """The source itself is written wrongly; no server was asked."""


class FileType(Enum):
    """File types by their S_IFMT bits (inode(7))."""

    REGULAR = 0o100000
    DIRECTORY = 0o040000
    SYMLINK = 0o120000
    BLOCK = 0o060000
    CHARACTER = 0o020000
    FIFO = 0o010000
    SOCKET = 0o140000


@frozen
class Attributes:
    """fattr3 of RFC 1813 2.6: sizes in bytes, times in nanoseconds since the epoch."""

    type: FileType
    mode: int
    """Permission bits, without the type."""
    nlink: int
    uid: int
    gid: int
    size: int
    used: int
    """Bytes of storage in use, as the server counts them."""
    rdev: tuple[int, int]
    fileid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    @property
    def version(self) -> "Version":
        return Version(self.size, self.mtime_ns, self.ctime_ns)


@frozen
class Version:
    """wcc_attr of RFC 1813 2.6: what tells one state of a file's contents from another."""

    size: int
    mtime_ns: int
    ctime_ns: int


@frozen
class Written:
    """wcc_data of RFC 1813 2.6: what a write found and what it left, as far as the backend learned it."""

    before: Version | None
    after: Attributes | None


@frozen
class Caller:
    """Whose permissions an operation uses: AUTH_SYS (RFC 5531 appendix A), at most 16 groups."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@frozen
class SetAttributes:
    """sattr3 of RFC 1813 2.6: None leaves a value as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    touch: bool = False
    """Both times become the server's own (SET_TO_SERVER_TIME): who may write the file may do that."""


@frozen
class Entry:
    """A name in a directory; `handle` and `attributes` are None where the server did not give them."""

    name: bytes
    fileid: int
    cookie: int
    """Hand it to `readdir` to go on behind this entry."""
    handle: Handle | None
    attributes: Attributes | None


@frozen
class Listing:
    """A piece of a directory."""

    entries: Sequence[Entry]
    verifier: bytes
    """cookieverf3: goes with every cookie of this listing (RFC 1813 3.3.16)."""
    end: bool
    """The directory ends with these entries."""


@frozen
class Statistics:
    """FSSTAT (RFC 1813 3.3.18) in bytes and files."""

    total_bytes: int
    free_bytes: int
    available_bytes: int
    total_files: int
    free_files: int
    available_files: int
    name_bytes_max: int


class Backend(Protocol):
    """A tree of files. Names are single path components, neither empty, "." nor ".."."""

    root: Handle
    read_bytes_max: int
    """Bytes that one READ of the backend carries; `read` takes any length."""
    write_bytes_max: int

    async def getattr(self, handle: Handle, caller: Caller) -> Attributes: ...

    async def setattr(self, handle: Handle, changes: SetAttributes, caller: Caller) -> Attributes: ...

    async def lookup(self, parent: Handle, name: bytes, caller: Caller) -> tuple[Handle, Attributes]: ...

    async def access(self, handle: Handle, mask: int, caller: Caller) -> bool:
        """Whether `caller` may do all that `mask` (R_OK | W_OK | X_OK of access(2)) names."""
        ...

    async def readlink(self, handle: Handle, caller: Caller) -> bytes: ...

    async def create(
        self, parent: Handle, name: bytes, mode: int, exclusive: bool, caller: Caller
    ) -> tuple[Handle, Attributes]:
        """A regular file; an existing one is returned as it is, or EEXIST if `exclusive`.

        EEXIST, EISDIR or EINVAL where something else than a regular file has the name.
        """
        ...

    async def mkdir(self, parent: Handle, name: bytes, mode: int, caller: Caller) -> tuple[Handle, Attributes]: ...

    async def symlink(
        self, parent: Handle, name: bytes, target: bytes, caller: Caller
    ) -> tuple[Handle, Attributes]: ...

    async def mknod(
        self, parent: Handle, name: bytes, type: FileType, mode: int, rdev: tuple[int, int], caller: Caller
    ) -> tuple[Handle, Attributes]:
        """A FIFO, socket or device; `rdev` is (major, minor)."""
        ...

    async def link(self, handle: Handle, parent: Handle, name: bytes, caller: Caller) -> Attributes:
        """Attributes of the file with its new link."""
        ...

    async def unlink(self, parent: Handle, name: bytes, caller: Caller) -> None: ...

    async def rmdir(self, parent: Handle, name: bytes, caller: Caller) -> None: ...

    async def rename(
        self, old_parent: Handle, old_name: bytes, new_parent: Handle, new_name: bytes, caller: Caller
    ) -> None: ...

    async def readdir(self, handle: Handle, cookie: int, verifier: bytes, caller: Caller) -> Listing:
        """Entries behind `cookie` without "." and "..". To begin: cookie 0 and an empty verifier."""
        ...

    async def read(self, handle: Handle, offset: int, length: int, caller: Caller) -> bytes:
        """`length` bytes from `offset`; fewer only at the end of the file."""
        ...

    async def write(self, handle: Handle, offset: int, data: bytes, stable: bool, caller: Caller) -> Written:
        """All of `data`; on stable storage at return if `stable` (FILE_SYNC), else after the next `commit`."""
        ...

    async def commit(self, handle: Handle, caller: Caller) -> None:
        """All that was written is on stable storage when this returns (fsync)."""
        ...

    async def statistics(self, handle: Handle, caller: Caller) -> Statistics: ...

    def swap_target(self, handle: Handle) -> NfsTarget | MemoryTarget:
        """Where an engine reaches this file's pages; OSError EINVAL for a backend without swap_rw."""
        ...
