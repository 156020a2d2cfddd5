"""What swap_activate hands to the engine: where the file's pages live, in words that outlast the mount.

An `Activation` travels as JSON from the filesystem process (which knows the server) through the command to
the supervisor and the engine, and stays readable in the counters file, from which a filesystem process
started again learns which files are active.
"""

import json
from typing import Any

from attrs import asdict, field, frozen

from fuseswap.swap.units import PAGE_SIZE


@frozen
class Address:
    """A resolved transport address: a numeric IPv4 or IPv6 host and a TCP port. Never a name."""

    host: str
    port: int


@frozen
class NfsTarget:
    """An NFSv3 file, as READ and WRITE (RFC 1813 3.3.6, 3.3.7) need it."""

    addresses: tuple[Address, ...]
    file_handle: bytes = field(repr=bytes.hex)
    uid: int
    gid: int
    machine_name: str
    read_bytes_max: int
    """rtmax of FSINFO, in bytes."""
    write_bytes_max: int
    """wtmax of FSINFO, in bytes."""


@frozen
class MemoryTarget:
    """Pages kept in the engine's own memory: tests, teaching, and measuring the FUSE side alone."""

    delay_us: int = 0
    """Microseconds that each call takes before it is answered."""


@frozen
class ActivationRequest:
    """Who asks for swap_activate. The three names go into the header page as this machine's mark."""

    machine_id: str
    boot_id: str
    steal: bool = False
    """Go on although another machine's mark stands in the header page."""
    host: str = ""
    """The host name; empty if it is not known."""


@frozen
class Activation:
    """The result of swap_activate (fs-ops mode: one extent, slot n is file page n)."""

    source: str
    """The file as a user names it: URL of the mount plus the path below it."""
    size_bytes: int
    """Size of the file, a whole number of pages; fixed while active."""
    target: NfsTarget | MemoryTarget
    identity: str = ""
    """UUID of the header and fileid: the same by whatever export, and so whatever handle, the file is reached."""
    machine_id: str = ""
    boot_id: str = ""
    """Whose mark activation left in the header page."""

    @property
    def pages(self) -> int:
        """Pages of the file, the header page included."""
        return self.size_bytes // PAGE_SIZE


def activation_to_json(activation: Activation) -> str:
    """JSON text of an `Activation`."""
    plain = asdict(activation, value_serializer=_plain)
    plain["target"]["kind"] = "nfs" if isinstance(activation.target, NfsTarget) else "memory"
    return json.dumps(plain)


def activation_from_json(text: str | bytes) -> Activation:
    """The `Activation` that `activation_to_json` wrote. ValueError, KeyError or TypeError if it is not one."""
    plain = json.loads(text)
    target = plain.pop("target")
    kind = target.pop("kind")
    if kind == "memory":
        return Activation(target=MemoryTarget(**target), **plain)
    if kind != "nfs":
        raise ValueError(f"unknown target kind {kind!r}")
    addresses = tuple(Address(**address) for address in target.pop("addresses"))
    file_handle = bytes.fromhex(target.pop("file_handle"))
    return Activation(target=NfsTarget(addresses=addresses, file_handle=file_handle, **target), **plain)


def _plain(_instance: object, _field: object, value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
