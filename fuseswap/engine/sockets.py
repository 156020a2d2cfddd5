"""The one TCP socket of the engine: made before it serves, kept for ever."""

import errno
import os
import socket
from pathlib import Path
from typing import Final

from fuseswap.engine import libc
from fuseswap.swap.target import NfsTarget

SEND_BUFFER_BYTES: Final = 512 << 10
"""Bounds what the kernel allocates in the engine's name; larger buffers hung a machine of 256 MiB."""
RECEIVE_BUFFER_BYTES: Final = 2 << 20
USER_TIMEOUT_MS: Final = 60_000
"""Unsent or unacknowledged data for this long end the connection. Not less than a call's time limit: a server whose
disk stalls closes its window, and sending all again would not help it. A dead peer is found by keep-alive."""
KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


def make_socket(target: NfsTarget) -> tuple[socket.socket, list[bytes]]:
    """A non-blocking TCP socket for all of the target's addresses, bound below 1024 where allowed."""
    family = socket.AF_INET6 if any(":" in address.host for address in target.addresses) else socket.AF_INET
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        sock = socket.socket(family, kind)
    except OSError as error:
        # A kernel without IPv6. Names have IPv6 addresses all the same; connecting to one fails at once here.
        if family == socket.AF_INET or error.errno != errno.EAFNOSUPPORT:
            raise
        family = socket.AF_INET
        sock = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        _bind_reserved(sock)
        addresses = [
            libc.socket_address(socket.AF_INET6 if ":" in address.host else family, address.host, address.port)
            for address in target.addresses
        ]
    except BaseException:
        sock.close()
        raise
    return sock, addresses


def _bind_reserved(sock: socket.socket) -> None:
    # Servers' default `secure` option takes calls from ports below 1024 only (exports(5)). A port that the kernel
    # chooses is given up by connect(AF_UNSPEC), one that was asked for stays (SOCK_BINDPORT_LOCK).
    spared = _blacklisted_ports()
    for first, last in ((665, 1023), (32768, 60999)):
        ports = [port for port in range(first, last + 1) if port not in spared]
        begin = int.from_bytes(os.urandom(2)) % len(ports)
        for port in ports[begin:] + ports[:begin]:
            try:
                sock.bind(("", port))
                return
            except PermissionError:
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _blacklisted_ports() -> set[int]:
    """Ports that a daemon of this machine is to have (bindresvport.blacklist(5), as libc and rpcbind keep to it)."""
    try:
        text = Path("/etc/bindresvport.blacklist").read_text(errors="replace")
    except OSError:
        return set()
    words = [line.partition("#")[0].strip() for line in text.splitlines()]
    return {int(word) for word in words if word.isdecimal()}
