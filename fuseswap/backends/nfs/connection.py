"""One TCP connection to one RPC program: a libnfs rpc_context driven by trio.

A connection is used until it is lost and never again. libnfs could reconnect by itself, but 4.0 then keeps
the half-received record of the old stream and takes the new stream's first bytes for its rest: a READ re-sent
with the same XID would return them as file data. So a lost context is destroyed, and `client` re-sends on the
next one.

Calls are registered under a number that libnfs carries as private data to the one callback, so nothing is
allocated or freed per call on the C side but libnfs's own buffers.
"""

import contextlib
import errno
import itertools
import math
import os
import select
import socket
from typing import Any, Final, Generic, Literal, TypeVar

import trio
from attrs import define, field

from fuseswap.backends.nfs._libnfs import ffi, lib
from fuseswap.backends.nfs.codec import Call
from fuseswap.backends.protocol import Caller
from fuseswap.swap.target import Address

T = TypeVar("T")

_SUCCESS: Final = 0
_ERROR: Final = 1

# A peer that vanished without a reset is found by TCP: when idle after KEEPALIVE_IDLE + 3 probes, when data
# is unacknowledged after USER_TIMEOUT. Slow servers are not hurt, for their kernel still acknowledges.
_KEEPALIVE_IDLE_SECONDS: Final = 10
_KEEPALIVE_INTERVAL_SECONDS: Final = 5
_KEEPALIVE_PROBES: Final = 3
_USER_TIMEOUT_MS: Final = 25_000


class ConnectionLost(Exception):
    """The connection is gone; calls on it may or may not have been executed."""


class Refused(Exception):
    """The server's RPC layer did not execute the call: libnfs's text says why."""


Outcome = tuple[Literal[True], T] | tuple[Literal[False], Exception]


@define(eq=False)
class Pending(Generic[T]):
    """A call on its way, for one task to wait for. `outcome` is set once."""

    call: Call[T]
    caller: Caller
    xid: int
    key: int = field(factory=itertools.count(1).__next__)
    connection: "Connection | None" = None
    """Where a reply may come from."""
    sendings: int = 0
    """How often it was put on a wire: a reply to a later sending may answer for an earlier one."""
    sent_time: float = math.inf
    outcome: Outcome[T] | None = None
    _waiter: trio.lowlevel.Task | None = None

    def finish(self, outcome: Outcome[T]) -> None:
        """Only the first outcome counts."""
        if self.outcome is None:
            self.outcome = outcome
            if self._waiter is not None:
                trio.lowlevel.reschedule(self._waiter)
                self._waiter = None

    async def wait(self) -> None:
        """Until there is an outcome. (trio.Event would be a tenth of what a small call costs.)"""
        if self.outcome is None:
            self._waiter = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._waiter = None
        return trio.lowlevel.Abort.SUCCEEDED


_pending: dict[int, Pending[Any]] = {}
"""By key: what libnfs may still call back for."""


@ffi.def_extern()  # type: ignore[untyped-decorator]
def libnfs_reply(_rpc: Any, status: int, data: Any, key: Any) -> None:
    """libnfs's callback for every call; must not raise, for C cannot pass an exception on."""
    pending = _pending.pop(int(ffi.cast("uintptr_t", key)), None)
    if pending is None or pending.connection is None:
        return
    pending.connection.reply_time = trio.current_time()
    if status == _SUCCESS:
        try:
            pending.finish((True, pending.call.decode(data)))
        except Exception as error:
            pending.finish((False, error))
    elif status == _ERROR and data != ffi.NULL:
        text = ffi.string(ffi.cast("char *", data)).decode(errors="replace")
        pending.connection.refusals.append((pending, text))


def _nothing(_result: Any) -> None:
    return None


