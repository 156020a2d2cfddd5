"""MNT of the MOUNT protocol as a value, as codec.py has NFSv3's procedures."""

from typing import Any, Final

from attrs import frozen

from fuseswap.backends.nfs._libnfs import ffi, lib
from fuseswap.backends.nfs.codec import BadReply, Call, handle_bytes
from fuseswap.backends.protocol import Handle

_FLAVORS_MAX: Final = 64


@frozen
class MountReply:
    """mountres3: `status` is a mountstat3, the rest stands if it is 0."""

    status: int
    handle: Handle
    flavors: tuple[int, ...]


def mnt_call(path: bytes) -> Call[MountReply]:
    """MNT of MOUNT version 3, RFC 1813 5.2.1."""
    text = ffi.new("char[]", path)

    def queue(rpc: Any, key: Any) -> int:
        return int(lib.call_mnt(rpc, text, key))

    def decode(result: Any) -> MountReply:
        reply = ffi.cast("mountres3 *", result)
        if reply.fhs_status != 0:
            return MountReply(reply.fhs_status, b"", ())
        ok = reply.mountres3_u.mountinfo
        flavors = ok.auth_flavors
        if flavors.auth_flavors_len > _FLAVORS_MAX:
            raise BadReply(f"{flavors.auth_flavors_len} authentication flavors")
        handle = handle_bytes(ok.fhandle.fhandle3_len, ok.fhandle.fhandle3_val)
        return MountReply(0, handle, tuple(flavors.auth_flavors_val[0 : flavors.auth_flavors_len]))

    return Call("mnt", queue, decode)
