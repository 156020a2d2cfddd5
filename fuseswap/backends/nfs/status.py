"""Status words of NFSv3 and MOUNT, and the errno that a user sees for each (RFC 1813 2.6, 5.1.5)."""

import errno
from typing import Final

NFS3_OK: Final = 0
NFS3ERR_NOENT: Final = 2
NFS3ERR_EXIST: Final = 17
NFS3ERR_JUKEBOX: Final = 10008

_ERRNO: Final = {
    1: errno.EPERM,
    2: errno.ENOENT,
    5: errno.EIO,
    6: errno.ENXIO,
    13: errno.EACCES,
    17: errno.EEXIST,
    18: errno.EXDEV,
    19: errno.ENODEV,
    20: errno.ENOTDIR,
    21: errno.EISDIR,
    22: errno.EINVAL,
    27: errno.EFBIG,
    28: errno.ENOSPC,
    30: errno.EROFS,
    31: errno.EMLINK,
    63: errno.ENAMETOOLONG,
    66: errno.ENOTEMPTY,
    69: errno.EDQUOT,
    70: errno.ESTALE,
    71: errno.EREMOTE,
    10001: errno.ESTALE,  # BADHANDLE, as fs/nfs_common/common.c has it for a handle that was good once
    10002: errno.EINVAL,  # NOT_SYNC
    10003: errno.ESTALE,  # BAD_COOKIE
    10004: errno.EOPNOTSUPP,
    10005: errno.EIO,  # TOOSMALL
    10006: errno.EIO,  # SERVERFAULT
    10007: errno.EINVAL,  # BADTYPE
    10008: errno.EAGAIN,  # JUKEBOX never reaches a user: the client waits
}


def errno_of(status: int) -> int:
    """The errno for an nfsstat3; a status outside RFC 1813 is the server's fault: EIO."""
    return _ERRNO.get(status, errno.EIO)


MOUNT_STATUS_TEXT: Final = {
    1: "not permitted",
    2: "no such export",
    5: "I/O error on the server",
    13: "no such export for this machine, or the server wants a source port below 1024",
    20: "not a directory",
    22: "invalid argument",
    63: "the path is too long",
    10004: "the server does not support the MOUNT call",
    10006: "the server failed",
}
