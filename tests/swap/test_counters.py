"""The counters file: words, identity, and rings that a reader may look at while they are written."""

import json
import mmap
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuseswap.swap.counters import (
    COUNTERS_BYTES,
    IDENTITY_OFFSET,
    LOG_OFFSET,
    LOG_RECORD_BYTES,
    LOG_RECORDS,
    LOG_TEXT_BYTES,
    TRACE_OFFSET,
    TRACE_RECORDS,
    Counters,
    Level,
    LogRecord,
    Stage,
    TraceRecord,
    Word,
)

WORD64 = st.integers(0, 2**64 - 1)


def fresh() -> Counters:
    return Counters(bytearray(COUNTERS_BYTES))


@given(values=st.dictionaries(st.sampled_from(Word), WORD64))
def test_words_are_eight_bytes_each_behind_the_magic(values: dict[Word, int]) -> None:
    data = bytearray(COUNTERS_BYTES)
    counters = Counters(data)
    counters.initialize({})
    for word, value in values.items():
        counters.words[word] = value

    assert data[:8] == b"FUSESWP1"
    assert struct.unpack_from(f"<{len(Word)}Q", data, 8) == tuple(values.get(word, 0) for word in Word)
    assert counters.snapshot() == {word.name.lower(): values.get(word, 0) for word in Word}


def test_the_parts_of_the_file_do_not_overlap() -> None:
    assert 8 + 8 * len(Word) <= IDENTITY_OFFSET < LOG_OFFSET
    assert LOG_OFFSET + LOG_RECORDS * LOG_RECORD_BYTES == TRACE_OFFSET
    assert TRACE_OFFSET + TRACE_RECORDS * 40 == COUNTERS_BYTES


@given(identity=st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=5))
def test_the_identity_is_read_back(identity: dict[str, object]) -> None:
    counters = fresh()
    counters.initialize(identity)

    assert counters.identity() == identity


def test_an_identity_fits_or_is_refused_whole() -> None:
    room = LOG_OFFSET - IDENTITY_OFFSET - 8 - len('{"a": ""}')
    counters = fresh()
    counters.initialize({"a": "x" * room})
    assert counters.identity() == {"a": "x" * room}

    counters = fresh()
    with pytest.raises(ValueError, match="too long"):
        counters.initialize({"a": "x" * (room + 1)})
    with pytest.raises(ValueError, match="not a counters file"):
        counters.identity()


@pytest.mark.parametrize("size", [0, 4096, COUNTERS_BYTES - 1])
def test_a_file_too_short_is_none(size: int) -> None:
    with pytest.raises(ValueError, match=f"has {size} bytes"):
        Counters(bytes(size))


@given(noise=st.binary(max_size=64))
def test_an_identity_of_noise_is_a_value_error(noise: bytes) -> None:
    data = bytearray(COUNTERS_BYTES)
    data[:8] = b"FUSESWP1"
    data[IDENTITY_OFFSET : IDENTITY_OFFSET + len(noise)] = noise
    try:
        Counters(data).identity()
    except ValueError:
        return
    assert isinstance(json.loads(noise[8 : 8 + struct.unpack_from("<Q", noise)[0]]), dict)


# --- the log ring ---


@given(texts=st.lists(st.text(max_size=300), max_size=20), levels=st.data(), since=st.integers(0, 25))
def test_log_records_are_read_back_in_order(texts: list[str], levels: st.DataObject, since: int) -> None:
    counters = fresh()
    wanted = []
    for number, text in enumerate(texts):
        level = levels.draw(st.sampled_from(Level))
        counters.log(level, 1000 + number, text)
        shown = text.encode()[:LOG_TEXT_BYTES].decode(errors="replace")
        wanted.append(LogRecord(number, 1000 + number, level, shown))

    assert list(counters.log_since(since)) == wanted[since:]
    assert counters.words[Word.LOG_SEQUENCE] == len(texts)


