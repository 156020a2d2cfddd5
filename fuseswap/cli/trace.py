"""`trace`: each page's way to the server and back, as the engine notes it in its counters file.

The engine writes one record for each stage of each request into a ring, but only while a word of the counters
file says that somebody reads; so this costs nothing while nobody does. A reader that is too slow for the ring
loses records, and says how many.
"""

import fcntl
import json
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from attrs import define, field, frozen

from fuseswap.cli.failure import Exit, Failure
from fuseswap.cli.interrupts import Interrupted, Interrupts
from fuseswap.cli.output import say, stream, warn
from fuseswap.host import processes, rundir
from fuseswap.host.machine import require_root
from fuseswap.swap.counters import COUNTERS_BYTES, Counters, Stage, TraceRecord, Word
from fuseswap.swap.units import PAGE_SIZE

_POLL_SECONDS = 0.01
"""A tenth of the time in which a busy engine fills the ring."""
_ALIVE_SECONDS = 0.5
_CALLS_MAX = 4096
"""Calls of which the passengers are remembered, for requests that are still on their way."""

_TITLES = ("arrived s", "what", "page", "pages", "queued", "server", "answer", "total us", "call")
_WIDTHS = (12, 6, 10, 6, 9, 9, 9, 9, 0)


@frozen
class Leg:
    """One call that carried a request, or a part of it."""

    xid: int
    sent_ns: int
    shared_with: tuple[int, ...]
    """FUSE uniques of the other requests in the call."""


@frozen
class Journey:
    """A request from its arrival to its answer; times are CLOCK_MONOTONIC in ns."""

    unique: int
    is_write: bool
    offset: int
    length: int
    arrived_ns: int
    legs: tuple[Leg, ...]
    """Empty where unfinished WRITEs covered a READ; several where it travelled in parts, or again."""
    replied_ns: int
    answered_ns: int

    @property
    def queued_ns(self) -> int:
        """From the arrival to the (first) call; the whole wait for the reply if there was no call."""
        return (self.legs[0].sent_ns if self.legs else self.replied_ns) - self.arrived_ns

    @property
    def server_ns(self) -> int:
        """From the (first) call to the (last) reply."""
        return self.replied_ns - self.legs[0].sent_ns if self.legs else 0

    @property
    def answer_ns(self) -> int:
        """From the reply to the answer."""
        return self.answered_ns - self.replied_ns

    @property
    def total_ns(self) -> int:
        """From the arrival to the answer."""
        return self.answered_ns - self.arrived_ns

    def to_plain(self) -> dict[str, Any]:
        """The object of `trace --json`."""
        return {
            "unique": self.unique,
            "kind": "WRITE" if self.is_write else "READ",
            "offset": self.offset,
            "length": self.length,
            "arrived_ns": self.arrived_ns,
            "replied_ns": self.replied_ns,
            "answered_ns": self.answered_ns,
            "calls": [
                {"xid": leg.xid, "sent_ns": leg.sent_ns, "shared_with": list(leg.shared_with)} for leg in self.legs
            ],
        }


@define
class Assembler:
    """Puts journeys together from trace records; its state changes with each of them."""

    lost_records: int = 0
    """Records that the ring no longer had."""
    unknown_requests: int = 0
    """Answers to requests whose arrival was not seen: older than the trace, or lost."""
    next_sequence: int = 0
    """What to ask `trace_since` for. Records before it have been seen, and are passed over."""
    _open: dict[int, dict[Stage, list[TraceRecord]]] = field(factory=dict)
    _passengers: dict[int, list[int]] = field(factory=dict)
    """xid -> FUSE uniques, in the order of sending."""

    def feed(self, records: Iterable[TraceRecord]) -> Iterator[Journey]:
        """The journeys that end with these records, in the order of their answers."""
        for record in records:
            if record.sequence < self.next_sequence:
                continue
            self.lost_records += record.sequence - self.next_sequence
            self.next_sequence = record.sequence + 1
            if record.stage is Stage.ARRIVED:
                self._open[record.unique] = {stage: [] for stage in Stage}
            stages = self._open.get(record.unique)
            if stages is None:
                self.unknown_requests += record.stage is Stage.ANSWERED
                continue
            stages[record.stage].append(record)
            if record.stage is Stage.SENT:
                self._board(record)
            elif record.stage is Stage.ANSWERED:
                del self._open[record.unique]
                yield self._journey(record, stages)

    def _board(self, record: TraceRecord) -> None:
        passengers = self._passengers
        passengers.setdefault(record.xid, []).append(record.unique)
        if len(passengers) > _CALLS_MAX:
            del passengers[next(iter(passengers))]

    def _journey(self, answered: TraceRecord, stages: dict[Stage, list[TraceRecord]]) -> Journey:
        replied = stages[Stage.REPLIED]
        return Journey(
            unique=answered.unique,
            is_write=answered.is_write,
            offset=answered.offset,
            length=answered.length,
            arrived_ns=stages[Stage.ARRIVED][0].time_ns,
            legs=tuple(
                Leg(record.xid, record.time_ns, self._others(record.xid, answered.unique))
                for record in stages[Stage.SENT]
            ),
            replied_ns=replied[-1].time_ns if replied else answered.time_ns,
            answered_ns=answered.time_ns,
        )

    def _others(self, xid: int, unique: int) -> tuple[int, ...]:
        return tuple(other for other in self._passengers.get(xid, ()) if other != unique)


