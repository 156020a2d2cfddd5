"""Calls that outlive connections: the hard mount.

A call waits until the server has answered it, over as many connections as that takes. It keeps its XID, so
that the server's duplicate-request cache knows it; where that cache does not help (another source port, a
server started again), the answers that a second execution would give are read as the success they stand for,
as FreeBSD's and Solaris' clients do.
"""

import errno
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import trio
from attrs import frozen

from fuseswap.backends.nfs.codec import BadReply, Call, NfsError
from fuseswap.backends.nfs.connection import Connection, ConnectionLost, Pending, Refused
from fuseswap.backends.nfs.status import NFS3ERR_JUKEBOX, errno_of
from fuseswap.backends.protocol import Caller
from fuseswap.swap.target import Address

log = logging.getLogger(__name__)

T = TypeVar("T")

NFS_PROGRAM: Final = 100003
NFS_VERSION: Final = 3

CONNECT_SECONDS: Final = 10.0
"""A server that does not answer a NULL call in this time is taken for dead."""

_BACKOFF_SECONDS: Final = (0.1, 5.0)
_JUKEBOX_SECONDS: Final = (0.2, 5.0)
"""The kernel's client waits 5 s at once (NFS_JUKEBOX_RETRY_TIME); ours comes to that by doubling."""

_SILENCE_SECONDS: Final = 60.0
"""No answer to any of the outstanding calls for so long: connect again (timeo=600 of nfs(5))."""

_BAD_REPLIES_MAX: Final = 3
"""An answer that cannot be read may be an accident of the wire; this many in a row are the server's."""

# libnfs's words for accept_stat (RFC 5531 section 9); the other refusals are those of a server that starts.
_PROC_UNAVAIL: Final = "Procedure not available"
_GARBAGE_ARGS: Final = "Garbage arguments"
_UNREADABLE: Final = "Message rejected by server"


@frozen
class ClientStatistics:
    """Counts since the start, and the calls now waiting."""

    connected: bool
    connections: int
    outstanding: int
    repetitions: int


