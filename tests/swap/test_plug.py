"""The plug's rules one by one, as short stories. `W(2, 3)` is a WRITE of three pages from page 2."""

import gc
import sys
from errno import EIO, ENOSPC

import pytest

from fuseswap.swap.plug import Plug
from fuseswap.swap.requests import Call, Request
from tests.kit.fields import fields
from tests.swap.plug_model import GARBAGE, PAGE, World, check_queue, page_of


@pytest.fixture
def plug_class():
    return Plug


def W(page, pages=1):
    return Request(0, True, page * PAGE, pages * PAGE, memoryview(bytearray(pages * PAGE)))


def R(page, pages=1):
    return Request(0, False, page * PAGE, pages * PAGE, memoryview(bytearray(GARBAGE * pages)))


def pump(plug):
    calls = []
    while (call := plug.next_call()) is not None:
        calls.append(call)
        check_queue(plug)
    return calls


def busy(plug_class, slots=1, pages_max=16):
    """A plug whose slots are all taken by reads far away, and their calls."""
    plug = plug_class(slots, pages_max * PAGE, pages_max * PAGE)
    for slot in range(slots):
        plug.submit(R(1000 + 2 * slot))
    return plug, pump(plug)


def submit(plug, *requests):
    for request in requests:
        plug.submit(request)
        check_queue(plug)
    return requests


def answer(plug, call, count=None, eof=False):
    count = call.length if count is None else count
    if call.is_write:
        return plug.wrote(call, count)
    return plug.fetched(call, memoryview(bytes(count)), eof)


def drain(plug, calls=()):
    """Answer all, the oldest first. Returns the calls in the order of leaving."""
    left = []
    calls = list(calls)
    while calls := calls + pump(plug):
        left.append(calls.pop(0))
        answer(plug, left[-1])
    assert plug.statistics().unfinished_requests == 0
    return left


