"""`trace`: journeys put together from any records, and a real page's way."""

import json
import mmap
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseswap.cli.trace import Assembler, Journey, Leg, journey_text
from fuseswap.engine.launch import launch
from fuseswap.host import rundir
from fuseswap.swap.counters import COUNTERS_BYTES, TRACE_RECORDS, Counters, Stage, TraceRecord, Word
from fuseswap.swap.target import Activation, MemoryTarget
from fuseswap.swap.units import PAGE_SIZE
from tests.cli.command import finish, fuseswap, start
from tests.kit.rescue import Leftovers
from tests.kit.wait import wait_until

PAGES = 64


def records(*stages: tuple[Stage, int, int]) -> Iterator[TraceRecord]:
    """(stage, unique, xid) at times 1000, 2000, ...; unique n is a WRITE of page n."""
    for number, (stage, unique, xid) in enumerate(stages):
        yield TraceRecord(number, 1000 * (number + 1), stage, unique, True, unique * PAGE_SIZE, PAGE_SIZE, xid)


def test_two_requests_in_one_call_and_one_alone() -> None:
    assembler = Assembler()
    journeys = list(
        assembler.feed(
            records(
                (Stage.ARRIVED, 1, 0),
                (Stage.ARRIVED, 2, 0),
                (Stage.SENT, 1, 70),
                (Stage.SENT, 2, 70),
                (Stage.ARRIVED, 3, 0),
                (Stage.SENT, 3, 71),
                (Stage.REPLIED, 1, 0),
                (Stage.ANSWERED, 1, 0),
                (Stage.REPLIED, 2, 0),
                (Stage.ANSWERED, 2, 0),
                (Stage.REPLIED, 3, 0),
                (Stage.ANSWERED, 3, 0),
            )
        )
    )
    assert [(journey.unique, journey.legs) for journey in journeys] == [
        (1, (Leg(70, 3000, (2,)),)),
        (2, (Leg(70, 4000, (1,)),)),
        (3, (Leg(71, 6000, ()),)),
    ]
    first = journeys[0]
    assert (first.queued_ns, first.server_ns, first.answer_ns, first.total_ns) == (2000, 4000, 1000, 7000)
    assert (assembler.lost_records, assembler.unknown_requests) == (0, 0)


def test_a_covered_read_and_a_request_in_parts() -> None:
    covered, parts = Assembler().feed(
        records(
            (Stage.ARRIVED, 1, 0),
            (Stage.REPLIED, 1, 0),
            (Stage.ANSWERED, 1, 0),
            (Stage.ARRIVED, 2, 0),
            (Stage.SENT, 2, 5),
            (Stage.SENT, 2, 6),
            (Stage.REPLIED, 2, 0),
            (Stage.ANSWERED, 2, 0),
        )
    )
    assert (covered.legs, covered.server_ns) == ((), 0)
    assert "unfinished writes cover it" in journey_text(covered, 0)
    assert [leg.xid for leg in parts.legs] == [5, 6]
    assert journey_text(parts, 0).endswith("00000005, 00000006")


def test_what_began_before_the_trace_is_counted() -> None:
    assembler = Assembler()
    assert not list(assembler.feed(records((Stage.REPLIED, 9, 0), (Stage.ANSWERED, 9, 0))))
    assert assembler.unknown_requests == 1


def test_records_that_come_twice_count_once() -> None:
    """A reader may be given more than it knew of, and ask for that again."""
    once = list(records((Stage.ARRIVED, 1, 0), (Stage.SENT, 1, 7), (Stage.REPLIED, 1, 0), (Stage.ANSWERED, 1, 0)))
    assembler = Assembler()
    (journey,) = assembler.feed([*once, *once, *once[2:]])
    assert journey.legs == (Leg(7, 2000, ()),)
    assert (assembler.next_sequence, assembler.lost_records, assembler.unknown_requests) == (4, 0, 0)


def test_a_ring_that_overtakes_its_reader() -> None:
    with mmap.mmap(-1, COUNTERS_BYTES) as memory:
        counters = Counters(memory)
        assembler = Assembler()
        counters.trace(Stage.ARRIVED, 1, 1, True, 0, PAGE_SIZE, 0)
        assert not list(assembler.feed(counters.trace_since(0)))
        for number in range(TRACE_RECORDS + 9):
            counters.trace(Stage.REPLIED, 2 + number, 1, True, 0, PAGE_SIZE, 0)
        assert not list(assembler.feed(counters.trace_since(1)))
        assert assembler.lost_records == 9
        counters.close()


