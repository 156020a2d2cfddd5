"""The layout of a counters file: what an engine tells about itself without making a system call.

An engine in steady state may not write a log or answer a socket (either can allocate memory below reclaim),
so it stores 8-byte words and log records into a shared mapping; `status`, the supervisor and a filesystem
process started again read them there. Layout, little-endian:

    0       magic, 8 bytes
    8       words, 8 bytes each, indexed by `Word`
    4096    length (8 bytes) and text of the identity, JSON, written once before the engine serves
    20480   log ring: LOG_RECORDS records of LOG_RECORD_BYTES
    86016   trace ring: TRACE_RECORDS records of 40 bytes, written while the word TRACE is not 0

A log record is: sequence (8, stored last, so that a torn record is never valid), wall time in ns (8),
level (4, as in syslog.h), length (4), UTF-8 text. A trace record is: sequence (8, stored last), monotonic time
in ns (8), FUSE unique (8), byte offset (8), length (4), xid (4). One writer, any number of readers.
"""

import json
import struct
from collections.abc import Iterator
from enum import IntEnum, auto
from typing import Any, Final

from attrs import frozen

MAGIC: Final = b"FUSESWP1"
IDENTITY_OFFSET: Final = 4096
LOG_OFFSET: Final = 20480
LOG_RECORDS: Final = 256
LOG_RECORD_BYTES: Final = 256
TRACE_OFFSET: Final = LOG_OFFSET + LOG_RECORDS * LOG_RECORD_BYTES
TRACE_RECORDS: Final = 4096

_RECORD = struct.Struct("<QQII")
_LENGTH = struct.Struct("<Q")
_TRACE = struct.Struct("<QQQQII")
COUNTERS_BYTES: Final = TRACE_OFFSET + TRACE_RECORDS * _TRACE.size
LOG_TEXT_BYTES: Final = LOG_RECORD_BYTES - _RECORD.size


class Level(IntEnum):
    """Log levels of syslog(3)."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6


class State(IntEnum):
    """The engine's life."""

    STARTING = 0
    SERVING = 1
    STOPPED = 2


class Word(IntEnum):
    """Index of each word. Bytes, pages and nanoseconds as the name says; everything else counts events."""

    STATE = 0
    ENGINE_PID = auto()
    ENGINE_START_TICKS = auto()
    """Field 22 of the engine's /proc/PID/stat: with the pid, it names one process for the life of the machine."""
    SUPERVISOR_PID = auto()
    STARTED_NS = auto()
    """CLOCK_REALTIME at which the engine began to serve."""
    CONNECTED = auto()
    """1 while the server's connection is up."""
    ADDRESS_INDEX = auto()
    SOURCE_PORT = auto()
    DISCONNECTED_NS = auto()
    """CLOCK_MONOTONIC since which there is no connection; 0 while there is one."""
    REPLY_NS = auto()
    """CLOCK_MONOTONIC of the server's latest reply."""
    RECONNECTS = auto()
    RETRANSMISSIONS = auto()
    TIMEOUTS = auto()
    READS = auto()
    READ_BYTES = auto()
    WRITES = auto()
    WRITE_BYTES = auto()
    READ_ERRORS = auto()
    WRITE_ERRORS = auto()
    REFUSED = auto()
    """Requests that the contract refused: misaligned, out of range, on the wrong handle."""
    READ_CALLS = auto()
    WRITE_CALLS = auto()
    WRITE_CALLS_4K = auto()
    """WRITE calls by size: of at most 4 KiB, and below of more than half of what the name says."""
    WRITE_CALLS_8K = auto()
    WRITE_CALLS_16K = auto()
    WRITE_CALLS_32K = auto()
    WRITE_CALLS_64K = auto()
    WRITE_CALLS_128K = auto()
    WRITE_CALLS_256K = auto()
    WRITE_CALLS_512K = auto()
    WRITE_CALLS_1024K = auto()
    SHORT_REPLIES = auto()
    SERVER_RETRIES = auto()
    """Replies that meant: try again (JUKEBOX, SYSTEM_ERR, UNSTABLE, ...)."""
    SERVER_ERRORS = auto()
    UNKNOWN_REPLIES = auto()
    BAD_RECORDS = auto()
    COVERED_READS = auto()
    """Reads answered from an unfinished write."""
    MERGED = auto()
    """Requests that travelled in another request's call."""
    CALLS_IN_FLIGHT = auto()
    CALLS_IN_FLIGHT_HIGH = auto()
    SLOTS = auto()
    REQUESTS = auto()
    REQUESTS_HIGH = auto()
    REQUESTS_MAX = auto()
    RESERVE_PAGES = auto()
    RESERVE_PAGES_USED = auto()
    RESERVE_PAGES_HIGH = auto()
    RESERVE_FULL = auto()
    """How often the engine stopped reading /dev/fuse because the reserve or the requests were used up."""
    MEMORY_LOCKED = auto()
    IO_FLUSHER = auto()
    OOM_PROTECTED = auto()
    REALTIME = auto()
    LOG_SEQUENCE = auto()
    """Log records ever written."""
    TRACE = auto()
    """The one word that others store: not 0 asks the engine to trace each request."""
    TRACE_SEQUENCE = auto()
    """Trace records ever written."""


