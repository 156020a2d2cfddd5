"""An NFS server of one file that does as it is told, in the test's own thread: nothing here is left to chance."""

import contextlib
import socket
import struct
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import attrs

from tests.engine import nfs_codec as codec
from tests.engine.nfs_codec import Arguments
from tests.kit.proxy import frame, take_record

ALL: Final = 1 << 30


@attrs.define(eq=False)
class Connection:
    """A client's connection as the server sees it."""

    socket: socket.socket
    number: int
    """0 for the first."""
    source_port: int
    incoming: bytearray = attrs.field(factory=bytearray)
    outgoing: bytearray = attrs.field(factory=bytearray)
    closing: bool = False
    """Close when `outgoing` has left."""
    open: bool = True

    def close(self, *, reset: bool = False) -> None:
        """End it, by RST if `reset`."""
        if self.open:
            self.open = False
            if reset:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.socket.close()


Step = Callable[[Arguments, Connection], bytes]
"""What becomes of a call: the bytes that go back, which need not be one reply."""


class FakeServer:
    """Listens on loopback while entered; `serve` does what can be done without waiting."""

    def __init__(self, size_bytes: int, *, host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = 0
        self.memory = bytearray(size_bytes)
        self.script: list[Step] = []
        """One step for each call that comes, then `otherwise`."""
        self.otherwise: Step = self.honest
        self.on_accept: Callable[[Connection], None] = lambda connection: None
        self.calls: list[tuple[int, Arguments]] = []
        """Connection number and call, as they came."""
        self.connections: list[Connection] = []
        self.remember = True
        """Keep calls and connections, for the test to look at."""
        self.read_bytes = self.write_bytes = ALL
        """How much is received and sent in one turn."""
        self._listener: socket.socket | None = None
        self._accepted = 0

    def __enter__(self) -> Self:
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()

    def listen(self) -> None:
        """Take connections, on the same port each time."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.create_server((self.host, self.port), family=family)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]

    def refuse(self) -> None:
        """End all connections and take no more."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in self.connections:
            connection.close(reset=True)

    def serve(self) -> None:
        """Accept, receive, answer, as far as it goes now."""
        if self._listener is not None:
            with contextlib.suppress(BlockingIOError):
                accepted, address = self._listener.accept()
                accepted.setblocking(False)
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = Connection(accepted, self._accepted, address[1])
                self._accepted += 1
                self.connections.append(connection)
                self.on_accept(connection)
        for connection in self.connections:
            if connection.open:
                self._serve(connection)
        if not self.remember:
            self.connections = [connection for connection in self.connections if connection.open]

    def _serve(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(min(self.read_bytes, 1 << 20))
            if not data:
                connection.close()
                return
            connection.incoming += data
        except BlockingIOError:
            pass
        except OSError:
            connection.close()
            return
        while connection.open and not connection.closing:
            record = take_record(connection.incoming)
            if record is None:
                break
            call = codec.decode_call(record)
            if self.remember:
                self.calls.append((connection.number, call))
            step = self.script.pop(0) if self.script else self.otherwise
            connection.outgoing += step(call, connection)
        if connection.open and connection.outgoing:
            with contextlib.suppress(BlockingIOError):
                del connection.outgoing[: connection.socket.send(connection.outgoing[: self.write_bytes])]
        if connection.closing and not connection.outgoing:
            connection.close()

    # Steps

    def perform(self, call: Arguments, *, count: int | None = None) -> bytes:
        """Do the call, for `count` bytes only if given; the reply message without marks."""
        count = call.count if count is None else count
        end = call.offset + count
        if call.procedure == codec.WRITE:
            self.memory[call.offset : end] = call.data[:count]
            return codec.accepted(call.xid, codec.write_result(count))
        return codec.accepted(call.xid, codec.read_result(bytes(self.memory[call.offset : end])))

    def honest(self, call: Arguments, _: Connection) -> bytes:
        """Do the call and say so."""
        return frame(self.perform(call))

    def short(self, count: int) -> Step:
        """Do the call for at most `count` bytes."""
        return lambda call, _: frame(self.perform(call, count=min(count, call.count)))

    def and_close(self, step: Step) -> Step:
        """Do the step, then close the connection behind its bytes."""

        def run(call: Arguments, connection: Connection) -> bytes:
            connection.closing = True
            return step(call, connection)

        return run


def silent(_: Arguments, __: Connection) -> bytes:
    """No reply."""
    return b""


def reset(_: Arguments, connection: Connection) -> bytes:
    """The connection is reset."""
    connection.close(reset=True)
    return b""


def says(reply: Callable[[Arguments], bytes]) -> Step:
    """Answer with a reply message without doing anything."""
    return lambda call, _: frame(reply(call))


def fails(status: int) -> Step:
    """Answer with an nfsstat3."""
    return says(lambda call: codec.failure(call, status))


def sends(stream: bytes) -> Step:
    """Answer with bytes that are no reply."""
    return lambda call, _: stream