@given(
    st.lists(
        st.tuples(st.sampled_from(Stage), st.integers(1, 4), st.integers(0, 2)),
        max_size=60,
    )
)
def test_any_records(stages: list[tuple[Stage, int, int]]) -> None:
    """Whatever a ring may hold: no answer is reported twice, and each has seen its arrival."""
    assembler = Assembler()
    journeys = list(assembler.feed(records(*stages)))
    answered = sum(stage is Stage.ANSWERED for stage, _, _ in stages)
    assert len(journeys) + assembler.unknown_requests == answered
    for journey in journeys:
        assert journey.arrived_ns < journey.answered_ns
        assert journey.total_ns == journey.answered_ns - journey.arrived_ns
        assert json.loads(json.dumps(journey.to_plain()))["unique"] == journey.unique
        assert journey_text(journey, 0)


# --- the command ---


@pytest.fixture
def name() -> Iterator[str]:
    """An engine that keeps its pages in memory, 2 ms for each call."""
    name = f"trace-{secrets.token_hex(4)}"
    launch(name, Activation(f"mem:{name}", PAGES * PAGE_SIZE, MemoryTarget(delay_us=2000)), reserve_bytes=1 << 20)
    yield name
    fuseswap("down", "--force", name)
    Leftovers.of(rundir.directory(name)).free()


@contextmanager
def file_of(name: str) -> Iterator[int]:
    descriptor = os.open(rundir.engine_file(name), os.O_RDWR | os.O_DIRECT)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_traced(name: str) -> bool:
    snapshot = rundir.read_counters(name)
    assert snapshot is not None
    return bool(snapshot.words[Word.TRACE.name.lower()])


def journeys_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_a_page_out_and_in(name: str) -> None:
    process = start("trace", name, "--seconds", "2", "--json")
    wait_until(lambda: is_traced(name), seconds=10, what="the trace")
    with file_of(name) as file, mmap.mmap(-1, 2 * PAGE_SIZE) as page:
        begin = time.monotonic_ns()
        os.pwritev(file, [page], 3 * PAGE_SIZE)
        os.preadv(file, [page], 3 * PAGE_SIZE)
        end = time.monotonic_ns()
    result = finish(process)

    assert (result.code, result.errors) == (0, "")
    write, read = journeys_of(result.output)
    assert (write["kind"], write["offset"], write["length"]) == ("WRITE", 3 * PAGE_SIZE, 2 * PAGE_SIZE)
    assert (read["kind"], read["offset"], read["length"]) == ("READ", 3 * PAGE_SIZE, 2 * PAGE_SIZE)
    for journey in (write, read):
        (call,) = journey["calls"]
        times = [begin, journey["arrived_ns"], call["sent_ns"], journey["replied_ns"], journey["answered_ns"]]
        assert times == sorted(times)
        # Who is answered may go on before the engine has looked at the clock again.
        assert journey["replied_ns"] <= end
        assert times[3] - times[2] >= 2_000_000
    assert not is_traced(name)


def test_ctrl_c_ends_it_well(name: str) -> None:
    process = start("trace", name)
    wait_until(lambda: is_traced(name), seconds=10, what="the trace")
    with file_of(name) as file, mmap.mmap(-1, PAGE_SIZE) as page:
        os.pwritev(file, [page], 0)
        assert process.stdout is not None
        title = process.stdout.readline()
        line = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert (result.code, result.errors) == (0, "")
    assert title.split()[:4] == ["ARRIVED", "S", "WHAT", "PAGE"]
    assert line.split()[1:4] == ["WRITE", "0", "1"]
    assert not is_traced(name)


def test_one_reader_at_a_time_and_a_killed_one_bars_nobody(name: str) -> None:
    first = start("trace", name)
    wait_until(lambda: is_traced(name), seconds=10, what="the trace")
    second = fuseswap("trace", name, "--seconds", "1")
    assert second.code == 1
    assert "being traced already" in second.line
    first.kill()
    finish(first)
    third = fuseswap("trace", name, "--seconds", "1")
    assert (third.code, third.errors) == (0, "")
    assert "nothing was swapped" in third.output
    assert not is_traced(name)


def test_an_engine_that_ends_meanwhile(name: str) -> None:
    process = start("trace", name)
    wait_until(lambda: is_traced(name), seconds=10, what="the trace")
    fuseswap("down", "--force", name)
    result = finish(process)
    assert result.code == 1
    assert "has ended" in result.line


def test_a_name_that_is_not_up() -> None:
    result = fuseswap("trace", "nobody-has-this-name")
    assert result.code == 1
    assert "is not up" in result.line


def test_merged_journeys_read_well() -> None:
    legs = (Leg(0x1234, 2_000_000, (2, 3)),)
    line = journey_text(Journey(1, False, 8 * PAGE_SIZE, 8 * PAGE_SIZE, 1_500_000, legs, 2_300_000, 2_310_000), 0)
    assert line.split() == ["0.001500", "READ", "8", "8", "500", "300", "10", "810", "00001234", "with", "2", "others"]