def trace(arguments: Any, _interrupts: Interrupts) -> Exit:
    """`fuseswap trace NAME [--seconds N] [--json]`."""
    require_root()
    name = arguments.name
    seen = 0
    with _counters(name) as counters, _tracing(name, counters) as next_sequence:
        start_ns = time.monotonic_ns()
        assembler = Assembler(next_sequence=next_sequence)
        if not arguments.json:
            stream(_line(_TITLES))
        try:
            for journeys in follow(counters, assembler, arguments.seconds, lambda: _alive(counters)):
                seen += len(journeys)
                stream(
                    "\n".join(
                        json.dumps(journey.to_plain()) if arguments.json else journey_text(journey, start_ns)
                        for journey in journeys
                    )
                )
        except Interrupted:
            # Ctrl-C is how a trace without --seconds ends.
            pass
        alive = _alive(counters)
    if assembler.lost_records:
        warn(f"{assembler.lost_records} records were overwritten unread: more is swapped than trace can follow")
    if not alive:
        raise Failure(f"the engine of {name} has ended")
    if not seen and not arguments.json:
        say("nothing was swapped out or in meanwhile")
    return Exit.DONE


def follow(
    counters: Counters, assembler: Assembler, seconds: float | None, alive: Callable[[], bool]
) -> Iterator[list[Journey]]:
    """Journeys as they end, some at a time, for so many seconds or until the engine is dead.

    The caller has set Word.TRACE.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    look = time.monotonic() + _ALIVE_SECONDS
    while True:
        over = deadline is not None and time.monotonic() >= deadline
        before = assembler.next_sequence
        if journeys := list(assembler.feed(counters.trace_since(before))):
            yield journeys
        if over:
            return
        if assembler.next_sequence == before:
            if time.monotonic() > look:
                look = time.monotonic() + _ALIVE_SECONDS
                if not alive():
                    return
            time.sleep(_POLL_SECONDS)


def journey_text(journey: Journey, start_ns: int) -> str:
    """One line: when it arrived, what it was, how long each stage took in us, and in which call it went."""
    return _line(
        (
            f"{(journey.arrived_ns - start_ns) / 1e9:.6f}",
            "WRITE" if journey.is_write else "READ",
            str(journey.offset // PAGE_SIZE),
            str(journey.length // PAGE_SIZE),
            *(
                f"{duration / 1000:.0f}"
                for duration in (journey.queued_ns, journey.server_ns, journey.answer_ns, journey.total_ns)
            ),
            ", ".join(map(_leg_text, journey.legs)) or "none: unfinished writes cover it",
        )
    )


def _leg_text(leg: Leg) -> str:
    others = len(leg.shared_with)
    return f"{leg.xid:08x}" + (f" with {others} other{'s' * (others > 1)}" if others else "")


def _line(cells: Iterable[str]) -> str:
    padded = (cell.upper() if cell in _TITLES else cell for cell in cells)
    return "  ".join(cell.rjust(width) for cell, width in zip(padded, _WIDTHS, strict=True))


@contextmanager
def _counters(name: str) -> Iterator[Counters]:
    """NAME's counters, writable, and no other reader's trace meanwhile. Failure if that cannot be."""
    try:
        descriptor = os.open(rundir.directory(name) / "counters", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Failure(f"{name} is not up: fuseswap status lists what is") from None
    with os.fdopen(descriptor, "r+b") as stream:
        try:
            # Two readers would end each other's trace. The kernel lets the lock go with its process.
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mapping = mmap.mmap(descriptor, COUNTERS_BYTES)
        except BlockingIOError:
            raise Failure(f"{name} is being traced already, by another fuseswap trace") from None
        except ValueError:
            raise Failure(f"{name}: its counters are not of this version: fuseswap down {name}") from None
        with mapping:
            counters = Counters(mapping)
            try:
                yield counters
            finally:
                counters.close()


@contextmanager
def _tracing(name: str, counters: Counters) -> Iterator[int]:
    """The engine traces in this block, from this sequence number on. Failure if there is no engine."""
    if not _alive(counters):
        raise Failure(f"the engine of {name} is dead: fuseswap down {name}")
    next_sequence = counters.words[Word.TRACE_SEQUENCE]
    counters.words[Word.TRACE] = 1
    try:
        yield next_sequence
    finally:
        counters.words[Word.TRACE] = 0


def _alive(counters: Counters) -> bool:
    return processes.runs(processes.find_engine(counters.snapshot()))