class Stage(IntEnum):
    """Where a request is on its way: the top two bits of a trace record's length; the third says WRITE."""

    ARRIVED = 0
    """Read from /dev/fuse."""
    SENT = 1
    """Its call has been handed to the connection."""
    REPLIED = 2
    """The server's reply has been read, or an unfinished write covers the read."""
    ANSWERED = 3
    """The answer has been written to /dev/fuse."""


@frozen
class LogRecord:
    """One line of the engine's log."""

    sequence: int
    time_ns: int
    level: Level
    text: str


@frozen
class TraceRecord:
    """One stage of one request. `xid` is that of its call: equal for requests that travel together."""

    sequence: int
    time_ns: int
    stage: Stage
    unique: int
    is_write: bool
    offset: int
    length: int
    xid: int


class Counters:
    """A view of a counters file of at least COUNTERS_BYTES bytes; writable if the buffer is."""

    def __init__(self, buffer: Any) -> None:
        view = memoryview(buffer).cast("B")
        if len(view) < COUNTERS_BYTES:
            raise ValueError(f"counters file has {len(view)} bytes, not {COUNTERS_BYTES}")
        self._bytes = view
        self.words = view[8:IDENTITY_OFFSET].cast("Q")

    def initialize(self, identity: dict[str, Any]) -> None:
        """Write identity and magic; the magic comes last, so that a reader sees all or nothing."""
        text = json.dumps(identity).encode()
        if len(text) > LOG_OFFSET - IDENTITY_OFFSET - _LENGTH.size:
            raise ValueError(f"identity of {len(text)} bytes is too long")
        _LENGTH.pack_into(self._bytes, IDENTITY_OFFSET, len(text))
        start = IDENTITY_OFFSET + _LENGTH.size
        self._bytes[start : start + len(text)] = text
        self._bytes[:8] = MAGIC

    def identity(self) -> dict[str, Any]:
        """What `initialize` wrote. ValueError if this is not a counters file."""
        if bytes(self._bytes[:8]) != MAGIC:
            raise ValueError("not a counters file of this version")
        (length,) = _LENGTH.unpack_from(self._bytes, IDENTITY_OFFSET)
        start = IDENTITY_OFFSET + _LENGTH.size
        identity = json.loads(bytes(self._bytes[start : min(start + length, LOG_OFFSET)]))
        if not isinstance(identity, dict):
            raise ValueError("the identity in the counters file is not an object")
        return identity

    def snapshot(self) -> dict[str, int]:
        """All words by their lower-case names."""
        return {word.name.lower(): self.words[word] for word in Word}

    def log(self, level: Level, time_ns: int, text: str) -> None:
        """Append a record; text beyond LOG_TEXT_BYTES is cut."""
        sequence = self.words[Word.LOG_SEQUENCE]
        start = LOG_OFFSET + sequence % LOG_RECORDS * LOG_RECORD_BYTES
        data = text.encode()[:LOG_TEXT_BYTES]
        _LENGTH.pack_into(self._bytes, start, 0)
        _RECORD.pack_into(self._bytes, start, 0, time_ns, level, len(data))
        self._bytes[start + _RECORD.size : start + _RECORD.size + len(data)] = data
        _LENGTH.pack_into(self._bytes, start, sequence + 1)
        self.words[Word.LOG_SEQUENCE] = sequence + 1

    def log_since(self, sequence: int) -> Iterator[LogRecord]:
        """Records after the first `sequence` ones, oldest first, as far as the ring still has them."""
        newest = self.words[Word.LOG_SEQUENCE]
        for number in range(max(sequence, newest - LOG_RECORDS), newest):
            start = LOG_OFFSET + number % LOG_RECORDS * LOG_RECORD_BYTES
            stored, time_ns, level, length = _RECORD.unpack_from(self._bytes, start)
            data = bytes(self._bytes[start + _RECORD.size : start + _RECORD.size + min(length, LOG_TEXT_BYTES)])
            if stored == number + 1 and _LENGTH.unpack_from(self._bytes, start)[0] == stored:
                yield LogRecord(number, time_ns, Level(level), data.decode(errors="replace"))

    def trace(self, stage: int, time_ns: int, unique: int, is_write: bool, offset: int, length: int, xid: int) -> None:
        """Append a trace record."""
        sequence = self.words[Word.TRACE_SEQUENCE]
        start = TRACE_OFFSET + sequence % TRACE_RECORDS * _TRACE.size
        packed = length | stage << 30 | is_write << 29
        _TRACE.pack_into(self._bytes, start, 0, time_ns, unique, offset, packed, xid)
        _LENGTH.pack_into(self._bytes, start, sequence + 1)
        self.words[Word.TRACE_SEQUENCE] = sequence + 1

    def trace_since(self, sequence: int) -> Iterator[TraceRecord]:
        """Records after the first `sequence` ones, oldest first, as far as the ring still has them."""
        newest = self.words[Word.TRACE_SEQUENCE]
        for number in range(max(sequence, newest - TRACE_RECORDS), newest):
            start = TRACE_OFFSET + number % TRACE_RECORDS * _TRACE.size
            stored, time_ns, unique, offset, packed, xid = _TRACE.unpack_from(self._bytes, start)
            if stored == number + 1 and _LENGTH.unpack_from(self._bytes, start)[0] == stored:
                length, is_write = packed & (1 << 29) - 1, bool(packed >> 29 & 1)
                yield TraceRecord(number, time_ns, Stage(packed >> 30), unique, is_write, offset, length, xid)

    def close(self) -> None:
        """Let go of the buffer, so that its mapping can be closed."""
        self.words.release()
        self._bytes.release()
