"""A proxy between an NFS client and its server that does to whole RPC records what networks and servers do.

One thread; a seed decides every random choice. A rule looks at each record and says what becomes of it: a list
of `Send` (none: the record is lost; two: it comes twice; other bytes: it is rewritten; delays: it is overtaken)
or `Cut` (the connection ends, if wished in the middle of a record). Without rules, the proxy is a wire.
"""

import heapq
import itertools
import math
import queue
import random
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self

import attrs

from tests.kit.rpc import LAST_FRAGMENT

READ: Final = 6
"""NFSPROC3_READ (RFC 1813 section 3.3.6)."""
WRITE: Final = 7
"""NFSPROC3_WRITE (RFC 1813 section 3.3.7)."""


@attrs.frozen
class Record:
    """A call, or the reply to one: the message without record marks."""

    data: bytes
    xid: int
    procedure: int
    """Of the call; for a reply, of the call that it answers (-1 when the proxy saw none)."""
    connection: int
    """0 for the client's first connection, 1 for the next."""

    def framed(self, *, fragment_bytes: int = LAST_FRAGMENT - 1) -> bytes:
        """The record with its marks; a small `fragment_bytes` makes it one of several fragments."""
        return frame(self.data, fragment_bytes=fragment_bytes)


@attrs.frozen
class Send:
    """These bytes go on to the other side, after a delay; later ones may overtake them meanwhile."""

    stream: bytes
    delay_seconds: float = 0.0


@attrs.frozen
class Cut:
    """`stream` (say, half a record) goes on, then both sides see the connection end."""

    stream: bytes = b""


Rule = Callable[[Record, random.Random], Iterable[Send | Cut]]


def forward(record: Record, _: random.Random) -> Iterable[Send | Cut]:
    """A wire."""
    return [Send(record.framed())]


def drop(_: Record, __: random.Random) -> Iterable[Send | Cut]:
    """A server that takes everything and answers nothing."""
    return []


def shuffle(seconds_max: float) -> Rule:
    """Each record is late by its own random time, so that they overtake each other."""
    return lambda record, rng: [Send(record.framed(), rng.uniform(0.0, seconds_max))]


def frame(data: bytes, *, fragment_bytes: int = LAST_FRAGMENT - 1) -> bytes:
    """Record marking (RFC 5531 section 11)."""
    stream = bytearray()
    for start in range(0, max(len(data), 1), fragment_bytes):
        part = data[start : start + fragment_bytes]
        last = start + fragment_bytes >= len(data)
        stream += struct.pack(">I", len(part) | (LAST_FRAGMENT if last else 0)) + part
    return bytes(stream)


class Proxy:
    """Listens on loopback while it is entered. Its public part is for the test's thread."""

    def __init__(self, target_port: int, *, seed: int = 0) -> None:
        self.on_call: Rule = forward
        self.on_reply: Rule = forward
        self.target_port = target_port
        """Where the next connection goes."""
        self.port = 0
        """Where clients connect to, once entered; it stays the same."""
        self.connections = 0
        """How many connections clients have made so far."""
        self.calls = 0
        self.replies = 0
        self._random = random.Random(seed)
        self._selector = selectors.DefaultSelector()
        self._links: list[_Link] = []
        self._listener: socket.socket | None = None
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._wake_out: socket.socket
        self._wake_in: socket.socket
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="proxy")

    def __enter__(self) -> Self:
        self._wake_out, self._wake_in = socket.socketpair()
        self._listen()
        self._selector.register(self._wake_out, selectors.EVENT_READ, self._wake)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._post(self._end)
        self._thread.join()
        self._wake_in.close()
        self._wake_out.close()
        if self._error is not None and error is None:
            raise self._error

    def cut(self) -> None:
        """End every connection now. Clients may connect again at once."""
        self._tell(self._close_links)

    def refuse(self) -> None:
        """End every connection and listen no more: a server that is down refuses connections."""
        self._tell(self._refuse)

    def accept(self) -> None:
        """Listen again, on the same port."""
        self._tell(self._listen)

    def _tell(self, command: Callable[[], None]) -> None:
        done = threading.Event()

        def run() -> None:
            command()
            done.set()

        self._post(run)
        while not done.wait(0.05):
            if not self._thread.is_alive():
                raise RuntimeError("the proxy has ended") from self._error

    def _post(self, command: Callable[[], None]) -> None:
        self._commands.put(command)
        self._wake_in.send(b"w")

    def _wake(self, _: int) -> None:
        self._wake_out.recv(1)
        self._commands.get()()

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._listener.setblocking(False)
            self.port = self._listener.getsockname()[1]
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _refuse(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        self._close_links()

    def _close_links(self) -> None:
        for link in list(self._links):
            link.close()

    def _end(self) -> None:
        self._refuse()
        self._ended = True

    def _accept(self, _: int) -> None:
        assert self._listener is not None
        client, _address = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self.target_port), timeout=5)
        except OSError:
            client.close()
            return
        self._links.append(_Link(self, client, server, number=self.connections))
        self.connections += 1

    def _run(self) -> None:
        try:
            while not self._ended:
                due = min((link.due for link in self._links), default=math.inf)
                timeout = None if due == math.inf else max(0.0, due - time.monotonic())
                for key, events in self._selector.select(timeout):
                    # A callback may have closed what a later event of the same batch is about.
                    if key.fd in self._selector.get_map():
                        key.data(events)
                for link in list(self._links):
                    link.release()
        except BaseException as error:
            self._error = error
        finally:
            self._end()
            self._selector.close()