class Connection:
    """Made by `connect`; `run` serves it until it is lost; `close` frees it."""

    def __init__(self) -> None:
        self._rpc = lib.rpc_init_context()
        if self._rpc == ffi.NULL:
            raise MemoryError("rpc_init_context")
        self._caller: Caller | None = None
        self._lost = False
        self._output = trio.Event()
        self.reply_time = trio.current_time()
        """When the server last answered anything."""
        self.refusals: list[tuple[Pending[Any], str]] = []
        """Calls that libnfs failed within the current rpc_service: refused ones, or all if it is lost."""

    async def connect(self, host: str, port: int | None, program: int, version: int) -> Address:
        """Connect to a numeric `host`, through its portmapper if `port` is None, and make a NULL call.

        Returns the peer's address. Errors: ConnectionLost with libnfs's text.
        """

        def queue(rpc: Any, key: Any) -> int:
            server = host.encode()
            if port is None:
                return int(lib.rpc_connect_program_async(rpc, server, program, version, lib.libnfs_reply, key))
            return int(lib.rpc_connect_port_async(rpc, server, port, program, version, lib.libnfs_reply, key))

        greeting = Pending(Call("connect", queue, _nothing), Caller(0, 0), 0, connection=self)
        _pending[greeting.key] = greeting
        if queue(self._rpc, _pointer(greeting.key)) != 0:
            raise self._fail()
        # The portmapper's connection is followed by another: the descriptor changes between events.
        while greeting.outcome is None:
            descriptor = lib.rpc_get_fd(self._rpc)
            if descriptor < 0:
                raise self._fail()
            events = lib.rpc_which_events(self._rpc)
            if events & select.POLLOUT:
                await trio.lowlevel.wait_writable(descriptor)
            else:
                await trio.lowlevel.wait_readable(descriptor)
            # Only what was asked for: told of POLLHUP too, libnfs forgets why the connection failed.
            self._service(events)
            if self._lost:
                raise self._fail()
        if not greeting.outcome[0]:
            raise ConnectionLost(str(greeting.outcome[1]))
        return self._tune()

    def send(self, pending: Pending[Any]) -> None:
        """Queue a call and flush; its reply arrives while `run` runs. ConnectionLost if it is too late."""
        if self._lost:
            raise ConnectionLost("connection lost")
        if pending.caller != self._caller:
            self._set_caller(pending.caller)
        pending.connection = self
        _pending[pending.key] = pending
        lib.rpc_set_next_xid(self._rpc, pending.xid)
        if pending.call.queue(self._rpc, _pointer(pending.key)) != 0:
            del _pending[pending.key]
            # The arguments do not fit into libnfs's buffer: a name or link target of several KiB.
            pending.finish((False, OSError(errno.ENAMETOOLONG, self._error_text())))
            return
        pending.sendings += 1
        pending.sent_time = trio.current_time()
        self._service(select.POLLOUT)
        if self._wants_output():
            self._output.set()

    async def run(self) -> None:
        """Serve replies and output until the connection is lost."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_events)
            with contextlib.suppress(trio.ClosedResourceError):
                while not self._lost:
                    await trio.lowlevel.wait_readable(lib.rpc_get_fd(self._rpc))
                    self._service(select.POLLIN)
            nursery.cancel_scope.cancel()

    def drop(self) -> None:
        """Give the connection up: `run` returns, later calls raise ConnectionLost."""
        self._lost = True
        descriptor = lib.rpc_get_fd(self._rpc)
        if descriptor >= 0:
            trio.lowlevel.notify_closing(descriptor)

    def close(self) -> None:
        """Free the context; replies that did not come will not come."""
        self.drop()
        for key in [key for key, pending in _pending.items() if pending.connection is self]:
            del _pending[key]
        lib.rpc_destroy_context(self._rpc)
        self._rpc = ffi.NULL

    async def _write_events(self) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            while not self._lost:
                await self._output.wait()
                self._output = trio.Event()
                while self._wants_output():
                    await trio.lowlevel.wait_writable(lib.rpc_get_fd(self._rpc))
                    self._service(select.POLLOUT)

    def _wants_output(self) -> bool:
        return not self._lost and bool(lib.rpc_which_events(self._rpc) & select.POLLOUT)

    def _service(self, events: int) -> None:
        if self._lost:
            return
        result = lib.rpc_service(self._rpc, events)
        refusals, self.refusals = self.refusals, []
        if result != 0:
            self.drop()
            return
        for pending, text in refusals:
            pending.finish((False, Refused(text)))

    def _set_caller(self, caller: Caller) -> None:
        groups = ffi.new("uint32_t[]", list(caller.groups[:16]))
        auth = lib.libnfs_authunix_create(_MACHINE_NAME, caller.uid, caller.gid, len(caller.groups[:16]), groups)
        lib.rpc_set_auth(self._rpc, auth)
        self._caller = caller

    def _tune(self) -> Address:
        with socket.socket(fileno=os.dup(lib.rpc_get_fd(self._rpc))) as view:
            view.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            view.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            view.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_SECONDS)
            view.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_SECONDS)
            view.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_PROBES)
            view.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
            host, port = view.getpeername()[:2]
        return Address(host, port)

    def _fail(self) -> ConnectionLost:
        self._lost = True
        return ConnectionLost(self._error_text())

    def _error_text(self) -> str:
        text = lib.rpc_get_error(self._rpc)
        return "connection lost" if text == ffi.NULL else ffi.string(text).decode(errors="replace")


_MACHINE_NAME: Final = os.uname().nodename.encode()[:255]


def _pointer(key: int) -> Any:
    return ffi.cast("void *", key)