class Client:
    """Serves calls to one NFS server while `run` runs."""

    def __init__(self, addresses: Sequence[Address], connection: Connection, soft_seconds: float | None = None) -> None:
        """`connection` is connected already; `addresses` are tried in turn when it is lost.

        A call without an answer is EIO after `soft_seconds` (RPC_TASK_SOFT), or waits for ever.
        """
        self._addresses = addresses
        self._soft_seconds = soft_seconds
        self._connection: Connection | None = connection
        self._outstanding: dict[int, Pending[Any]] = {}
        self._xid = random.getrandbits(32)
        self._connections = 1
        self._repetitions = 0
        self.reconnected: Callable[[], None] = lambda: None
        """Called after each new connection: the server may have lost what was not committed."""

    def statistics(self) -> ClientStatistics:
        return ClientStatistics(
            self._connection is not None, self._connections, len(self._outstanding), self._repetitions
        )

    async def call(self, call: Call[T], caller: Caller) -> T:
        """The server's answer. OSError with the errno of its refusal; EIO when it talks nonsense."""
        return _value(await self._answered(call, caller))

    async def call_once(self, call: Call[T], caller: Caller, executed: int) -> T | None:
        """As `call`, for what must not be executed twice.

        None when the answer to a repetition is `executed`, the nfsstat3 that an execution before it causes.
        """
        pending = await self._answered(call, caller)
        error = _error(pending)
        if isinstance(error, NfsError) and error.status == executed and pending.sendings > 1:
            return None
        return _value(pending)

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_silence)
            failures = 0
            while True:
                connection = self._connection
                if connection is None:
                    connection = await self._connect(failures)
                    if connection is None:
                        failures += 1
                        continue
                began = trio.current_time()
                try:
                    self._adopt(connection)
                    await connection.run()
                finally:
                    self._connection = None
                    connection.close()
                # A server that accepts and answers nothing is one that refuses.
                failures = 0 if connection.reply_time > began else failures + 1
                log.warning("connection to %s lost, connecting again", self._addresses[0].host)

    async def _answered(self, call: Call[T], caller: Caller) -> Pending[T]:
        if self._soft_seconds is None:
            return await self._repeated(call, caller)
        try:
            with trio.fail_after(self._soft_seconds):
                return await self._repeated(call, caller)
        except trio.TooSlowError:
            raise OSError(errno.EIO, f"{call.name}: no answer within {self._soft_seconds:g} s") from None

    async def _repeated(self, call: Call[T], caller: Caller) -> Pending[T]:
        bad_replies = 0
        for delay in _delays(*_JUKEBOX_SECONDS):
            pending = await self._exchange(call, caller)
            error = _error(pending)
            if error is None:
                return pending
            if isinstance(error, NfsError) and error.status == NFS3ERR_JUKEBOX:
                pass
            elif isinstance(error, BadReply) or (isinstance(error, Refused) and _UNREADABLE in str(error)):
                bad_replies += 1
                log.warning("%s: bad reply of the server: %s", call.name, error)
                if bad_replies == _BAD_REPLIES_MAX:
                    return pending
            elif isinstance(error, Refused) and not _is_final(error):
                log.warning("%s: %s, trying again", call.name, error)
            else:
                return pending
            await trio.sleep(delay)
        raise AssertionError("the delays never end")

    async def _exchange(self, call: Call[T], caller: Caller) -> Pending[T]:
        self._xid = (self._xid + 1) & 0xFFFFFFFF
        pending = Pending(call, caller, self._xid)
        self._outstanding[pending.key] = pending
        try:
            if self._connection is not None:
                self._send(self._connection, pending)
            await pending.wait()
        finally:
            del self._outstanding[pending.key]
        return pending

    def _send(self, connection: Connection, pending: Pending[Any]) -> None:
        try:
            connection.send(pending)
        except ConnectionLost:
            return  # `run` sends it again on the next connection

    def _adopt(self, connection: Connection) -> None:
        if self._connection is connection:
            return
        self._connection = connection
        self._connections += 1
        log.warning("connected to %s again", self._addresses[0].host)
        for pending in list(self._outstanding.values()):
            if pending.outcome is None:
                self._repetitions += pending.sendings > 0
                self._send(connection, pending)
        self.reconnected()

    async def _connect(self, failures: int) -> Connection | None:
        if failures:
            low, high = _BACKOFF_SECONDS
            # Jitter, so that many clients of one server do not come back in step.
            await trio.sleep(min(high, low * 2 ** min(failures, 16)) * random.uniform(0.5, 1.0))
        address = self._addresses[failures % len(self._addresses)]
        connection = Connection()
        try:
            with trio.fail_after(CONNECT_SECONDS):
                await connection.connect(address.host, address.port, NFS_PROGRAM, NFS_VERSION)
        except (ConnectionLost, trio.TooSlowError):
            connection.close()
            return None
        except BaseException:
            connection.close()
            raise
        return connection

    async def _watch_silence(self) -> None:
        while True:
            await trio.sleep(_SILENCE_SECONDS / 10)
            connection = self._connection
            if connection is None or not self._outstanding:
                continue
            oldest = min(pending.sent_time for pending in self._outstanding.values())
            silent_since = max(oldest, connection.reply_time)
            if trio.current_time() - silent_since > _SILENCE_SECONDS:
                log.warning("no answer for %.0f s, connecting again", _SILENCE_SECONDS)
                connection.drop()


def _error(pending: Pending[Any]) -> Exception | None:
    assert pending.outcome is not None
    return None if pending.outcome[0] else pending.outcome[1]


def _value(pending: Pending[T]) -> T:
    assert pending.outcome is not None
    if pending.outcome[0]:
        return pending.outcome[1]
    error = pending.outcome[1]
    if isinstance(error, NfsError):
        # Made here, not inherited: only OSError itself becomes FileNotFoundError and its like.
        raise OSError(errno_of(error.status), str(error))
    if isinstance(error, OSError):
        raise error
    if isinstance(error, Refused) and _PROC_UNAVAIL in str(error):
        raise OSError(errno.EOPNOTSUPP, str(error))
    raise OSError(errno.EIO, f"{pending.call.name}: {error}") from error


def _is_final(refusal: Refused) -> bool:
    return any(words in str(refusal) for words in (_PROC_UNAVAIL, _GARBAGE_ARGS))


def _delays(first: float, last: float) -> Iterator[float]:
    delay = first
    while True:
        yield delay
        delay = min(2 * delay, last)
