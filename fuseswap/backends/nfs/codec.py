"""NFSv3 procedures as values: what to send, and how to read the reply.

A `Call` owns the C arguments (libnfs 6 reads WRITE data from them until the reply) and decodes its reply
inside libnfs's callback, for the result is freed behind it. Nothing of a reply is believed: lengths, types
and times are checked, and `BadReply` is raised for what RFC 1813 does not allow.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from attrs import define, frozen

from fuseswap.backends.nfs._libnfs import ffi, lib
from fuseswap.backends.nfs.status import NFS3_OK
from fuseswap.backends.protocol import (
    Attributes,
    Entry,
    FileType,
    Handle,
    SetAttributes,
    Statistics,
    Version,
    Written,
)

T = TypeVar("T")

HANDLE_BYTES_MAX: Final = 64
"""NFS3_FHSIZE."""

ENTRIES_MAX: Final = 1 << 16
"""Entries of one READDIRPLUS reply: far above what fits into one, so a longer list is a loop."""

_UNCHECKED: Final = 0
_GUARDED: Final = 1
_EXCLUSIVE: Final = 2
_SET_TO_SERVER_TIME: Final = 1
_SET_TO_CLIENT_TIME: Final = 2
UNSTABLE: Final = 0
FILE_SYNC: Final = 2

_NAME_BYTES: Final = 255
_SIZE_MAX: Final = (1 << 63) - 1
_TIME_MAX: Final = (1 << 32) - 1
_NS: Final = 1_000_000_000

_TYPES: Final = {
    1: FileType.REGULAR,
    2: FileType.DIRECTORY,
    3: FileType.BLOCK,
    4: FileType.CHARACTER,
    5: FileType.SYMLINK,
    6: FileType.SOCKET,
    7: FileType.FIFO,
}
_TYPE_NUMBERS: Final = {type: number for number, type in _TYPES.items()}


class BadReply(Exception):
    """The server's answer breaks RFC 1813."""


