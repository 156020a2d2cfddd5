"""Steps: whatever fails or interrupts, what was begun is undone, in reverse order, once."""

import signal
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseswap.cli.interrupts import Interrupted, interruptible
from fuseswap.cli.steps import NotUndone, Step, build, tear_down


class Boom(Exception):
    """A step's own failure."""


class World:
    """What steps have made, and what was called; optionally something happens in one step."""

    def __init__(self, count: int, *, at: int | None = None, event: Callable[[], None] | None = None) -> None:
        self.calls: list[tuple[str, int]] = []
        self.stands: list[int] = []
        self.failures: list[BaseException] = []
        self.stuck: int | None = None
        self.signal_in_undo = False
        self._at, self._event = at, event
        self.steps = [self._step(number) for number in range(count)]

    def _step(self, number: int) -> Step:
        def do() -> None:
            self.calls.append(("do", number))
            if number == self._at and self._event is not None:
                self._event()
            self.stands.append(number)

        def undo() -> None:
            self.calls.append(("undo", number))
            if self.signal_in_undo:
                signal.raise_signal(signal.SIGINT)
            if number == self.stuck:
                raise Boom
            if number in self.stands:
                self.stands.remove(number)

        return Step(what=f"step {number}", do=do, undo=undo)


def fail() -> None:
    raise Boom


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


@given(st.integers(0, 12))
def test_all_steps_are_done_in_order(count: int) -> None:
    world = World(count)
    build(world.steps, failed=world.failures.append, shield=lambda: None)
    assert world.stands == list(range(count))
    assert world.failures == []
    tear_down(world.steps)
    assert world.stands == []
    tear_down(world.steps)
    assert world.stands == []


@given(st.data(), st.sampled_from([fail, interrupt, terminate]), st.booleans())
def test_what_was_begun_is_undone_once_in_reverse(
    data: st.DataObject, event: Callable[[], None], signal_in_undo: bool
) -> None:
    count = data.draw(st.integers(1, 8))
    at = data.draw(st.integers(0, count - 1))
    world = World(count, at=at, event=event)
    world.signal_in_undo = signal_in_undo
    expected = Boom if event is fail else Interrupted
    with interruptible() as interrupts, pytest.raises(expected) as caught:
        build(world.steps, failed=world.failures.append, shield=interrupts.shield)
    begun = range(at + 1)
    assert world.calls == [("do", n) for n in begun] + [("undo", n) for n in reversed(begun)]
    assert world.stands == []
    assert world.failures == [caught.value]


@given(st.data())
def test_a_step_that_cannot_be_undone_keeps_what_it_stands_on(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    stuck = data.draw(st.integers(0, count - 1))
    world = World(count)
    build(world.steps, failed=world.failures.append, shield=lambda: None)
    world.stuck = stuck
    with pytest.raises(NotUndone) as caught:
        tear_down(world.steps)
    assert caught.value.step is world.steps[stuck]
    assert isinstance(caught.value.__cause__, Boom)
    assert world.stands == list(range(stuck + 1))


def test_a_signal_between_a_failure_and_the_shield_still_undoes() -> None:
    world = World(3, at=1, event=fail)

    def late_signal() -> None:
        signal.raise_signal(signal.SIGINT)

    with interruptible(), pytest.raises(Interrupted):
        build(world.steps, failed=world.failures.append, shield=late_signal)
    assert world.stands == []
    assert world.calls[-2:] == [("undo", 1), ("undo", 0)]


def test_only_the_first_signal_interrupts() -> None:
    with interruptible():
        with pytest.raises(Interrupted) as caught:
            interrupt()
        terminate()
    assert caught.value.number == signal.SIGINT


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interruptible():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