def spans(calls):
    return [(call.offset // PAGE, call.length // PAGE) for call in calls]


# Leaving and merging


def test_a_lone_request_leaves_at_once(plug_class):
    plug = plug_class(2, PAGE, PAGE)
    (write,) = submit(plug, W(5))
    call = plug.next_call()
    assert call.requests == [write] and call.is_write and spans([call]) == [(5, 1)]
    assert plug.next_call() is None and list(plug.in_flight) == [call]
    assert plug.wrote(call, PAGE) == [write] and write.error == 0
    assert not plug.in_flight


def test_no_more_calls_than_slots_and_never_a_free_slot_while_something_waits(plug_class):
    plug = plug_class(3, PAGE, PAGE)
    submit(plug, *[W(2 * index) for index in range(5)])
    first = pump(plug)
    assert len(first) == 3
    assert answer(plug, first[1]) and len(pump(plug)) == 1
    assert answer(plug, first[0]) and len(pump(plug)) == 1
    assert plug.statistics().in_flight_calls_max == 3
    assert plug.statistics().queued_calls_max == 5 and plug.statistics().queued_calls == 0


@pytest.mark.parametrize("kind", [R, W])
def test_neighbours_of_one_batch_merge_though_slots_are_free(plug_class, kind):
    plug = plug_class(4, 16 * PAGE, 16 * PAGE)
    submit(plug, kind(4), kind(5), kind(3), kind(8, 2))
    assert spans(pump(plug)) == [(3, 3), (8, 2)]


@pytest.mark.parametrize("kind", [R, W])
def test_a_request_that_closes_a_gap_joins_two_calls_at_the_place_of_the_older(plug_class, kind):
    plug, sent = busy(plug_class)
    a, far, b, gap = submit(plug, kind(10, 2), kind(50), kind(13), kind(12))
    assert plug.statistics().joined == plug.statistics().merged == 1 and plug.statistics().queued_calls == 2
    calls = drain(plug, sent)
    assert spans(calls[1:]) == [(10, 4), (50, 1)]
    assert calls[1].requests == [a, gap, b] and calls[2].requests == [far]


def test_the_joined_call_grows_on_at_both_ends(plug_class):
    plug, sent = busy(plug_class)
    submit(plug, W(10), W(12), W(11), W(13), W(9))
    assert spans(drain(plug, sent)[1:]) == [(9, 5)]


def test_the_older_call_keeps_its_place_when_it_is_the_one_behind_the_gap(plug_class):
    plug, sent = busy(plug_class)
    submit(plug, W(13), W(50), W(11), W(12))
    assert spans(drain(plug, sent)[1:]) == [(11, 3), (50, 1)]


def test_merging_stops_at_the_limits(plug_class):
    plug = plug_class(1, 3 * PAGE, 2 * PAGE)
    submit(plug, *[R(page) for page in range(7)], *[W(page) for page in range(20, 25)])
    assert spans(drain(plug)) == [(0, 3), (3, 3), (6, 1), (20, 2), (22, 2), (24, 1)]


def test_a_call_joins_in_front_when_the_one_before_is_full(plug_class):
    plug, sent = busy(plug_class, pages_max=3)
    submit(plug, W(0, 3), W(4), W(3))
    assert spans(drain(plug, sent)[1:]) == [(0, 3), (3, 2)]


def test_a_limit_that_is_not_whole_pages_is_rounded_down(plug_class):
    plug = plug_class(1, 2 * PAGE - 1, 3 * PAGE - 512)
    submit(plug, R(0), R(1), W(10), W(11), W(12), R(20, 2))
    assert spans(drain(plug)) == [(0, 1), (1, 1), (10, 2), (12, 1), (20, 1), (21, 1)]


def test_reads_and_writes_do_not_share_a_call(plug_class):
    plug = plug_class(1, 16 * PAGE, 16 * PAGE)
    submit(plug, R(0), W(1), R(2))
    assert len(drain(plug)) == 3


def test_a_call_in_flight_does_not_grow(plug_class):
    plug, _ = busy(plug_class, slots=2)
    plug.limit(3)
    submit(plug, W(5))
    (call,) = pump(plug)
    submit(plug, W(6), W(4))
    assert spans([call]) == [(5, 1)] and plug.statistics().queued_calls == 2


def test_two_reads_of_one_page_do_not_confuse_the_merging(plug_class):
    plug, sent = busy(plug_class)
    submit(plug, R(5), R(5))
    answer(plug, sent[0])
    (first,) = pump(plug)
    submit(plug, R(4), R(6))
    answer(plug, first)
    assert spans(pump(plug)) == [(4, 3)]


def test_merging_copies_nothing(plug_class):
    plug = plug_class(1, 16 * PAGE, 16 * PAGE)
    writes = submit(plug, W(1), W(2, 2), W(0))
    call = plug.next_call()
    pieces = call.payload()
    assert [piece.obj for piece in pieces] == [write.memory.obj for write in (writes[2], *writes[:2])]
    assert sum(map(len, pieces)) == call.length


def test_256_pages_become_one_call(plug_class):
    plug = plug_class(1, 1 << 20, 1 << 20)
    writes = submit(plug, *[W(page) for page in range(257)])
    assert spans(pump(plug)) == [(0, 256)]
    assert answer(plug, next(iter(plug.in_flight))) == list(writes[:256])
    assert spans(drain(plug)) == [(256, 1)]


# FIFO


def test_calls_leave_in_the_order_of_their_oldest_request(plug_class):
    plug, sent = busy(plug_class)
    submit(plug, W(10), R(20), W(30), R(21), W(11), R(40), W(9))
    assert spans(drain(plug, sent)[1:]) == [(9, 3), (20, 2), (30, 1), (40, 1)]


def test_a_request_waits_for_no_more_calls_than_were_queued(plug_class):
    plug, sent = busy(plug_class, slots=2)
    submit(plug, *[W(10 * index) for index in range(1, 9)])
    ahead = plug.statistics().queued_calls
    (late,) = submit(plug, R(500))
    for index in range(200):  # a flood of younger requests, next to older ones and elsewhere
        submit(plug, W(10 * (1 + index % 8) + 1 + index // 8) if index < 64 else W(2000 + 2 * index))
    left = 0
    while True:
        answer(plug, sent.pop(0))
        (call,) = pump(plug)
        sent.append(call)
        if late in call.requests:
            break
        left += 1
    assert left <= ahead == 8


def test_the_rest_of_a_short_call_stands_where_its_own_oldest_request_stands(plug_class):
    plug, sent = busy(plug_class)
    submit(plug, W(5), R(100), R(200), W(6))
    answer(plug, sent[0])
    (shared,) = pump(plug)
    answer(plug, shared, PAGE)
    assert spans(drain(plug)) == [(100, 1), (200, 1), (6, 1)]


def test_an_old_request_in_the_rest_brings_it_to_the_front(plug_class):
    plug, sent = busy(plug_class)
    submit(plug, W(6), R(100), W(5))
    answer(plug, sent[0])
    (shared,) = pump(plug)
    answer(plug, shared, PAGE // 2)
    rest, other = drain(plug)
    assert (rest.offset, rest.length) == (5 * PAGE + PAGE // 2, PAGE + PAGE // 2)
    assert other.offset == 100 * PAGE


# Overlap


def test_overlapping_writes_are_sent_one_after_the_other(plug_class):
    plug = plug_class(4, 16 * PAGE, 16 * PAGE)
    submit(plug, W(0, 2), W(1, 2), W(0), W(2))
    for expected in ([(0, 2)], [(0, 3)], [(2, 1)]):
        calls = pump(plug)
        assert spans(calls) == expected
        for call in calls:
            answer(plug, call)


def test_a_write_waits_for_each_write_it_overlaps(plug_class):
    plug = plug_class(4, PAGE, PAGE)
    submit(plug, W(0), W(1), W(0, 2))
    first, second = pump(plug)
    answer(plug, second)
    assert not pump(plug)
    answer(plug, first)
    assert spans(drain(plug)) == [(0, 1), (1, 1)]


def test_a_failed_write_lets_the_next_one_go(plug_class):
    plug = plug_class(4, PAGE, PAGE)
    first, _ = submit(plug, W(0), W(0))
    assert plug.failed(plug.next_call(), ENOSPC) == [first] and first.error == ENOSPC
    assert spans(drain(plug)) == [(0, 1)]


def test_a_blocked_request_delays_nobody(plug_class):
    plug = plug_class(2, 16 * PAGE, 16 * PAGE)
    submit(plug, W(0))
    (held,) = pump(plug)
    submit(plug, W(0), R(0, 2), W(9), R(8))
    for _ in range(2):
        (call,) = pump(plug)
        answer(plug, call)
    assert not pump(plug)
    assert plug.statistics().blocked_requests == plug.statistics().blocked_ever == 2
    answer(plug, held)
    assert len(drain(plug)) == 2


def test_writes_set_free_together_merge(plug_class):
    plug = plug_class(1, 16 * PAGE, 16 * PAGE)
    submit(plug, W(0, 4))
    call = plug.next_call()
    submit(plug, *[W(page) for page in range(4)])
    answer(plug, call)
    assert spans(drain(plug)) == [(0, 4)]


def test_a_write_set_free_brings_its_own_place_to_the_call_it_joins(plug_class):
    plug = plug_class(1, 16 * PAGE, 16 * PAGE)
    submit(plug, W(0))
    call = plug.next_call()
    submit(plug, W(0), R(50), W(1))
    answer(plug, call)
    assert spans(drain(plug)) == [(0, 2), (50, 1)]


def test_a_covered_read_is_answered_from_the_latest_writes_without_a_call(plug_class):
    plug = plug_class(1, 16 * PAGE, 16 * PAGE)
    old, new, read = W(2, 4), W(3), R(2, 3)
    old.memory[:] = b"".join(page_of(1, page) for page in range(2, 6))
    new.memory[:] = page_of(2, 3)
    submit(plug, old, new)
    pump(plug)
    assert plug.submit(read) is True
    assert [piece.obj for piece in read.pieces] == [old.memory.obj, new.memory.obj, old.memory.obj]
    assert b"".join(read.pieces) == page_of(1, 2) + page_of(2, 3) + page_of(1, 4)
    assert plug.statistics().covered_reads == 1 and plug.statistics().unfinished_requests == 2


def test_a_read_that_is_covered_in_part_waits_then_asks_the_server(plug_class):
    plug = plug_class(2, 16 * PAGE, 16 * PAGE)
    submit(plug, W(0))
    (call,) = pump(plug)
    assert plug.submit(R(0, 2)) is False
    assert not pump(plug)
    submit(plug, W(0))  # younger: the read does not wait for it
    answer(plug, call)
    assert spans(pump(plug)) == [(0, 2), (0, 1)]


def test_a_write_does_not_wait_for_a_read(plug_class):
    plug = plug_class(2, 16 * PAGE, 16 * PAGE)
    submit(plug, R(0), W(0))
    assert len(pump(plug)) == 2


# Verdicts


@pytest.mark.parametrize("kind", [R, W])
def test_a_shared_error_is_judged_request_by_request(plug_class, kind):
    plug = plug_class(4, 16 * PAGE, 16 * PAGE)
    requests = submit(plug, kind(0), kind(1), kind(2))
    assert plug.failed(plug.next_call(), ENOSPC) == []
    submit(plug, kind(3))  # does not join those on trial
    calls = pump(plug)
    assert spans(calls) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    answer(plug, calls[0])
    assert plug.failed(calls[1], ENOSPC) == [requests[1]]
    answer(plug, calls[2])
    assert [request.error for request in requests] == [0, ENOSPC, 0]
    assert plug.statistics().split_calls == 1


def test_a_short_write_finishes_what_it_covers_and_goes_on_with_the_rest(plug_class):
    plug = plug_class(4, 16 * PAGE, 16 * PAGE)
    first, second, third = submit(plug, W(0), W(1), W(2))
    assert plug.wrote(plug.next_call(), PAGE + 100) == [first]
    (rest,) = pump(plug)
    assert (rest.offset, rest.length, rest.requests) == (PAGE + 100, 2 * PAGE - 100, [second, third])
    assert list(map(len, rest.payload())) == [PAGE - 100, PAGE]
    submit(plug, W(3))
    assert plug.wrote(rest, 100) == []
    (rest,) = [call for call in pump(plug) if call.requests[0] is second]
    assert rest.offset == PAGE + 200 and plug.wrote(rest, rest.length) == [second, third]
    assert plug.statistics().short_replies == 2


def test_a_part_of_a_request_stable_and_the_rest_refused_is_an_error(plug_class):
    plug = plug_class(4, 16 * PAGE, 16 * PAGE)
    (write,) = submit(plug, W(0, 2))
    assert plug.wrote(plug.next_call(), PAGE) == []
    assert plug.failed(plug.next_call(), ENOSPC) == [write] and write.error == ENOSPC


def test_a_write_without_progress_is_an_error(plug_class):
    plug = plug_class(4, 16 * PAGE, 16 * PAGE)
    first, second = submit(plug, W(0), W(1))
    assert plug.wrote(plug.next_call(), 0) == []
    one, two = pump(plug)
    assert plug.wrote(one, 0) == [first] and first.error == EIO
    assert plug.wrote(two, PAGE) == [second] and second.error == 0


def test_reads_of_a_shared_call_get_their_slices_without_a_copy(plug_class):
    plug = plug_class(4, 16 * PAGE, 16 * PAGE)
    first, second = submit(plug, R(0), R(1, 2))
    data = page_of(1, 0) + page_of(1, 1) + page_of(1, 2)
    assert plug.fetched(plug.next_call(), memoryview(data), False) == [first, second]
    assert b"".join(first.pieces) == data[:PAGE] and b"".join(second.pieces) == data[PAGE:]
    assert first.pieces[0].obj is second.pieces[0].obj is data
    assert bytes(first.memory) == GARBAGE


def test_a_short_read_is_put_together_from_its_parts(plug_class):
    plug = plug_class(4, 16 * PAGE, 16 * PAGE)
    first, second = submit(plug, R(0), R(1))
    data = page_of(1, 0) + page_of(1, 1)
    room = bytearray(len(data))
    view = memoryview(room)

    def reply(start, stop):
        room[: stop - start] = data[start:stop]
        finished = plug.fetched(plug.next_call(), view[: stop - start], False)
        pieces = [b"".join(request.pieces) for request in finished]
        room[:] = bytes(len(room))
        return finished, pieces

    assert reply(0, PAGE + 8) == ([first], [data[:PAGE]])
    assert reply(PAGE + 8, PAGE + 520) == ([], [])
    assert reply(PAGE + 520, 2 * PAGE) == ([second], [data[PAGE:]])


@pytest.mark.parametrize("eof", [True, False])
def test_a_file_that_shrank_is_an_error_for_those_not_covered(plug_class, eof):
    plug = plug_class(4, 16 * PAGE, 16 * PAGE)
    first, second, third = submit(plug, R(0), R(1), R(2))
    if eof:
        assert answer(plug, plug.next_call(), PAGE + 512, eof=True) == [first, second, third]
    else:
        assert answer(plug, plug.next_call(), PAGE + 512) == [first]
        assert answer(plug, plug.next_call(), 0) == [second, third]
    assert [first.error, second.error, third.error] == [0, EIO, EIO]


def test_end_of_file_behind_the_range_is_no_error(plug_class):
    plug = plug_class(4, 16 * PAGE, 16 * PAGE)
    (read,) = submit(plug, R(0, 2))
    assert answer(plug, plug.next_call(), eof=True) == [read] and read.error == 0


@pytest.mark.parametrize("kind", [R, W])
def test_a_request_above_the_limit_travels_in_parts_and_holds_no_slot_between(plug_class, kind):
    plug = plug_class(1, 2 * PAGE, 2 * PAGE)
    big, small = submit(plug, kind(0, 5), kind(9))
    parts = []
    for _ in range(3):
        call = plug.next_call()
        assert plug.next_call() is None
        parts.append((call.offset // PAGE, call.length // PAGE))
        finished = answer(plug, call)
    assert parts == [(0, 2), (2, 2), (4, 1)] and finished == [big]
    assert answer(plug, plug.next_call()) == [small]
    assert plug.statistics().short_replies == 0


def test_slots_may_be_changed_while_calls_are_in_flight(plug_class):
    plug, sent = busy(plug_class, slots=3)
    submit(plug, W(0))
    plug.limit(1)
    for call in sent[:2]:
        answer(plug, call)
        assert plug.next_call() is None
    answer(plug, sent[2])
    assert plug.next_call() is not None


# Illegal calls


def fingerprint(plug):
    """Everything the plug knows, for comparison."""
    calls = [*plug._queue, *plug.in_flight]
    requests = {id(request): request for call in calls for request in call.requests}
    requests.update((id(request), request) for request in plug._writes.values())
    states = [[(name, getattr(r, name)) for name in fields(Request) if name != "memory"] for r in requests.values()]
    return (
        [(id(call), call.offset, call.length, call.sequence, list(map(id, call.requests))) for call in calls],
        [dict(index) for index in (*plug._starts, *plug._ends, plug._writes, plug.in_flight)],
        [[(name, repr(value)) for name, value in one] for one in states],
        plug._sequence,
        plug.statistics(),
    )


def refused(plug, function, *arguments):
    before = fingerprint(plug)
    with pytest.raises(ValueError):
        function(*arguments)
    assert fingerprint(plug) == before, "an illegal call changed something"


def test_illegal_calls_raise_and_change_nothing(plug_class):
    plug = plug_class(3, 4 * PAGE, 4 * PAGE)
    write, read, _, _ = submit(plug, W(0, 2), R(10, 2), W(0), R(1, 2))
    writing, reading = pump(plug)
    (queued,) = submit(plug, W(30))
    page = memoryview(bytes(5 * PAGE))
    stranger = Call(W(0), 0, PAGE)
    for call in (stranger, Call(R(0), 0, PAGE), plug._queue[0], reading):
        refused(plug, plug.wrote, call, PAGE)
    for call in (stranger, Call(R(0), 0, PAGE), plug._queue[0], writing):
        refused(plug, plug.fetched, call, page[:PAGE], False)
    for call in (stranger, plug._queue[0]):
        refused(plug, plug.failed, call, EIO)
    for count in (-1, 2 * PAGE + 1, 1 << 40):
        refused(plug, plug.wrote, writing, count)
    refused(plug, plug.fetched, reading, page[: 2 * PAGE + 1], False)
    refused(plug, plug.fetched, reading, page, True)
    for errno in (0, -EIO):
        refused(plug, plug.failed, writing, errno)
    for request in (write, read, queued):
        refused(plug, plug.submit, request)
    memory = memoryview(bytearray(PAGE))
    for offset, length in ((1, PAGE), (0, PAGE - 1), (0, 0), (0, -PAGE), (-PAGE, PAGE), (0, 2 * PAGE), (512, 3584)):
        for is_write in (False, True):
            refused(plug, plug.submit, Request(0, is_write, offset, length, memory))
    refused(plug, plug.submit, Request(0, True, 0, 0, memory[:0]))
    refused(plug, plug.limit, 0)
    answer(plug, writing)
    refused(plug, plug.wrote, writing, PAGE)
    answer(plug, reading)
    refused(plug, plug.fetched, reading, page[:PAGE], False)
    refused(plug, plug.failed, reading, EIO)
    drain(plug)


def test_limits_that_carry_no_page_are_refused(plug_class):
    for slots, read_bytes_max, write_bytes_max in ((0, PAGE, PAGE), (1, PAGE - 1, PAGE), (1, PAGE, PAGE - 1)):
        with pytest.raises(ValueError, match=r"slots|page"):
            plug_class(slots, read_bytes_max, write_bytes_max)


# Memory


def test_nothing_is_kept_and_no_cycle_is_left(plug_class):
    """The engine runs with the collector off: what is not freed by reference counts is a leak."""
    world = World(8, 2, 4, 4, plug_class)
    gc.collect()
    gc.disable()
    try:
        for round_number in range(400):
            if round_number == 100:
                blocks = sys.getallocatedblocks()
            for page in range(6):
                world.plug.submit(request := W(page, 1 + page % 3))
                world.plug.submit(R(page, 2))
            calls = []
            while calls := calls + pump(world.plug):
                call = calls.pop()
                if round_number % 7 == 0 and call.length > PAGE:
                    answer(world.plug, call, PAGE + 8)
                elif round_number % 5 == 0 and len(call.requests) > 1:
                    world.plug.failed(call, EIO)
                else:
                    answer(world.plug, call)
            assert sys.getrefcount(request) <= 3
        assert sys.getallocatedblocks() - blocks < 50
        assert gc.collect() == 0
    finally:
        gc.enable()