class NfsError(Exception):
    """A definite answer of the server other than NFS3_OK; `client` makes an OSError of it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"nfsstat3 {status}")
        self.status = status


@define(eq=False)
class Call(Generic[T]):
    """One call of one procedure: `queue(rpc, key)` hands it to libnfs, `decode(result)` reads the reply."""

    name: str
    queue: Callable[[Any, Any], int]
    decode: Callable[[Any], T]


@frozen
class WriteReply:
    """WRITE3resok."""

    count: int
    committed: int
    verifier: bytes
    written: Written


@frozen
class Created:
    """What CREATE, MKDIR, SYMLINK and MKNOD tell: either may be missing."""

    handle: Handle | None
    attributes: Attributes | None


@frozen
class Limits:
    """FSINFO3resok, in bytes."""

    read_bytes_max: int
    write_bytes_max: int
    readdir_bytes: int
    file_bytes_max: int


@frozen
class Page:
    """READDIRPLUS3resok."""

    entries: tuple[Entry, ...]
    verifier: bytes
    end: bool


def getattr_call(handle: Handle) -> Call[Attributes]:
    """GETATTR, RFC 1813 3.3.1."""
    args = ffi.new("GETATTR3args *")
    keep = _put_handle(args.object, handle)
    return _call("getattr", args, keep, "GETATTR3", lambda ok: _attributes(ok.obj_attributes))


def setattr_call(handle: Handle, changes: SetAttributes) -> Call[Attributes | None]:
    """SETATTR, RFC 1813 3.3.2, without guard."""
    args = ffi.new("SETATTR3args *")
    keep = _put_handle(args.object, handle)
    _put_changes(args.new_attributes, changes)
    return _call("setattr", args, keep, "SETATTR3", lambda ok: _post_attributes(ok.obj_wcc.after))


def lookup_call(parent: Handle, name: bytes) -> Call[Created]:
    """LOOKUP, RFC 1813 3.3.3."""
    args = ffi.new("LOOKUP3args *")
    keep = _put_name(args.what, parent, name)
    return _call(
        "lookup",
        args,
        keep,
        "LOOKUP3",
        lambda ok: Created(_handle(ok.object), _post_attributes(ok.obj_attributes)),
    )


def access_call(handle: Handle, bits: int) -> Call[int]:
    """ACCESS, RFC 1813 3.3.4: those of `bits` that are granted."""
    args = ffi.new("ACCESS3args *")
    keep = _put_handle(args.object, handle)
    args.access = bits
    return _call("access", args, keep, "ACCESS3", lambda ok: int(ok.access))


def readlink_call(handle: Handle) -> Call[bytes]:
    """READLINK, RFC 1813 3.3.5."""
    args = ffi.new("READLINK3args *")
    keep = _put_handle(args.symlink, handle)
    return _call("readlink", args, keep, "READLINK3", lambda ok: _text(ok.data))


def read_call(handle: Handle, offset: int, count: int) -> Call[tuple[bytes, bool]]:
    """READ, RFC 1813 3.3.6: the bytes, and whether the file ends with them."""
    args = ffi.new("READ3args *")
    file = _put_handle(args.file, handle)
    args.offset = offset
    args.count = count
    buffer = ffi.new("char[]", count) if lib.READ_INTO_BUFFER else ffi.NULL

    def queue(rpc: Any, key: Any) -> int:
        assert file is not None  # the C arguments point into it
        return int(lib.call_read(rpc, args, buffer, key))

    def decode(result: Any) -> tuple[bytes, bool]:
        ok = _resok("READ3", result)
        length = ok.count
        if length > count or ok.data.data_len != length:
            raise BadReply(f"READ of {count} bytes answered with {length} and {ok.data.data_len}")
        data = buffer if lib.READ_INTO_BUFFER else ok.data.data_val
        return (ffi.buffer(data, length)[:] if length else b""), bool(ok.eof)

    return Call("read", queue, decode)


def write_call(handle: Handle, offset: int, data: bytes | memoryview, stable: bool) -> Call[WriteReply]:
    """WRITE, RFC 1813 3.3.7."""
    args = ffi.new("WRITE3args *")
    length = len(data)
    keep = (_put_handle(args.file, handle), ffi.from_buffer("char[]", data))
    args.offset = offset
    args.count = length
    args.stable = FILE_SYNC if stable else UNSTABLE
    args.data.data_len = length
    args.data.data_val = keep[1]

    def read(ok: Any) -> WriteReply:
        if not 0 < ok.count <= length:
            raise BadReply(f"WRITE of {length} bytes answered with {ok.count}")
        return WriteReply(ok.count, ok.committed, ffi.buffer(ok.verf)[:], _written(ok.file_wcc))

    return _call("write", args, keep, "WRITE3", read)


def create_call(parent: Handle, name: bytes, changes: SetAttributes, exclusive: bytes | None) -> Call[Created]:
    """CREATE, RFC 1813 3.3.8: UNCHECKED, or EXCLUSIVE with the 8 bytes given (then without attributes)."""
    args = ffi.new("CREATE3args *")
    keep = _put_name(args.where, parent, name)
    if exclusive is None:
        args.how.mode = _UNCHECKED
        _put_changes(args.how.createhow3_u.obj_attributes, changes)
    else:
        args.how.mode = _EXCLUSIVE
        ffi.memmove(args.how.createhow3_u.verf, exclusive, 8)
    return _call("create", args, keep, "CREATE3", _created)


def guarded_create_call(parent: Handle, name: bytes, changes: SetAttributes) -> Call[Created]:
    """CREATE GUARDED, for servers that have no EXCLUSIVE."""
    args = ffi.new("CREATE3args *")
    keep = _put_name(args.where, parent, name)
    args.how.mode = _GUARDED
    _put_changes(args.how.createhow3_u.g_obj_attributes, changes)
    return _call("create", args, keep, "CREATE3", _created)


def mkdir_call(parent: Handle, name: bytes, changes: SetAttributes) -> Call[Created]:
    """MKDIR, RFC 1813 3.3.9."""
    args = ffi.new("MKDIR3args *")
    keep = _put_name(args.where, parent, name)
    _put_changes(args.attributes, changes)
    return _call("mkdir", args, keep, "MKDIR3", _created)


def symlink_call(parent: Handle, name: bytes, target: bytes, changes: SetAttributes) -> Call[Created]:
    """SYMLINK, RFC 1813 3.3.10."""
    args = ffi.new("SYMLINK3args *")
    keep = (_put_name(args.where, parent, name), ffi.new("char[]", target))
    args.symlink.symlink_data = keep[1]
    _put_changes(args.symlink.symlink_attributes, changes)
    return _call("symlink", args, keep, "SYMLINK3", _created)


def mknod_call(
    parent: Handle, name: bytes, type: FileType, rdev: tuple[int, int], changes: SetAttributes
) -> Call[Created]:
    """MKNOD, RFC 1813 3.3.11."""
    args = ffi.new("MKNOD3args *")
    keep = _put_name(args.where, parent, name)
    args.what.type = _TYPE_NUMBERS[type]
    if type in (FileType.BLOCK, FileType.CHARACTER):
        device = args.what.mknoddata3_u.chr_device
        _put_changes(device.dev_attributes, changes)
        device.spec.specdata1, device.spec.specdata2 = rdev
    else:
        _put_changes(args.what.mknoddata3_u.pipe_attributes, changes)
    return _call("mknod", args, keep, "MKNOD3", _created)


def remove_call(parent: Handle, name: bytes) -> Call[None]:
    """REMOVE, RFC 1813 3.3.12."""
    args = ffi.new("REMOVE3args *")
    return _call("remove", args, _put_name(args.object, parent, name), "REMOVE3", None)


def rmdir_call(parent: Handle, name: bytes) -> Call[None]:
    """RMDIR, RFC 1813 3.3.13."""
    args = ffi.new("RMDIR3args *")
    return _call("rmdir", args, _put_name(args.object, parent, name), "RMDIR3", None)


def rename_call(old_parent: Handle, old_name: bytes, new_parent: Handle, new_name: bytes) -> Call[None]:
    """RENAME, RFC 1813 3.3.14."""
    args = ffi.new("RENAME3args *")
    keep = (
        _put_name(getattr(args, "from"), old_parent, old_name),
        _put_name(args.to, new_parent, new_name),
    )
    return _call("rename", args, keep, "RENAME3", None)


def link_call(handle: Handle, parent: Handle, name: bytes) -> Call[Attributes | None]:
    """LINK, RFC 1813 3.3.15."""
    args = ffi.new("LINK3args *")
    keep = (_put_handle(args.file, handle), _put_name(args.link, parent, name))
    return _call("link", args, keep, "LINK3", lambda ok: _post_attributes(ok.file_attributes))


def readdirplus_call(handle: Handle, cookie: int, verifier: bytes, bytes_max: int) -> Call[Page]:
    """READDIRPLUS, RFC 1813 3.3.17; an empty verifier stands for zeroes."""
    args = ffi.new("READDIRPLUS3args *")
    keep = _put_handle(args.dir, handle)
    args.cookie = cookie
    ffi.memmove(args.cookieverf, verifier or bytes(8), 8)
    args.dircount = args.maxcount = bytes_max

    def read(ok: Any) -> Page:
        entries: list[Entry] = []
        entry = ok.reply.entries
        while entry != ffi.NULL:
            if len(entries) == ENTRIES_MAX:
                raise BadReply("READDIRPLUS answered with an endless list")
            entries.append(_entry(entry))
            entry = entry.nextentry
        return Page(tuple(entries), ffi.buffer(ok.cookieverf)[:], bool(ok.reply.eof))

    return _call("readdirplus", args, keep, "READDIRPLUS3", read)


def fsstat_call(handle: Handle) -> Call[Statistics]:
    """FSSTAT, RFC 1813 3.3.18; the length of names comes from PATHCONF."""
    args = ffi.new("FSSTAT3args *")
    keep = _put_handle(args.fsroot, handle)

    def read(ok: Any) -> Statistics:
        return Statistics(ok.tbytes, ok.fbytes, ok.abytes, ok.tfiles, ok.ffiles, ok.afiles, _NAME_BYTES)

    return _call("fsstat", args, keep, "FSSTAT3", read)


def fsinfo_call(handle: Handle) -> Call[Limits]:
    """FSINFO, RFC 1813 3.3.19."""
    args = ffi.new("FSINFO3args *")
    keep = _put_handle(args.fsroot, handle)

    def read(ok: Any) -> Limits:
        # nfs_super_set_maxbytes (fs/nfs/internal.h) takes 0 for no limit, too.
        return Limits(ok.rtmax, ok.wtmax, ok.dtpref, min(ok.maxfilesize or _SIZE_MAX, _SIZE_MAX))

    return _call("fsinfo", args, keep, "FSINFO3", read)


def pathconf_call(handle: Handle) -> Call[int]:
    """PATHCONF, RFC 1813 3.3.20: name_max."""
    args = ffi.new("PATHCONF3args *")
    keep = _put_handle(args.object, handle)
    return _call("pathconf", args, keep, "PATHCONF3", lambda ok: int(ok.name_max))


def commit_call(handle: Handle) -> Call[bytes]:
    """COMMIT of the whole file, RFC 1813 3.3.21: the write verifier."""
    args = ffi.new("COMMIT3args *")
    keep = _put_handle(args.file, handle)
    return _call("commit", args, keep, "COMMIT3", lambda ok: ffi.buffer(ok.verf)[:])


def _call(name: str, args: Any, keep: object, result_type: str, read: Callable[[Any], T] | None) -> Call[Any]:
    function = getattr(lib, f"call_{name}")

    def queue(rpc: Any, key: Any) -> int:
        assert keep is not None  # the C arguments point into it
        return int(function(rpc, args, key))

    def decode(result: Any) -> T | None:
        if read is None:
            _check_status(ffi.cast(f"{result_type}res *", result).status)
            return None
        return read(_resok(result_type, result))

    return Call(name, queue, decode)


def _resok(type: str, result: Any) -> Any:
    reply = ffi.cast(f"{type}res *", result)
    _check_status(reply.status)
    return getattr(reply, f"{type}res_u").resok


def _check_status(status: int) -> None:
    if status != NFS3_OK:
        raise NfsError(status)


def _put_handle(field: Any, handle: Handle) -> object:
    data = ffi.from_buffer("char[]", handle)
    field.data.data_len = len(handle)
    field.data.data_val = data
    return data


def _put_name(field: Any, parent: Handle, name: bytes) -> object:
    text = ffi.new("char[]", name)
    field.name = text
    return _put_handle(field.dir, parent), text


def _put_changes(field: Any, changes: SetAttributes) -> None:
    for name in ("mode", "uid", "gid", "size"):
        value = getattr(changes, name)
        if value is not None:
            part = getattr(field, name)
            part.set_it = 1
            setattr(getattr(part, f"set_{name}3_u"), name, value)
    if changes.touch:
        field.atime.set_it = field.mtime.set_it = _SET_TO_SERVER_TIME
    for name in ("atime", "mtime"):
        nanoseconds = getattr(changes, f"{name}_ns")
        if nanoseconds is not None:
            seconds, rest = divmod(nanoseconds, _NS)
            if not 0 <= seconds <= _TIME_MAX:
                raise OSError(errno.EINVAL, "NFSv3 has no time before 1970 or after 2106")
            part = getattr(field, name)
            part.set_it = _SET_TO_CLIENT_TIME
            time = getattr(getattr(part, f"set_{name}_u"), name)
            time.seconds, time.nseconds = seconds, rest


def _handle(field: Any) -> Handle:
    return handle_bytes(field.data.data_len, field.data.data_val)


def handle_bytes(length: int, data: Any) -> Handle:
    """A handle from C memory, which must have a handle's length."""
    if not 0 < length <= HANDLE_BYTES_MAX:
        raise BadReply(f"file handle of {length} bytes")
    return bytes(ffi.buffer(data, length))


