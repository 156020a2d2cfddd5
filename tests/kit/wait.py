"""Waiting for an event, with a deadline."""

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], object], *, seconds: float, what: str = "the condition") -> None:
    """Return as soon as `holds()` is true; fail the test when the time is over."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not hold within {seconds} s")
        time.sleep(0.01)