class _Link:
    """One client connection and the server connection behind it."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket, *, number: int) -> None:
        self.number = number
        self._proxy = proxy
        self._procedures: dict[int, int] = {}
        self._lanes = (
            _Lane(client, server, self._judge_call),
            _Lane(server, client, self._judge_reply),
        )
        for lane in self._lanes:
            lane.source.setblocking(False)
            lane.source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            proxy._selector.register(lane.source, selectors.EVENT_READ, self._handler(lane))

    @property
    def due(self) -> float:
        """When the next delayed record goes on, on the monotonic clock."""
        return min(lane.due for lane in self._lanes)

    def release(self) -> None:
        """Send on what is due; end the connection where a rule has cut it."""
        for lane in self._lanes:
            lane.release(time.monotonic())
        if any(lane.is_cut and not lane.out for lane in self._lanes):
            self.close()
            return
        for source_lane, sink_lane in (self._lanes, reversed(self._lanes)):
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if sink_lane.out else 0)
            if self._proxy._selector.get_key(source_lane.source).events != events:
                self._proxy._selector.modify(source_lane.source, events, self._handler(source_lane))

    def close(self) -> None:
        if self in self._proxy._links:
            self._proxy._links.remove(self)
            for lane in self._lanes:
                self._proxy._selector.unregister(lane.source)
                lane.source.close()

    def _handler(self, lane: "_Lane") -> Callable[[int], None]:
        def handle(events: int) -> None:
            if events & selectors.EVENT_READ and not lane.receive():
                self.close()

        return handle

    def _judge_call(self, data: bytes) -> Iterable[Send | Cut]:
        xid, procedure = struct.unpack_from(">I16xI", data)
        self._procedures[xid] = procedure
        self._proxy.calls += 1
        return self._proxy.on_call(Record(data, xid, procedure, self.number), self._proxy._random)

    def _judge_reply(self, data: bytes) -> Iterable[Send | Cut]:
        (xid,) = struct.unpack_from(">I", data)
        self._proxy.replies += 1
        procedure = self._procedures.get(xid, -1)
        return self._proxy.on_reply(Record(data, xid, procedure, self.number), self._proxy._random)


class _Lane:
    """One direction of a link."""

    def __init__(
        self, source: socket.socket, sink: socket.socket, judge: Callable[[bytes], Iterable[Send | Cut]]
    ) -> None:
        self.source = source
        self.out = bytearray()
        """Due, and not yet taken by the sink's socket."""
        self.is_cut = False
        self._sink = sink
        self._judge = judge
        self._incoming = bytearray()
        self._waiting: list[tuple[float, int, Send | Cut]] = []
        self._sequence = itertools.count()

    @property
    def due(self) -> float:
        return self._waiting[0][0] if self._waiting else math.inf

    def receive(self) -> bool:
        """Take what has come and judge the whole records in it; False at the end of the stream."""
        try:
            data = self.source.recv(1 << 20)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._incoming += data
        while (record := take_record(self._incoming)) is not None:
            for step in self._judge(record):
                delay = step.delay_seconds if isinstance(step, Send) else 0.0
                heapq.heappush(self._waiting, (time.monotonic() + delay, next(self._sequence), step))
        return bool(data)

    def release(self, now: float) -> None:
        while not self.is_cut and self._waiting and self._waiting[0][0] <= now:
            _, _, step = heapq.heappop(self._waiting)
            self.out += step.stream
            self.is_cut = isinstance(step, Cut)
        if self.out:
            try:
                del self.out[: self._sink.send(self.out)]
            except BlockingIOError:
                pass
            except OSError:
                self.out.clear()
                self.is_cut = True


def take_record(stream: bytearray) -> bytes | None:
    """Remove the first whole record from the stream and return it without its marks; None when none is whole."""
    data = b""
    at = 0
    while len(stream) >= at + 4:
        (mark,) = struct.unpack_from(">I", stream, at)
        end = at + 4 + (mark & ~LAST_FRAGMENT)
        if len(stream) < end:
            return None
        data += stream[at + 4 : end]
        at = end
        if mark & LAST_FRAGMENT:
            del stream[:end]
            return data
    return None
