"""The reserve: rules as stories, every small case, long walks, a hypothesis machine."""

import os
import sys
from collections import deque
from itertools import product
from random import Random, SystemRandom

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from fuseswap.swap.reserve import Reserve, reserve_pages, watermark_pages
from tests.kit.fields import fields
from tests.swap.reserve_model import ReserveWorld, walk

MIB = 1 << 20


@pytest.fixture
def reserve_class():
    return Reserve


def write(reserve, pages):
    assert reserve.landing() is not None
    return reserve.charge_write(pages)


def refused(reserve, function, *arguments):
    before = state(reserve)
    with pytest.raises(ValueError):
        function(*arguments)
    assert state(reserve) == before, "an illegal call changed something"


def state(reserve):
    return [(name, str(getattr(reserve, name))) for name in fields(type(reserve))]


def test_small_writes_cost_what_they_need(reserve_class):
    reserve = reserve_class(1024, 0, 256)
    extents = []
    while reserve.landing() is not None:
        extents.append(reserve.charge_write(1))
    assert len(extents) == 1024 - 255, "all but the last landing room"
    assert reserve.statistics().used_pages == reserve.statistics().used_pages_max == 769
    assert reserve.statistics().refused_landings == 1
    for extent in extents:
        reserve.release(extent)
    assert reserve.landing() == (0, 256)


def test_a_landing_room_costs_nothing_when_it_was_a_read(reserve_class):
    reserve = reserve_class(16, 4, 8)
    for _ in range(10):
        reserve.landing()
        extent = reserve.charge_read("a", 1)
        assert extent is not None and reserve.used_pages == 1
        reserve.release(extent)
    assert reserve.statistics().refused_landings == 0


def test_a_lone_request_gets_the_same_pages_again(reserve_class):
    reserve = reserve_class(1024, 256, 256)
    extents = set()
    for _ in range(5):
        extents.add(extent := write(reserve, 2))
        reserve.release(extent)
    assert extents == {(0, 2)}


def test_writes_may_use_what_reads_may_not(reserve_class):
    reserve = reserve_class(16, 8, 4)
    reads = [reserve.charge_read(name, 4) for name in "abc"]
    assert reads[0] and reads[1] and reads[2] is None
    writes = [write(reserve, 4), write(reserve, 4)]
    assert reserve.used_pages == 16 and reserve.landing() is None
    reserve.release(writes[0])
    assert reserve.next_ready() is None, "4 pages are free, and 8 are kept for writes"
    reserve.release(writes[1])
    reserve.release(reads[0])
    assert reserve.next_ready() is not None
    assert reserve.next_ready() is None
    assert reserve.statistics().waited_reads == reserve.statistics().waiting_reads_max == 1


def test_reads_are_served_in_order_though_a_later_one_would_fit(reserve_class):
    reserve = reserve_class(8, 0, 4)
    held = [reserve.charge_read("first", 4), reserve.charge_read("second", 2)]
    assert reserve.charge_read("large", 4) is None
    assert reserve.charge_read("small", 1) is None
    reserve.release(held[0])
    ready = [reserve.next_ready(), reserve.next_ready(), reserve.next_ready()]
    assert [one and one[0] for one in ready] == ["large", "small", None]


def test_a_flood_of_writes_does_not_starve_a_read(reserve_class):
    pages, landing = 64, 8
    reserve = reserve_class(pages, 16, landing)
    flying = deque(write(reserve, 8) for _ in range(7))
    assert reserve.charge_read("read", 8) is None
    overtaken = 0
    for _ in range(1000):  # as many writes as the arena takes, answered one by one
        while reserve.landing() is not None:
            flying.append(reserve.charge_write(8))
            overtaken += 8
        reserve.release(flying.popleft())
        if (ready := reserve.next_ready()) is not None:
            break
    assert ready is not None and pages <= overtaken < pages + landing
    assert reserve.landing() is not None, "writes go on as soon as the read has its room"


def test_freed_neighbours_join(reserve_class):
    reserve = reserve_class(8, 0, 2)
    a, b, c, d = [write(reserve, 2) for _ in range(4)]
    assert reserve.landing() is None
    reserve.release(b)
    reserve.release(d)
    reserve.release(c)
    assert reserve.statistics().used_pages == 2
    assert reserve.charge_read("a", 2) and reserve.charge_read("b", 2) and reserve.charge_read("c", 2)
    assert a == (0, 2)


def test_illegal_calls_raise_and_change_nothing(reserve_class):
    reserve = reserve_class(16, 4, 4)
    refused(reserve, reserve.charge_write, 1)
    reserve.landing()
    for pages in (0, -1, 5):
        refused(reserve, reserve.charge_write, pages)
        refused(reserve, reserve.charge_read, "a", pages)
    extent = reserve.charge_write(2)
    refused(reserve, reserve.charge_write, 1)
    for wrong in ((0, 1), (1, 1), (2, 2), (0, 3), (40, 1), (-2, 2)):
        refused(reserve, reserve.release, wrong)
    reserve.landing()
    reserve.release(extent)
    refused(reserve, reserve.charge_write, 1)
    refused(reserve, reserve.release, extent)
    reserve.landing()
    assert reserve.charge_read("a", 1)
    refused(reserve, reserve.charge_write, 1)


