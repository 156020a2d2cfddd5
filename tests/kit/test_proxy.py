import random
import socket
import threading
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseswap.host.ganesha import NFS_PROGRAM, GaneshaServer, null_call
from tests.kit import rpc
from tests.kit.proxy import Cut, Proxy, Record, Send, drop, frame, shuffle, take_record
from tests.kit.wait import wait_until


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that sends back every byte."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def call(xid: int) -> bytes:
    return rpc.call_record(xid, NFS_PROGRAM, 7, b"page")


def xids(connection: socket.socket, count: int) -> list[int]:
    return [int.from_bytes(rpc.receive_record(connection)[:4], "big") for _ in range(count)]


@given(
    records=st.lists(st.binary(max_size=30), max_size=5),
    fragment_bytes=st.integers(min_value=1, max_value=40),
    cuts=st.data(),
)
def test_records_survive_any_fragments_and_any_parts(
    records: list[bytes], fragment_bytes: int, cuts: st.DataObject
) -> None:
    stream = b"".join(frame(record, fragment_bytes=fragment_bytes) for record in records)
    taken: list[bytes] = []
    incoming = bytearray()
    while stream:
        count = cuts.draw(st.integers(min_value=1, max_value=len(stream)))
        incoming += stream[:count]
        stream = stream[count:]
        while (record := take_record(incoming)) is not None:
            taken.append(record)

    assert taken == records
    assert not incoming


def test_without_rules_it_is_a_wire_to_a_real_server(nfs_server: GaneshaServer) -> None:
    with Proxy(nfs_server.nfs_port) as proxy:
        assert null_call(proxy.port, NFS_PROGRAM)
        assert (proxy.connections, proxy.calls, proxy.replies) == (1, 1, 1)


def test_a_megabyte_passes_whole(echo_port: int) -> None:
    with Proxy(echo_port) as proxy, connect(proxy) as client:
        record = rpc.call_record(1, NFS_PROGRAM, 7, bytes(3 << 20))
        threading.Thread(target=client.sendall, args=(record,), daemon=True).start()

        assert frame(rpc.receive_record(client)) == record


def test_delays_reorder_records(echo_port: int) -> None:
    with Proxy(echo_port, seed=1) as proxy, connect(proxy) as client:
        proxy.on_reply = shuffle(0.05)
        client.sendall(b"".join(call(xid) for xid in range(20)))
        seen = xids(client, 20)

    assert sorted(seen) == list(range(20))
    assert seen != sorted(seen)


def test_a_rule_drops_repeats_and_rewrites_by_procedure(echo_port: int) -> None:
    def rule(record: Record, _: random.Random) -> Iterable[Send | Cut]:
        assert record.procedure == 7
        if record.xid == 1:
            return []
        if record.xid == 2:
            return [Send(record.framed()), Send(record.framed(fragment_bytes=5))]
        return [Send(frame((99).to_bytes(4, "big") + record.data[4:]))]

    with Proxy(echo_port) as proxy, connect(proxy) as client:
        proxy.on_reply = rule
        client.sendall(call(1) + call(2) + call(3))

        assert xids(client, 3) == [2, 2, 99]


def test_a_connection_is_cut_in_the_middle_of_a_record(echo_port: int) -> None:
    with Proxy(echo_port) as proxy, connect(proxy) as client:
        proxy.on_reply = lambda record, _: [Cut(record.framed()[:10])]
        client.sendall(call(1))

        assert client.recv(100, socket.MSG_WAITALL) == call(1)[:10]


def test_a_silent_server_and_its_end(echo_port: int) -> None:
    with Proxy(echo_port) as proxy, connect(proxy) as client:
        proxy.on_call = drop
        client.sendall(call(1))
        wait_until(lambda: proxy.calls == 1, seconds=5)
        proxy.cut()

        assert client.recv(1) == b""


def test_a_server_that_is_down_and_up_again_keeps_its_port(echo_port: int) -> None:
    with Proxy(echo_port) as proxy:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        proxy.accept()
        with connect(proxy) as client:
            client.sendall(call(7))
            assert xids(client, 1) == [7]


def test_an_error_in_a_rule_fails_the_test(echo_port: int) -> None:
    def broken(_: Record, __: random.Random) -> Iterable[Send | Cut]:
        raise RuntimeError("broken rule")

    with pytest.raises(RuntimeError, match="broken rule"), Proxy(echo_port) as proxy, connect(proxy) as client:
        proxy.on_call = broken
        client.sendall(call(1))
        assert client.recv(1) == b""
