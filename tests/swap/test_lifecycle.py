"""The life of a swap file: the table, and a machine that walks it."""

from errno import EBUSY, EINVAL

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fuseswap.swap.errors import ContractError
from fuseswap.swap.lifecycle import TRANSITIONS, Event, next_state
from fuseswap.swap.rules import FileState, Operation, verdict


class SwapFileLife(RuleBasedStateMachine):
    """Any order of events: a file is guarded exactly while it is not ordinary."""

    def __init__(self) -> None:
        super().__init__()
        self.state = FileState.ORDINARY
        self.served = False

    @precondition(lambda self: self.state is FileState.ORDINARY)
    @rule(granted=st.booleans())
    def activate(self, granted: bool) -> None:
        self.state = next_state(self.state, Event.ACTIVATE)
        assert self.state is FileState.ACTIVATING
        self.state = next_state(self.state, Event.GRANT if granted else Event.REFUSE)
        self.served = granted

    @precondition(lambda self: self.state is FileState.ACTIVE)
    @rule()
    def deactivate(self) -> None:
        self.state = next_state(self.state, Event.DEACTIVATE)
        self.state = next_state(self.state, Event.CLEAR)
        self.served = False

    @rule()
    def restart(self) -> None:
        """The filesystem process forgets all, and learns from the engines' counters what is active."""
        self.state = FileState.ORDINARY
        if self.served:
            self.state = next_state(self.state, Event.ADOPT)

    @rule(event=st.sampled_from(Event))
    def illegal(self, event: Event) -> None:
        if (self.state, event) in TRANSITIONS:
            return
        with pytest.raises(ContractError) as caught:
            next_state(self.state, event)
        assert caught.value.errno == (EBUSY if event in (Event.ACTIVATE, Event.ADOPT) else EINVAL)

    @invariant()
    def guarded_while_served(self) -> None:
        assert (self.state is FileState.ACTIVE) == self.served
        assert bool(verdict(Operation.WRITE, self.state)) == self.served


TestSwapFileLife = SwapFileLife.TestCase


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", FileState)
def test_every_pair(state: FileState, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert next_state(state, event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(ContractError) as caught:
            next_state(state, event)
        assert caught.value.remedy


def test_every_state_is_reached_and_left() -> None:
    assert {state for state, _ in TRANSITIONS} == set(FileState)
    assert set(TRANSITIONS.values()) == set(FileState)
    assert {event for _, event in TRANSITIONS} == set(Event)