def _text(data: Any) -> bytes:
    if data == ffi.NULL:
        raise BadReply("missing string")
    return bytes(ffi.string(data))


def _created(ok: Any) -> Created:
    handle = _handle(ok.obj.post_op_fh3_u.handle) if ok.obj.handle_follows else None
    return Created(handle, _post_attributes(ok.obj_attributes))


def _entry(entry: Any) -> Entry:
    name = _text(entry.name)
    if not name or b"/" in name:
        raise BadReply(f"directory entry {name!r}")
    handle = entry.name_handle
    return Entry(
        name,
        entry.fileid,
        entry.cookie,
        _handle(handle.post_op_fh3_u.handle) if handle.handle_follows else None,
        _post_attributes(entry.name_attributes),
    )


def _post_attributes(field: Any) -> Attributes | None:
    return _attributes(field.post_op_attr_u.attributes) if field.attributes_follow else None


def _written(wcc: Any) -> Written:
    before = None
    if wcc.before.attributes_follow:
        found = wcc.before.pre_op_attr_u.attributes
        before = Version(found.size, _nanoseconds(found.mtime), _nanoseconds(found.ctime))
    return Written(before, _post_attributes(wcc.after))


def _attributes(attr: Any) -> Attributes:
    type = _TYPES.get(attr.type)
    if type is None:
        raise BadReply(f"file type {attr.type}")
    if attr.size > _SIZE_MAX:
        raise BadReply(f"file size {attr.size}")
    return Attributes(
        type,
        attr.mode & 0o7777,
        attr.nlink,
        attr.uid,
        attr.gid,
        attr.size,
        min(attr.used, _SIZE_MAX),
        (attr.rdev.specdata1, attr.rdev.specdata2),
        attr.fileid,
        _nanoseconds(attr.atime),
        _nanoseconds(attr.mtime),
        _nanoseconds(attr.ctime),
    )


def _nanoseconds(time: Any) -> int:
    return int(time.seconds) * _NS + min(int(time.nseconds), _NS - 1)
