"""Refusing files that stand on fuseswap itself: before they are made, judged or activated."""

import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fuseswap.cli.failure import Exit, Failure
from fuseswap.cli.source import is_url
from fuseswap.host.bounded import Hung, call
from fuseswap.host.recursion import fuseswap_below
from fuseswap.swap.activation import CHECK_RECURSION

_SECONDS = 10.0


def require_none(file: str) -> None:
    """Failure if the file, a URL or a path, stands on fuseswap or on memory of this machine."""
    what = below(file)
    if what:
        error = CHECK_RECURSION.refusal(what=what)
        raise Failure(f"{file}: {error.text} ({error.errno_name}); {error.remedy}", Exit.REFUSED)


def below(file: str) -> str:
    """What of fuseswap the file stands on, in words; empty if nothing is known. `Hung`.

    A URL is asked about where its server is this machine, and as far as the server sees the same directories.
    """
    path = _local_path(file) if is_url(file) else file
    if path is None:
        return ""
    return fuseswap_below(path, seconds=_SECONDS) or ""


def _local_path(url: str) -> str | None:
    parts = urlsplit(url)
    path = unquote(parts.path, errors="surrogateescape")
    if parts.scheme == "file":
        return path
    if parts.scheme != "nfs" or not parts.hostname:
        return None
    host = parts.hostname

    def look() -> bool:
        return Path(path).parent.is_dir() and _is_this_machine(host)

    try:
        return path if call(look, what=url, seconds=_SECONDS) else None
    except Hung:
        # Name service, or a directory that hangs; the server is asked next, and each of its steps has a limit.
        return None


def _is_this_machine(host: str) -> bool:
    """Whether one of the host's addresses is ours, that is: can be bound to."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind(address)
            except OSError:
                continue
            return True
    return False