@given(count=st.integers(0, 3 * LOG_RECORDS), since=st.integers(0, 3 * LOG_RECORDS))
@settings(max_examples=40)
def test_the_log_keeps_the_newest(count: int, since: int) -> None:
    counters = fresh()
    for number in range(count):
        counters.log(Level.INFO, number, f"record {number}")

    numbers = [record.sequence for record in counters.log_since(since)]
    assert numbers == list(range(max(since, count - LOG_RECORDS), count))


def test_a_text_is_cut_inside_a_character_without_harm() -> None:
    counters = fresh()
    counters.log(Level.ERROR, 1, "x" * (LOG_TEXT_BYTES - 1) + "é")

    (record,) = counters.log_since(0)
    assert record.text == "x" * (LOG_TEXT_BYTES - 1) + "\N{REPLACEMENT CHARACTER}"


@given(position=st.integers(0, LOG_RECORDS - 1), stored=WORD64)
@settings(max_examples=50)
def test_a_torn_record_is_passed_over(position: int, stored: int) -> None:
    data = bytearray(COUNTERS_BYTES)
    counters = Counters(data)
    for number in range(LOG_RECORDS):
        counters.log(Level.INFO, number, "whole")
    struct.pack_into("<Q", data, LOG_OFFSET + position * LOG_RECORD_BYTES, stored)

    wanted = [number for number in range(LOG_RECORDS) if number != position or stored == position + 1]
    assert [record.sequence for record in counters.log_since(0)] == wanted


def test_a_reader_beside_the_writer_sees_whole_records_only(tmp_path: Path) -> None:
    path = tmp_path / "counters"
    path.write_bytes(bytes(COUNTERS_BYTES))
    with path.open("r+b") as file:
        writing = Counters(mmap.mmap(file.fileno(), 0))
        reading = Counters(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    total = 20 * LOG_RECORDS

    def write() -> None:
        for number in range(total):
            writing.log(Level.INFO, number, f"{number} " * (number % 40 + 1))

    thread = threading.Thread(target=write)
    thread.start()
    seen = 0
    while seen < total:
        for record in reading.log_since(seen):
            assert record.sequence >= seen
            assert record.time_ns == record.sequence
            cut = (f"{record.sequence} " * (record.sequence % 40 + 1))[:LOG_TEXT_BYTES]
            assert record.text == cut
            seen = record.sequence + 1
    thread.join()


# --- the trace ring ---


@given(
    records=st.lists(
        st.tuples(
            st.sampled_from(Stage),
            WORD64,
            WORD64,
            st.booleans(),
            WORD64,
            st.integers(0, 2**29 - 1),
            st.integers(0, 2**32 - 1),
        ),
        max_size=10,
    )
)
def test_trace_records_are_read_back(records: list[tuple[Stage, int, int, bool, int, int, int]]) -> None:
    counters = fresh()
    for record in records:
        counters.trace(*record)

    assert list(counters.trace_since(0)) == [
        TraceRecord(number, time_ns, stage, unique, is_write, offset, length, xid)
        for number, (stage, time_ns, unique, is_write, offset, length, xid) in enumerate(records)
    ]


def test_the_trace_keeps_the_newest() -> None:
    counters = fresh()
    for number in range(TRACE_RECORDS + 7):
        counters.trace(Stage.SENT, number, 0, False, 0, 4096, 0)

    assert [record.time_ns for record in counters.trace_since(0)] == list(range(7, TRACE_RECORDS + 7))
    assert [record.sequence for record in counters.trace_since(TRACE_RECORDS)] == list(
        range(TRACE_RECORDS, TRACE_RECORDS + 7)
    )


def test_closing_lets_go_of_the_mapping(tmp_path: Path) -> None:
    path = tmp_path / "counters"
    path.write_bytes(bytes(COUNTERS_BYTES))
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    counters = Counters(mapping)
    counters.close()

    mapping.close()
