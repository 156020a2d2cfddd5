"""From an NfsUrl to a root handle and a connection: names, portmapper, MOUNT (RFC 1813 section 5).

Everything here has a time limit, and every failure is a SourceError that names the step.
"""

import socket
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio
from attrs import frozen

from fuseswap.backends.nfs.client import CONNECT_SECONDS, NFS_PROGRAM, NFS_VERSION
from fuseswap.backends.nfs.connection import Connection, ConnectionLost, Pending
from fuseswap.backends.nfs.mount_codec import mnt_call
from fuseswap.backends.nfs.status import MOUNT_STATUS_TEXT
from fuseswap.backends.nfs.url import NfsUrl
from fuseswap.backends.protocol import Caller, Handle, SourceError
from fuseswap.swap.target import Address

T = TypeVar("T")

MOUNT_PROGRAM: Final = 100005
MOUNT_VERSION: Final = 3
_PORTMAPPER_PORT: Final = 111
_AUTH_SYS: Final = 1
_XID: Final = 1


@frozen
class Mounted:
    """An export's root, a connection to the NFS program, and every address the server has."""

    root: Handle
    connection: Connection
    addresses: tuple[Address, ...]
    """Those of the NFS program; the first is the connection's."""


async def mount(url: NfsUrl, caller: Caller) -> Mounted:
    """SourceError if the export cannot be reached; the connection is the caller's to close."""
    hosts = await _resolve(url.host)

    async def ask(connection: Connection, host: str) -> Handle:
        await connection.connect(host, url.mount_port, MOUNT_PROGRAM, MOUNT_VERSION)
        return await _mnt(connection, url, caller)

    root, good = await _first_that_answers(url, hosts, "MOUNT", url.mount_port, ask, keep=False)

    async def connect(connection: Connection, host: str) -> tuple[Connection, Address]:
        return connection, await connection.connect(host, url.nfs_port, NFS_PROGRAM, NFS_VERSION)

    hosts.sort(key=lambda host: host != good)
    (connection, peer), _ = await _first_that_answers(url, hosts, "NFS", url.nfs_port, connect, keep=True)
    others = (Address(host, peer.port) for host in hosts if host != peer.host)
    return Mounted(root, connection, (peer, *others))


async def _resolve(host: str) -> list[str]:
    try:
        with trio.fail_after(CONNECT_SECONDS):
            found = await trio.socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except trio.TooSlowError:
        raise SourceError(f"{host}: the name server does not answer") from None
    except (OSError, UnicodeError) as error:
        text = error.strerror if isinstance(error, OSError) else "not a host name"
        raise SourceError(f"{host}: unknown host: {text}") from None
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def _first_that_answers(
    url: NfsUrl,
    hosts: list[str],
    program: str,
    port: int | None,
    ask: Callable[[Connection, str], Awaitable[T]],
    *,
    keep: bool,
) -> tuple[T, str]:
    reason = "has no address"
    for host in hosts:
        connection = Connection()
        kept = False
        try:
            with trio.fail_after(CONNECT_SECONDS):
                answer = await ask(connection, host)
            kept = keep
            return answer, host
        except trio.TooSlowError:
            reason = f"no answer within {CONNECT_SECONDS:.0f} s"
        except ConnectionLost as error:
            reason = str(error)
        finally:
            if not kept:
                connection.close()
    where = f"port {port}" if port is not None else f"port {_PORTMAPPER_PORT} (portmapper)"
    advice = "" if port is not None else "; ports can be named: ?nfsport=2049&mountport=20048"
    raise SourceError(f"{url.host}: {program} on {where}: {_plain(reason)}{advice}")


async def _mnt(connection: Connection, url: NfsUrl, caller: Caller) -> Handle:
    path = url.path.encode(errors="surrogateescape")
    pending = Pending(mnt_call(path), caller, _XID)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        connection.send(pending)
        await pending.wait()
        nursery.cancel_scope.cancel()
    assert pending.outcome is not None
    if not pending.outcome[0]:
        raise SourceError(f"{url.host}: MOUNT of {url.path}: {_plain(str(pending.outcome[1]))}")
    answer = pending.outcome[1]
    if answer.status:
        text = MOUNT_STATUS_TEXT.get(answer.status, f"mountstat3 {answer.status}")
        raise SourceError(f"{url.host}: MOUNT of {url.path}: {text}")
    if answer.flavors and _AUTH_SYS not in answer.flavors:
        raise SourceError(f"{url.host}: {url.path} is not exported with sec=sys, and only that is spoken")
    return answer.handle


def _plain(reason: str) -> str:
    for text in ("Connection refused", "No route to host", "Network is unreachable", "Connection timed out"):
        if text in reason:
            return text.lower()
    return reason.removeprefix("RPC error. ").removeprefix("Server responded: ")