def test_sizes_that_could_starve_a_read_for_ever_are_refused(reserve_class):
    for pages, watermark, landing in ((4, 0, 5), (8, 5, 4), (0, 0, 0), (8, -1, 4), (8, 0, 0), (8, 4, -1)):
        with pytest.raises(ValueError, match=r"pages"):
            reserve_class(pages, watermark, landing)
    reserve = reserve_class(8, 4, 4)
    assert reserve.charge_read("the largest", 4)


def test_sizing_follows_the_machine():
    assert reserve_pages(MIB, 16, 256 * MIB) * 4096 == 4 * MIB
    for ram in (1024 * MIB, 64 * 1024 * MIB):
        assert reserve_pages(MIB, 16, ram) * 4096 == 16 * MIB
    assert reserve_pages(MIB, 16, 32 * MIB) * 4096 == 4 * MIB, "never less than four requests"
    assert reserve_pages(128 << 10, 16, 1024 * MIB) * 4096 == 2 * MIB, "never more than can be in flight"
    for ram in (1, 256 * MIB, 900 * MIB, 1024 * MIB):
        pages = reserve_pages(MIB, 16, ram)
        Reserve(pages, watermark_pages(pages), 256)


def test_many_small_requests_leave_landing_rooms():
    """64 requests of mixed sizes in flight, answered out of order: fragments do not stop the reading."""
    random = Random(1)
    reserve = Reserve(4096, 1024, 256)
    flying = []
    refusals = 0
    for _ in range(20_000):
        if len(flying) >= 64:
            reserve.release(flying.pop(random.randrange(16)))
            continue
        if reserve.landing() is None:
            refusals += 1
            reserve.release(flying.pop(random.randrange(min(16, len(flying)))))
            continue
        pages = random.choice((1, 1, 1, 1, 8, 8, 32, 64))
        extent = reserve.charge_write(pages) if random.random() < 0.7 else reserve.charge_read(None, pages)
        assert extent is not None
        flying.append(extent)
    assert refusals == 0


def test_the_accounting_allocates_nothing_that_stays():
    reserve = Reserve(4096, 1024, 256)
    random = Random(1)
    flying = []
    for step in range(20_000):
        if step == 10_000:
            blocks = sys.getallocatedblocks()
        if len(flying) > random.randrange(64) or reserve.landing() is None:
            reserve.release(flying.pop(random.randrange(len(flying))))
        else:
            flying.append(reserve.charge_write(random.choice((1, 8, 256))))
    assert abs(sys.getallocatedblocks() - blocks) < 2000


# Every small case


@pytest.mark.parametrize("pages", range(1, 6))
def test_every_case_of_a_small_arena(pages):
    """Every valid size, every three messages, every order of reading and answering: all finish."""
    for landing in range(1, pages + 1):
        for watermark in range(pages - landing + 1):
            kinds = list(product((False, True), range(1, landing + 1)))
            for messages in product(kinds, repeat=3 if len(kinds) > 4 else 4):
                explore(pages, watermark, landing, messages)


def explore(pages, watermark, landing, messages):
    stack = [()]
    seen = set()
    while stack:
        path = stack.pop()
        world = ReserveWorld(pages, watermark, landing)
        for message in messages:
            world.send(*message)
        could_read = False
        for number in path:
            if number is None:
                could_read = world.read_message()
            else:
                world.answer(number)
        state = tuple(world.map), tuple(world.waiting), len(world.kernel), world.passed, world.reserve._current
        if state in seen:
            continue
        seen.add(state)
        if not world.kernel and not world.charged:
            assert not world.waiting
            continue
        assert world.charged or could_read or world.reserve.landing(), "stuck"
        stack += [(*path, number) for number in world.charged]
        if world.kernel and world.reserve.landing() is not None:
            stack.append((*path, None))


# Long walks


def walk_on(walks):
    seed = int(os.environ.get("FUSESWAP_SEED", SystemRandom().getrandbits(32)))
    print(f"FUSESWAP_SEED={seed}")
    for number in range(walks):
        try:
            walk(f"{seed}/{number}", 200)
        except Exception as error:
            raise AssertionError(f"walk {number} of FUSESWAP_SEED={seed}: {error!r}") from error


def test_walks():
    walk_on(2500)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_a_million_steps():
    walk_on(5000)


# Hypothesis


class ReserveMachine(RuleBasedStateMachine):
    @initialize(landing=st.integers(1, 6), watermark=st.integers(0, 8), more=st.integers(0, 20))
    def start(self, landing, watermark, more):
        self.world = ReserveWorld(landing + watermark + more, watermark, landing)

    @rule(is_write=st.booleans(), pages=st.integers(1, 6))
    def send(self, is_write, pages):
        self.world.send(is_write, pages)

    @rule()
    def read(self):
        self.world.read_message()

    @precondition(lambda self: self.world.charged)
    @rule(data=st.data())
    def answer(self, data):
        self.world.answer(data.draw(st.sampled_from(sorted(self.world.charged))))

    def teardown(self):
        if hasattr(self, "world"):
            self.world.drain()


TestReserveMachine = ReserveMachine.TestCase
TestReserveMachine.settings = settings(max_examples=200, stateful_step_count=50)
