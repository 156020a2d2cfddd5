"""Requests that wait for a server, and processes that wait for them and are to die.

A killed process whose request is with us sleeps until we answer (request_wait_answer, fs/fuse/dev.c), and
pyfuse3 keeps the kernel's FUSE_INTERRUPT to itself. So whoever waits long is looked up in /proc: a pending
SIGKILL, which every fatal signal becomes (complete_signal, kernel/signal.c), ends the request, as it ends the
waits of the kernel's client (TASK_KILLABLE). Other signals wait with their process, as they do there.
"""

import contextlib
from pathlib import Path
from typing import Final

import trio
from attrs import define

_LOOK_SECONDS: Final = 0.5
_SPARED_LOOKS: Final = 2
"""A request that has seen no more of them is not looked up: it waits for little more than a second."""

_SIGKILL_BIT: Final = 1 << 8
_PF_EXITING: Final = 0x4


@define(eq=False)
class WaitingCall:
    pid: int
    scope: trio.CancelScope
    look: int
    """How many there had been when it began."""


class WaitingCalls:
    """All requests under way."""

    def __init__(self) -> None:
        self._calls: set[WaitingCall] = set()
        self._looks = 0

    def begin(self, pid: int, scope: trio.CancelScope) -> WaitingCall:
        """A request: `scope` is cancelled when the thread `pid`, which waits for the answer, is to die."""
        call = WaitingCall(pid, scope, self._looks)
        self._calls.add(call)
        return call

    def end(self, call: WaitingCall) -> None:
        """It is answered."""
        self._calls.discard(call)

    async def watch(self) -> None:
        """Look after them until cancelled."""
        while True:
            await trio.sleep(_LOOK_SECONDS)
            self._looks += 1
            waiting = [call for call in self._calls if self._looks - call.look > _SPARED_LOOKS]
            dying = {pid for pid in {call.pid for call in waiting} if is_dying(pid)}
            for call in waiting:
                if call.pid in dying:
                    call.scope.cancel()


def is_dying(pid: int) -> bool:
    """Whether a thread has been killed, and may hang between here and its end."""
    with contextlib.suppress(OSError, ValueError):
        stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        # proc(5): flags are field 9, exit_code field 52; the low bits of a wait status are the signal.
        if int(stat[6]) & _PF_EXITING:
            return bool(int(stat[49]) & 0x7F)
        for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
            if line.startswith(b"SigPnd:"):
                return bool(int(line.split()[1], 16) & _SIGKILL_BIT)
    return False
