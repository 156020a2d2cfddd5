"""Ctrl-C and SIGTERM: the first interrupts, and what follows it is never interrupted again."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked the command to stop. Raised at most once, so that undoing runs to its end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """The handlers of one command."""

    def __init__(self) -> None:
        self._raises = True

    def shield(self) -> None:
        """From now on signals do nothing."""
        self._raises = False

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The Python-level handler (signal.signal)."""
        if self._raises:
            self._raises = False
            raise Interrupted(number)


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """In the block, the first of SIGINT, SIGTERM and SIGHUP raises `Interrupted`; later ones do nothing."""
    interrupts = Interrupts()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        # One that the caller ignores (nohup) stays ignored.
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, interrupts.handle)
    try:
        yield interrupts
    finally:
        for number in _SIGNALS:
            signal.signal(number, before[number])
