"""Pages kept in the engine's own memory, behind the same door as `transport.Transport`.

For tests, for teaching, and for measuring the FUSE side alone. Calls are answered in order, `delay_us` later.
"""

import mmap
import time
from collections import deque
from collections.abc import Callable

from fuseswap.swap.plug import Plug
from fuseswap.swap.requests import Call, Request
from fuseswap.swap.target import MemoryTarget


class MemoryTransport:
    """A server that is never lost and never short."""

    lost_reason = ""

    def __init__(
        self, target: MemoryTarget, size_bytes: int, plug: Plug, answer: Callable[[list[Request]], None]
    ) -> None:
        self._plug = plug
        self._answer = answer
        self._memory = memoryview(mmap.mmap(-1, size_bytes))
        self._delay_ns = target.delay_us * 1000
        self._calls: deque[tuple[int, Call]] = deque()

    def fileno(self) -> int:
        """There is nothing to wait for."""
        return -1

    def send(self, call: Call) -> None:
        """Take over a call that `Plug.next_call` gave; without a delay it is answered at once."""
        if self._delay_ns:
            self._calls.append((time.monotonic_ns() + self._delay_ns, call))
        else:
            self._complete(call)

    def flush(self) -> None:
        """There is nothing to send."""

    def on_event(self, events: int) -> None:
        """Never called: nothing is registered."""

    def due(self) -> int:
        """When the next call is due, 0 if there is none."""
        return self._calls[0][0] if self._calls else 0

    def tick(self, now: int) -> None:
        """Answer what is due at `now`."""
        calls = self._calls
        while calls and calls[0][0] <= now:
            self._complete(calls.popleft()[1])

    def _complete(self, call: Call) -> None:
        position = call.offset
        if call.is_write:
            for piece in call.payload():
                self._memory[position : position + len(piece)] = piece
                position += len(piece)
            self._answer(self._plug.wrote(call, call.length))
        else:
            self._answer(self._plug.fetched(call, self._memory[position : position + call.length], False))

    def close(self) -> None:
        """Let go of the pages."""
        self._memory.release()
