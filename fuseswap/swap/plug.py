"""The plug: which call to the server carries which page, and when.

The kernel gathers adjacent swap pages in a `struct swap_iocb` while its plug is held (mm/page_io.c:
swap_writepage_fs, swap_read_folio_fs) and sends it at unplug. Here nothing is held back: a call slot that is
free *is* the unplug. While all slots are busy, requests queue, and those that are adjacent join. No timers.

The life of a request
---------------------
    submit --+--> blocked ----+
             |                v
             +------------> queued <---------+    part done, or its shared call failed
             |                v              |
             |            in flight ---------+
             |                v
             +------------> finished              at once: a READ that unfinished WRITEs cover

*blocked*: an earlier unfinished WRITE overlaps. It holds no place in the queue, so it delays nobody.
*queued*: in exactly one call that has not left. *in flight*: in exactly one call that holds a slot.

The rules
---------
1. **Order.** `_writes` maps each page to the latest unfinished WRITE of it. A WRITE that overlaps unfinished
   ones is blocked until each of them has finished, whether well or not: so of overlapping WRITEs at most one
   is queued or in flight, and they reach the server as submitted. A READ whose every page has an unfinished
   WRITE is answered from their memory; one with only some waits for those, then asks the server. So a READ
   returns, for each page, the latest WRITE submitted before it, or one submitted after it while it was
   unfinished (the two are concurrent and either is right).
   A WRITE does not wait for an earlier READ. What follows: a READ may see a WRITE submitted after it that is
   under way at the server with it, all the more if the READ is sent again after a lost connection or
   continued after a short reply; that WRITE is concurrent with it, so this is allowed; and a READ can never
   see *less* than it must, because every WRITE before it was finished when it was first sent. Bytes of one
   page may then come from both sides of such a WRITE; the kernel never reads and writes one swap slot at
   once (the folio is locked or under writeback).
   After a WRITE failed, the server may hold its old bytes or its new ones; the kernel keeps the page.
2. **FIFO.** Calls leave in the order of their oldest request. A request joins a call, or stands behind all
   calls queued at that moment; calls ahead of it may grow (to rsize or wsize) or join, but none is added but
   for requests older than itself: a blocked one set free, the rest of a short reply, the parts of a failed
   call. So, **a request that is not blocked leaves after at most as many calls as were queued when it was
   submitted, plus one for each of those events on an older request.**
3. **Merging** looks at both ends of each queued call, per kind; a request that closes the gap between two
   joins them. Nothing is copied: a call is a list of requests.
4. **Verdicts.** The answer to a request is whole or an error. A definite error on a call of several requests
   is nobody's verdict yet: each is sent again alone, and fails or succeeds for itself. A short reply
   finishes the requests that it covers; what remains goes on as a call of its own in its place in the queue.
   A reply that ends progress is EIO: WRITE with count 0 (an error like any other: a shared call is split);
   READ with eof or no data inside the range (the file shrank), for the requests not covered.
5. A request larger than rsize or wsize travels in parts, one call at a time, and holds no slot in between.

Illegal calls (a call that is not in flight, more bytes than were asked for) raise ValueError and change
nothing. Memory: the objects of unfinished requests, and a dict entry for each page of an unfinished WRITE
(under 0.5 MiB when a reserve of 16 MiB is full of them).

Not modelled: time, and a server that executes an old copy of a WRITE after it has answered the repetition
(RFC 1813 4.5); source port and XIDs that stay the same are the transport's answer to that.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterable
from errno import EIO
from itertools import groupby
from operator import attrgetter

from attrs import frozen

from fuseswap.swap.requests import Call, Request
from fuseswap.swap.units import PAGE_SIZE

_PAGE_SHIFT = PAGE_SIZE.bit_length() - 1
_by_sequence = attrgetter("sequence")


@frozen
class PlugStatistics:
    """What the plug holds now (calls and requests), and what it has done since it was made."""

    unfinished_requests: int
    blocked_requests: int
    queued_calls: int
    queued_calls_max: int
    in_flight_calls: int
    in_flight_calls_max: int
    covered_reads: int
    """READs answered from unfinished WRITEs."""
    blocked_ever: int
    """Requests that had to wait for an overlapping WRITE."""
    merged: int
    """Requests that joined a queued call."""
    joined: int
    """Times that two queued calls became one."""
    short_replies: int
    split_calls: int
    """Calls of several requests that failed, and whose requests were sent again alone."""


class Plug:
    """The queue between /dev/fuse and the server's call slots. See the module's docstring for the rules."""

    __slots__ = (
        "_blocked",
        "_ends",
        "_limits",
        "_queue",
        "_queue_max",
        "_sequence",
        "_slots",
        "_starts",
        "_unfinished",
        "_writes",
        "blocked_ever",
        "covered_reads",
        "in_flight",
        "in_flight_max",
        "joined",
        "merged",
        "short_replies",
        "split_calls",
    )

    def __init__(self, slots: int, read_bytes_max: int, write_bytes_max: int) -> None:
        """At most `slots` calls in flight, of at most rtmax and wtmax bytes (FSINFO, RFC 1813 3.3.19).

        ValueError if a limit is below one slot or one page; a rest of a page in a limit is not used.
        """
        if slots < 1:
            raise ValueError(f"{slots} call slots; at least 1 is needed")
        if min(read_bytes_max, write_bytes_max) < PAGE_SIZE:
            raise ValueError(f"calls of {min(read_bytes_max, write_bytes_max)} bytes cannot carry a page")
        self._slots = slots
        self._limits = (read_bytes_max & -PAGE_SIZE, write_bytes_max & -PAGE_SIZE)  # indexed by is_write
        self._queue: deque[Call] = deque()  # by sequence
        # Queued calls that may grow, per kind, by the offset at which they start and at which they end.
        self._starts: tuple[dict[int, Call], dict[int, Call]] = ({}, {})
        self._ends: tuple[dict[int, Call], dict[int, Call]] = ({}, {})
        self._writes: dict[int, Request] = {}  # page index -> latest unfinished WRITE
        self.in_flight: dict[Call, None] = {}
        """Calls sent and not completed, in the order of sending: what to send again on a new connection."""
        self._sequence = self._unfinished = self._blocked = 0
        self._queue_max = self.in_flight_max = 0
        self.covered_reads = self.blocked_ever = self.merged = self.joined = 0
        self.short_replies = self.split_calls = 0

    # What arrives from the kernel

    def submit(self, request: Request) -> bool:
        """Take a request. True: it is finished at once (`pieces` lie in unfinished WRITEs' memory).

        ValueError if it is not whole pages, has not `length` bytes of memory, or was submitted before.
        Hand in all that /dev/fuse has before asking for `next_call`, so that neighbours meet.
        """
        offset = request.offset
        length = request.length
        if (offset | length) % PAGE_SIZE or offset < 0 or length <= 0:
            raise ValueError(f"{request} is not whole pages")
        if request.sequence or len(request.memory) != length:
            raise ValueError(f"{request} was submitted before, or has no memory of its length")
        writes = self._writes
        first = offset >> _PAGE_SHIFT
        if length == PAGE_SIZE:
            latest = writes.get(first)
            owners: list[Request | None] | None = None if latest is None else [latest]
            if request.is_write:
                writes[first] = request
        else:
            pages = range(first, first + (length >> _PAGE_SHIFT))
            owners = None
            if writes and not writes.keys().isdisjoint(pages):
                owners = [writes.get(page) for page in pages]
            if request.is_write:
                writes.update(dict.fromkeys(pages, request))
        self._sequence = request.sequence = self._sequence + 1
        if owners is None:
            self._unfinished += 1
            self._enqueue(request)
            return False
        if not request.is_write and None not in owners:
            request.pieces = _pieces(request, owners)
            self.covered_reads += 1
            return True
        self._unfinished += 1
        self._block(request, owners)
        return False

    def next_call(self) -> Call | None:
        """A call to send now, which takes a slot; None when no slot is free or nothing is queued."""
        queue = self._queue
        in_flight = self.in_flight
        if not queue or len(in_flight) >= self._slots:
            return None
        call = queue.popleft()
        self._forget(call)
        in_flight[call] = None
        if len(in_flight) > self.in_flight_max:
            self.in_flight_max = len(in_flight)
        return call

    # What arrives from the server

    def wrote(self, call: Call, count: int) -> list[Request]:
        """A WRITE reply: `count` bytes from its offset are FILE_SYNC. Returns the finished requests."""
        if call not in self.in_flight or not call.is_write or not 0 <= count <= call.length:
            raise ValueError(f"{call} cannot have written {count} bytes")
        if count == 0:
            return self.failed(call, EIO)
        del self.in_flight[call]
        requests = call.requests
        end = call.offset + count
        last = requests[-1]
        if end == last.offset + last.length:
            for request in requests:
                self._finish_write(request)
            self._finished(len(requests))
            return requests
        covered = self._covered(requests, end)
        self._continue(requests[covered:], end, count < call.length)
        for request in requests[:covered]:
            self._finish_write(request)
        self._finished(covered)
        return requests[:covered]

    def fetched(self, call: Call, payload: memoryview, eof: bool) -> list[Request]:
        """A READ reply: `payload` from the call's offset. Returns the finished requests.

        Their `pieces` lie in `payload`. Only what a reply holds of a request that it does not finish is
        copied, into the request's memory.
        """
        count = len(payload)
        if call not in self.in_flight or call.is_write or count > call.length:
            raise ValueError(f"{call} cannot have fetched {count} bytes")
        del self.in_flight[call]
        requests = call.requests
        start = call.offset
        end = start + count
        covered = len(requests)
        if end != requests[-1].offset + requests[-1].length:
            covered = self._covered(requests, end)
        for request in requests[:covered] if covered < len(requests) else requests:
            position = request.offset - start
            if position >= 0:
                rest = payload if request.length == count else payload[position : position + request.length]
                request.pieces = (rest,)
            else:
                done = request.done
                request.pieces = (request.memory[:done], payload[: request.length - done])
        if covered == len(requests):
            self._finished(covered)
            return requests
        if eof or not count:
            for request in requests[covered:]:
                request.error = EIO
            self._finished(len(requests))
            return requests
        partial = requests[covered]
        if partial.offset + partial.done < end:
            into = partial.offset + partial.done - start
            partial.memory[partial.done : end - partial.offset] = payload[into:]
        self._continue(requests[covered:], end, count < call.length)
        self._finished(covered)
        return requests[:covered]

    def failed(self, call: Call, errno: int) -> list[Request]:
        """A definite error. A lone request finishes with `errno`; several are queued again, each alone."""
        if call not in self.in_flight or errno <= 0:
            raise ValueError(f"{call} cannot have failed with errno {errno}")
        del self.in_flight[call]
        requests = call.requests
        if len(requests) > 1:
            self.split_calls += 1
            for request in requests:
                request.alone = True
                self._enqueue(request)
            return []
        requests[0].error = errno
        if call.is_write:
            self._finish_write(requests[0])
        self._finished(1)
        return requests

    def limit(self, slots: int) -> None:
        """Change the number of calls in flight; calls above a lower limit drain first. ValueError below 1."""
        if slots < 1:
            raise ValueError(f"{slots} call slots; at least 1 is needed")
        self._slots = slots

    def statistics(self) -> PlugStatistics:
        """A frozen copy of the counters."""
        return PlugStatistics(
            unfinished_requests=self._unfinished,
            blocked_requests=self._blocked,
            queued_calls=len(self._queue),
            queued_calls_max=self._queue_max,
            in_flight_calls=len(self.in_flight),
            in_flight_calls_max=self.in_flight_max,
            covered_reads=self.covered_reads,
            blocked_ever=self.blocked_ever,
            merged=self.merged,
            joined=self.joined,
            short_replies=self.short_replies,
            split_calls=self.split_calls,
        )

    # Overlap

    def _block(self, request: Request, owners: Iterable[Request | None]) -> None:
        for owner in dict.fromkeys(owners):
            if owner is not None:
                request.waits_for += 1
                if owner.followers is None:
                    owner.followers = []
                owner.followers.append(request)
        self._blocked += 1
        self.blocked_ever += 1

    def _finish_write(self, request: Request) -> None:
        writes = self._writes
        first = request.offset >> _PAGE_SHIFT
        followers = request.followers
        if followers is None:  # then nobody has taken a page over
            if request.length == PAGE_SIZE:
                del writes[first]
            else:
                for page in range(first, first + (request.length >> _PAGE_SHIFT)):
                    del writes[page]
            return
        for page in range(first, first + (request.length >> _PAGE_SHIFT)):
            if writes[page] is request:
                del writes[page]
        request.followers = None
        for follower in followers:
            follower.waits_for -= 1
            assert follower.waits_for >= 0
            if not follower.waits_for:
                self._blocked -= 1
                self._enqueue(follower)

    # The queue

    def _enqueue(self, request: Request) -> None:
        is_write = request.is_write
        limit = self._limits[is_write]
        length = request.length
        if request.alone or length > limit:
            offset = request.offset + request.done
            self._insert(Call(request, offset, min(length - request.done, limit)))
            return
        offset = request.offset
        end = offset + length
        starts = self._starts[is_write]
        ends = self._ends[is_write]
        before = ends.get(offset)
        after = starts.get(end)
        if before is not None and before.length + length <= limit:
            del ends[offset]
            before.requests.append(request)
            before.length += length
            self.merged += 1
            if after is not None and before.length + after.length <= limit:
                self._queue.remove(after)
                self._forget(after)
                before.requests += after.requests
                before.length += after.length
                end += after.length
                self.joined += 1
                self._grown(before, min(request.sequence, after.sequence))
            else:
                self._grown(before, request.sequence)
            ends[end] = before
        elif after is not None and after.length + length <= limit:
            del starts[end]
            after.requests.insert(0, request)
            after.offset = offset
            after.length += length
            starts[offset] = after
            self.merged += 1
            self._grown(after, request.sequence)
        else:
            call = Call(request, offset, length)
            starts[offset] = ends[end] = call
            self._insert(call)

    def _grown(self, call: Call, sequence: int) -> None:
        if sequence < call.sequence:
            self._queue.remove(call)
            call.sequence = sequence
            self._insert(call)

    def _insert(self, call: Call) -> None:
        queue = self._queue
        if queue and queue[-1].sequence > call.sequence:
            insort(queue, call, key=_by_sequence)
        else:
            queue.append(call)
        if len(queue) > self._queue_max:
            self._queue_max = len(queue)

    def _forget(self, call: Call) -> None:
        """Let nobody join a call any more. (Another READ of the same pages may have taken its place.)"""
        starts = self._starts[call.is_write]
        if starts.get(call.offset) is call:
            del starts[call.offset]
        ends = self._ends[call.is_write]
        end = call.offset + call.length
        if ends.get(end) is call:
            del ends[end]

    # Replies

    def _covered(self, requests: list[Request], end: int) -> int:
        covered = 0
        while requests[covered].offset + requests[covered].length <= end:
            covered += 1
        return covered

    def _continue(self, requests: list[Request], end: int, short: bool) -> None:
        first = requests[0]
        if end > first.offset:
            first.done = end - first.offset
        last = requests[-1]
        limit = self._limits[first.is_write]
        call = Call(first, end, min(last.offset + last.length - end, limit))
        call.requests = requests
        call.sequence = min(map(_by_sequence, requests))
        self.short_replies += short
        self._insert(call)

    def _finished(self, count: int) -> None:
        self._unfinished -= count
        if not self._unfinished:
            assert not (self._queue or self.in_flight or self._writes or self._blocked)
            assert not (self._starts[0] or self._starts[1] or self._ends[0] or self._ends[1])


def _pieces(request: Request, owners: Iterable[Request | None]) -> tuple[memoryview, ...]:
    """A READ's bytes in the memory of the WRITEs that own its pages, one piece for each run of pages."""
    pieces = []
    offset = request.offset
    for owner, pages in groupby(owners):
        assert owner is not None
        size = len(list(pages)) * PAGE_SIZE
        start = offset - owner.offset
        pieces.append(owner.memory[start : start + size])
        offset += size
    return tuple(pieces)
