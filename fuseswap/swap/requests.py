"""What the plug handles: requests of the kernel, and the calls to the server that carry them.

Both are plain objects with fixed fields, because a 4 KiB page must cost a microsecond or two in this room
and no memory beyond small objects: no validators, no generated comparison, no container per field.
"""

from typing import Final, final

Extent = tuple[int, int]
"""(first page, pages) in the reserve's arena."""

NOTHING: Final[tuple[memoryview, ...]] = ()


@final
class Request:
    """One READ or WRITE of the kernel (struct fuse_read_in, fuse_write_in), from its arrival to its answer.

    The engine makes it, and reads `error` and `pieces` when the plug reports it finished. Fields below the
    blank line belong to the plug.
    """

    __slots__ = (
        "alone",
        "done",
        "error",
        "extent",
        "followers",
        "is_write",
        "length",
        "memory",
        "offset",
        "pieces",
        "sequence",
        "unique",
        "waits_for",
    )

    def __init__(
        self,
        unique: int,
        is_write: bool,
        offset: int,
        length: int,
        memory: memoryview,
        extent: Extent | None = None,
    ) -> None:
        self.unique = unique
        """fuse_in_header.unique; opaque here."""
        self.is_write = is_write
        self.offset = offset
        """Bytes from the beginning of the file; a whole number of pages."""
        self.length = length
        """Bytes; a whole number of pages, at least one."""
        self.memory = memory
        """`length` bytes: a WRITE's data, or the room in which a READ's short replies are put together."""
        self.extent = extent
        """Where `memory` lies in the arena; opaque here."""
        self.error = 0
        """errno of the answer; 0 means every byte is done."""
        self.pieces: tuple[memoryview, ...] = NOTHING
        """A finished READ's bytes, in order. They may lie in the receive buffer or in another request's
        memory: valid until the engine receives again or answers another request."""

        self.sequence = 0
        """Place in the order of submission, from 1; 0 before it."""
        self.done = 0
        """Bytes from `offset` that are stable (WRITE) or in `memory` (READ)."""
        self.alone = False
        """Travels in a call of its own: a shared call failed, and this request must get its own verdict."""
        self.waits_for = 0
        """How many earlier writes must finish before this request may be queued."""
        self.followers: list[Request] | None = None
        """Later requests that wait for this write."""

    def __repr__(self) -> str:
        kind = "WRITE" if self.is_write else "READ"
        return f"<{kind} #{self.sequence} {self.offset}+{self.length} done {self.done} error {self.error}>"


@final
class Call:
    """One NFS READ or WRITE (RFC 1813 3.3.6, 3.3.7) of `length` bytes from `offset` in the file.

    `requests` are ordered by offset, adjacent and of one kind. Only the first may be partly done already,
    only the last may reach beyond the call (when it is larger than the server's rsize or wsize).
    """

    __slots__ = (
        "attempts",
        "deadline",
        "is_write",
        "length",
        "offset",
        "requests",
        "sequence",
        "slot",
        "stale_since",
        "stream_end",
        "xid",
    )

    def __init__(self, request: Request, offset: int, length: int) -> None:
        self.is_write = request.is_write
        self.offset = offset
        self.length = length
        self.requests = [request]
        self.sequence = request.sequence
        """Sequence of the oldest request: the call's place in the queue."""
        self.xid = 0
        self.deadline = 0
        self.slot = 0
        self.attempts = 0
        self.stream_end = 0
        self.stale_since = 0
        """Like the five before it: the engine's, for its own use while the call is in flight."""

    def payload(self) -> list[memoryview]:
        """A WRITE's bytes where they lie, in order, `length` in all: ready for a gathering send."""
        requests = self.requests
        first = requests[0]
        if len(requests) == 1:
            if self.length == first.length:
                return [first.memory]
            start = self.offset - first.offset
            return [first.memory[start : start + self.length]]
        pieces = [request.memory for request in requests]
        if first.done:
            pieces[0] = first.memory[first.done :]
        return pieces

    def __repr__(self) -> str:
        kind = "WRITE" if self.is_write else "READ"
        return f"<call {kind} #{self.sequence} {self.offset}+{self.length} of {len(self.requests)}>"
