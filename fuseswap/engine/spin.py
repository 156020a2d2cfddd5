"""Whether to ask again and again for a moment before going to sleep. Pure: times in, a decision out.

A sleeping processor takes tens of microseconds to come back, longer than a near server needs for a page. So the
engine polls for up to SPIN_NS when few requests are under way, as long as that pays: each wait that ends within
SPIN_NS earns one credit, each spin in vain costs SPIN_COST. With none left the engine sleeps at once, and earns again
by the waits that would have been short enough. So at most SPIN_NS is lost for every SPIN_COST short waits, and an
idle engine, or one whose server is far, does not spin at all.
"""

from typing import Final, final

SPIN_NS: Final = 100_000
SPIN_COST: Final = 4
CREDIT_MAX: Final = 2 * SPIN_COST
REQUESTS_MAX: Final = 4
"""With more under way the next event is near in any case, and somebody else needs the processor."""


@final
class Spin:
    """One for each thing that is waited for: the server's next reply, or the kernel's next request."""

    __slots__ = ("_credit",)

    def __init__(self) -> None:
        self._credit = 0

    def limit_ns(self, requests: int) -> int:
        """For how long to spin now with so many requests under way, in ns; 0: not at all."""
        return SPIN_NS if requests <= REQUESTS_MAX and self._credit > 0 else 0

    def in_vain(self) -> None:
        """A spin of `limit_ns` ended without an event."""
        self._credit -= SPIN_COST

    def waited(self, ns: int) -> None:
        """A wait, by spinning or asleep, ended with an event after so many ns."""
        if ns < SPIN_NS and self._credit < CREDIT_MAX:
            self._credit += 1
