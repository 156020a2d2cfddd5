"""The life of a swap file, as a table: from which state what leads where."""

from collections.abc import Mapping
from enum import Enum
from errno import EBUSY, EINVAL
from types import MappingProxyType
from typing import Final

from fuseswap.swap.errors import ContractError
from fuseswap.swap.rules import FileState


class Event(Enum):
    """What happens to a file."""

    ACTIVATE = "activate"
    """Somebody asks for swap_activate."""
    GRANT = "grant"
    """The checks passed and the mark is written."""
    REFUSE = "refuse"
    """A check failed, or the server did."""
    ADOPT = "adopt"
    """A filesystem process started again finds an engine that serves the file."""
    DEACTIVATE = "deactivate"
    """Somebody asks for swap_deactivate."""
    CLEAR = "clear"
    """The mark is gone; or the server is, and the mark stays as this machine's own."""


TRANSITIONS: Final[Mapping[tuple[FileState, Event], FileState]] = MappingProxyType(
    {
        (FileState.ORDINARY, Event.ACTIVATE): FileState.ACTIVATING,
        (FileState.ACTIVATING, Event.GRANT): FileState.ACTIVE,
        (FileState.ACTIVATING, Event.REFUSE): FileState.ORDINARY,
        (FileState.ORDINARY, Event.ADOPT): FileState.ACTIVE,
        (FileState.ACTIVE, Event.DEACTIVATE): FileState.DEACTIVATING,
        (FileState.DEACTIVATING, Event.CLEAR): FileState.ORDINARY,
    }
)
"""Every transition there is."""


def next_state(state: FileState, event: Event) -> FileState:
    """The state after `event`; TRANSITIONS says which there is.

    ContractError for one that there is not, as sys_swapon and sys_swapoff have it: EBUSY for a file that is
    swap already or on its way, EINVAL for what only a swap file can do.
    """
    state_after = TRANSITIONS.get((state, event))
    if state_after is not None:
        return state_after
    if event in (Event.ACTIVATE, Event.ADOPT):
        text, errno, remedy = (
            f"the file is {state.value}",
            EBUSY,
            "nothing to do, or first: fuseswap off FILE",
        )
    else:
        text, errno, remedy = (
            f"cannot {event.value}: the file is {state.value}",
            EINVAL,
            "look at: fuseswap status",
        )
    raise ContractError(errno, text, event.value, remedy)
