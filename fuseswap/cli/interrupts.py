"""Ctrl-C and SIGTERM: the first interrupts, and what follows it is never interrupted again."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked the command to stop. Raised at most once, so that undoing runs to its end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """The handlers of one command."""

    def __init__(self) -> None:
        self._raises = True
        self._deferred = False
        self._pending: int | None = None
        self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def shield(self) -> None:
        """From now on signals do nothing."""
        self._raises = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal in the block raises at its end: for what cannot be undone before it is whole."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
            if self._pending is not None:
                number, self._pending = self._pending, None
                self.handle(number, None)

    def leave(self) -> None:
        """Give the signals back: what follows has handlers of its own."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take(self) -> None:
        """Install the handlers; a signal that the caller ignores (nohup) stays ignored."""
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self.handle)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The Python-level handler (signal.signal)."""
        if not self._raises:
            return
        if self._deferred:
            self._pending = number
            return
        self._raises = False
        raise Interrupted(number)


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """In the block, the first of SIGINT, SIGTERM and SIGHUP raises `Interrupted`; later ones do nothing."""
    interrupts = Interrupts()
    interrupts.take()
    try:
        yield interrupts
    finally:
        interrupts.leave()
