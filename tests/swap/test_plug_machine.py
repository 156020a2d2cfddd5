"""The plug as a hypothesis state machine: whatever order of events hypothesis can think of, and the smallest
one that fails."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.swap.plug_model import PAGE, UNIT, World, check_queue

PAGES = 6


class PlugMachine(RuleBasedStateMachine):
    world: World

    @initialize(slots=st.integers(1, 3), read_pages=st.integers(1, 4), write_pages=st.integers(1, 4))
    def start(self, slots: int, read_pages: int, write_pages: int) -> None:
        self.world = World(PAGES, slots, read_pages, write_pages)

    @rule(
        requests=st.lists(st.tuples(st.booleans(), st.integers(0, PAGES - 1), st.integers(1, PAGES)), min_size=1),
        pump=st.booleans(),
    )
    def submit(self, requests: list[tuple[bool, int, int]], pump: bool) -> None:
        for is_write, page, count in requests:
            self.world.submit(is_write, page, min(count, PAGES - page))
        if pump:
            self.world.pump()

    @rule()
    def pump(self) -> None:
        self.world.pump()

    @precondition(lambda self: self.world.flying)
    @rule(data=st.data(), pump=st.booleans())
    def complete(self, data: st.DataObject, pump: bool) -> None:
        self.world.reply(data.draw(st.sampled_from(self.world.flying)))
        if pump:
            self.world.pump()

    @precondition(lambda self: self.world.flying)
    @rule(data=st.data())
    def execute(self, data: st.DataObject) -> None:
        """The server does it now, and answers later."""
        call = data.draw(st.sampled_from(self.world.flying))
        if call not in self.world.results:
            self.world.execute(call)

    @precondition(lambda self: len(self.world.flying) > len(self.world.results))
    @rule(data=st.data(), eof=st.booleans())
    def short(self, data: st.DataObject, eof: bool) -> None:
        calls = [call for call in self.world.flying if call not in self.world.results]
        call = data.draw(st.sampled_from(calls))
        units = st.integers(0, call.length // UNIT).map(lambda units: units * UNIT)
        pages = st.integers(0, call.length // PAGE).map(lambda pages: pages * PAGE)
        self.world.reply(call, data.draw(pages | units), eof and not call.is_write)

    @precondition(lambda self: self.world.flying)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.world.flying))
        self.world.fail(call, data.draw(st.sampled_from((0, UNIT, call.length))))

    @rule()
    def cut_and_send_again(self) -> None:
        self.world.cut()

    @rule(slots=st.integers(1, 3))
    def limit(self, slots: int) -> None:
        self.world.limit(slots)

    @invariant()
    def settled(self) -> None:
        if hasattr(self, "world"):
            check_queue(self.world.plug)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


TestPlugMachine = PlugMachine.TestCase
TestPlugMachine.settings = settings(max_examples=500, stateful_step_count=40)
