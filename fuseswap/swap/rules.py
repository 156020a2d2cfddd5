"""The table of operations: what a user may do to a file, and what not while it is swap.

The kernel marks an active swap file with S_SWAPFILE and lets that one bit refuse what would move, change or
free its blocks. It never marks a FUSE file, so here the same refusals are a table, which the ordinary mount
obeys (`verdict`), `fuseswap contract` prints and the tests compare with the kernel's own file systems.

Outcomes are 0 (allowed) or an errno; a negative number is a signal. The native columns are ext4's; where xfs
and btrfs give something else, NATIVE_DEVIATIONS says so. Where the ordinary mount deliberately or inevitably
differs from the kernel, `difference` says why; a row without one behaves as the kernel does.

While swapon or swapoff is at work, the kernel makes writers and their like wait for the inode lock; they get what the
state afterwards says. So it is here: activation is asked for by setxattr(2), which holds that lock. Who needs no lock
meets a file that is guarded from the first moment of activation to the last of deactivation.

How a file gets from one state to the next is lifecycle.py's table.
"""

from collections.abc import Mapping
from enum import Enum
from errno import (
    EBUSY,
    EEXIST,
    EFBIG,
    EINVAL,
    ENODEV,
    ENOSYS,
    ENOTEMPTY,
    ENOTTY,
    EOPNOTSUPP,
    EPERM,
    ETXTBSY,
)
from signal import SIGBUS
from types import MappingProxyType
from typing import Final

from attrs import frozen

from fuseswap.swap.errors import errno_name

OUTCOME_SIGBUS: Final = -SIGBUS.value


class Operation(Enum):
    """What a user can do to a file. The value is how people call it."""

    OPEN_READ = "open for reading"
    OPEN_WRITE = "open for writing (O_APPEND, O_CREAT, O_DIRECT alike)"
    OPEN_EXCLUSIVE = "open with O_CREAT|O_EXCL"
    OPEN_TRUNCATE = "open with O_TRUNC"
    READ = "read"
    READ_DIRECT = "read with O_DIRECT"
    READ_UNALIGNED = "read with O_DIRECT, unaligned"
    READ_OLD_HANDLE = "read by a handle opened before activation"
    WRITE = "write (pwrite, writev, append)"
    WRITE_DIRECT = "write with O_DIRECT"
    WRITE_UNALIGNED = "write with O_DIRECT, unaligned"
    WRITE_OLD_HANDLE = "write by a handle opened before activation"
    WRITE_BEHIND_END = "write behind the end"
    WRITE_EMPTY = "write of 0 bytes"
    SPLICE_INTO = "splice or sendfile into it"
    TRUNCATE_SMALLER = "truncate to a smaller size"
    TRUNCATE_SAME = "truncate to the same size"
    TRUNCATE_LARGER = "truncate to a larger size"
    FALLOCATE = "fallocate"
    FALLOCATE_KEEP_SIZE = "fallocate KEEP_SIZE"
    FALLOCATE_PUNCH_HOLE = "fallocate PUNCH_HOLE"
    FALLOCATE_ZERO_RANGE = "fallocate ZERO_RANGE"
    FALLOCATE_COLLAPSE_RANGE = "fallocate COLLAPSE_RANGE"
    FALLOCATE_INSERT_RANGE = "fallocate INSERT_RANGE"
    FALLOCATE_UNSHARE_RANGE = "fallocate UNSHARE_RANGE"
    UNLINK = "unlink"
    UNLINK_OTHER_NAME = "unlink another name of it"
    RENAME_SOURCE = "rename it"
    RENAME_TARGET = "rename another file onto it"
    RENAME_EXCHANGE = "exchange it with another file"
    LINK = "link a new name to it"
    RENAME_DIRECTORY = "rename its directory"
    REMOVE_DIRECTORY = "rmdir its directory"
    STAT = "stat"
    CHMOD = "chmod"
    CHOWN = "chown"
    UTIMES = "utimes"
    GETXATTR = "getxattr, listxattr"
    SETXATTR = "setxattr"
    REMOVEXATTR = "removexattr"
    CHATTR = "chattr"
    MMAP_SHARED_WRITE = "mmap MAP_SHARED for writing"
    MMAP_SHARED_READ = "mmap MAP_SHARED for reading"
    MMAP_PRIVATE = "mmap MAP_PRIVATE"
    LOAD_OLD_SHARED_MAPPING = "load from a shared mapping made before activation"
    STORE_OLD_SHARED_MAPPING = "store to a shared mapping made before activation, msync"
    STORE_OLD_PRIVATE_MAPPING = "store to a private mapping made before activation"
    COPY_RANGE_FROM = "copy_file_range out of it"
    COPY_RANGE_INTO = "copy_file_range into it"
    CLONE_FROM = "FICLONE of it"
    CLONE_INTO = "FICLONE onto it"
    DEDUPE_FROM = "FIDEDUPERANGE as source"
    DEDUPE_INTO = "FIDEDUPERANGE as destination"
    SEEK_DATA = "lseek SEEK_DATA"
    SEEK_HOLE = "lseek SEEK_HOLE"
    FIEMAP = "FS_IOC_FIEMAP"
    FIBMAP = "FIBMAP"
    FSYNC = "fsync, fdatasync"
    SYNC_FILE_RANGE = "sync_file_range"
    SYNCFS = "syncfs"
    FADVISE = "posix_fadvise"
    LOCK = "fcntl lock"
    FLOCK = "flock"
    ACTIVATE = "swapon, fuseswap on"
    ACTIVATE_OTHER_NAME = "swapon by another name of it"
    DEACTIVATE = "swapoff, fuseswap off"
    UNMOUNT = "unmount its file system"
    REMOUNT_READ_ONLY = "remount its file system read-only"


class FileState(Enum):
    """The life of a file as swap."""

    ORDINARY = "ordinary"
    ACTIVATING = "activating"
    """swap_activate has begun: facts are gathered and judged."""
    ACTIVE = "active"
    DEACTIVATING = "deactivating"
    """swap_deactivate has begun: the mark is being cleared."""


@frozen
class Rule:
    """One row of the table. Outcomes are 0 (allowed), an errno, or a negative signal."""

    operation: Operation
    opcode: str
    """The FUSE message by which the ordinary mount learns of it; empty if the kernel never asks."""
    native: tuple[int, int]
    """What ext4 does to an ordinary and to an active file."""
    here: tuple[int, int, int, int]
    """What the ordinary mount does, in the order of `FileState`."""
    imposed_by: str
    """The kernel function that refuses it while active, or `nobody`."""
    why: str
    difference: str = ""
    """Why the ordinary mount differs from `native`; empty where it does not."""

    def outcome(self, state: FileState) -> int:
        """What the ordinary mount does to a file in `state`."""
        return self.here[_STATE_INDEX[state]]


_STATE_INDEX: Final = {state: index for index, state in enumerate(FileState)}


def outcome_name(outcome: int) -> str:
    """`ok`, the errno's name, or `SIGBUS`."""
    if outcome == 0:
        return "ok"
    return "SIGBUS" if outcome == OUTCOME_SIGBUS else errno_name(outcome)


def _same(operation: Operation, opcode: str, outcome: int, imposed_by: str, why: str) -> Rule:
    """The same in every state, natively and here."""
    return Rule(operation, opcode, (outcome,) * 2, (outcome,) * 4, imposed_by, why)


def _allowed(operation: Operation, opcode: str, why: str) -> Rule:
    return _same(operation, opcode, 0, "nobody", why)


def _guarded(operation: Operation, opcode: str, errno: int, imposed_by: str, why: str) -> Rule:
    """Allowed on an ordinary file, refused from activation to deactivation, natively and here."""
    return Rule(operation, opcode, (0, errno), (0, errno, errno, errno), imposed_by, why)


def _differs(
    operation: Operation,
    opcode: str,
    native: tuple[int, int],
    here: tuple[int, int],
    imposed_by: str,
    why: str,
    difference: str,
) -> Rule:
    """`here` is for an ordinary file, and for all other states."""
    ordinary, guarded = here
    row = (ordinary, guarded, guarded, guarded)
    return Rule(operation, opcode, native, row, imposed_by, why, difference)


_CONTENT = "Its pages belong to memory management, which would read back what it never wrote."
_BLOCKS = "The pages' places are fixed at activation; whatever frees or moves them makes swap write elsewhere."
_NAME = "A swap file without its name could not be found again to be swapped off."
_HARMLESS = "It changes neither the pages nor where they lie."
_READING = "Reading disturbs nothing. What is read is other processes' memory: keep the mode at 0600."
_NO_FALLOCATE = "pyfuse3 does not carry FALLOCATE, so libfuse refuses it for every file."
_DIRECT_ONLY = (
    "An active file is opened with FOPEN_DIRECT_IO, so that no page cache stands beside the pages of swap;"
    " the kernel offers no shared mapping then."
)
_NOT_NEEDED = "The engine reaches the server by itself; nothing of swap depends on the ordinary mount."
_NO_XATTR = "NFSv3 has no extended attributes."
_SHARED_BLOCKS = "Shared blocks move when they are written; ext4 and FUSE can share none."
_TWO_AREAS = "Two areas on the same pages overwrite each other; it is the inode that is active, not a name."
_NO_ALIGNMENT = "FUSE asks no alignment of direct I/O; bytes are served as asked."

_O = Operation

_ROWS: Final = (
    _allowed(_O.OPEN_READ, "OPEN", _READING),
    _allowed(_O.OPEN_WRITE, "OPEN", "Opening changes nothing; each write is refused instead."),
    _same(_O.OPEN_EXCLUSIVE, "LOOKUP", EEXIST, "do_open", "The name is taken, swap or not."),
    _guarded(_O.OPEN_TRUNCATE, "OPEN", ETXTBSY, "inode_newsize_ok", _BLOCKS),
    _allowed(_O.READ, "READ", _READING),
    _allowed(_O.READ_DIRECT, "READ", _READING),
    _differs(_O.READ_UNALIGNED, "READ", (EINVAL, EINVAL), (0, 0), "nobody", _READING, _NO_ALIGNMENT),
    _allowed(_O.READ_OLD_HANDLE, "READ", _READING),
    _guarded(_O.WRITE, "WRITE", ETXTBSY, "generic_write_checks", _CONTENT),
    _guarded(_O.WRITE_DIRECT, "WRITE", ETXTBSY, "generic_write_checks", _CONTENT),
    _differs(
        _O.WRITE_UNALIGNED,
        "WRITE",
        (EINVAL, ETXTBSY),
        (0, ETXTBSY),
        "generic_write_checks",
        _CONTENT,
        _NO_ALIGNMENT,
    ),
    _guarded(
        _O.WRITE_OLD_HANDLE,
        "WRITE",
        ETXTBSY,
        "generic_write_checks",
        "The check is made at each write, so a handle that is older than swap gains nothing by it.",
    ),
    _guarded(_O.WRITE_BEHIND_END, "WRITE", ETXTBSY, "generic_write_checks", _CONTENT),
    _differs(
        _O.WRITE_EMPTY,
        "",
        (0, ETXTBSY),
        (0, 0),
        "generic_write_checks",
        "The check comes before the length is looked at.",
        "The kernel answers an empty write to a FUSE file by itself; nothing is written.",
    ),
    _guarded(_O.SPLICE_INTO, "WRITE", ETXTBSY, "generic_write_checks", _CONTENT),
    _guarded(_O.TRUNCATE_SMALLER, "SETATTR", ETXTBSY, "inode_newsize_ok", _BLOCKS),
    _guarded(_O.TRUNCATE_SAME, "SETATTR", ETXTBSY, "inode_newsize_ok", _BLOCKS),
    _differs(
        _O.TRUNCATE_LARGER,
        "SETATTR",
        (0, 0),
        (0, ETXTBSY),
        "nobody",
        "inode_newsize_ok looks at swap only where the file does not grow.",
        "The engine and the loop device know the size of activation; growth waits until swap is off.",
    ),
    *(
        _differs(operation, "FALLOCATE", native, (EOPNOTSUPP,) * 2, "vfs_fallocate", _BLOCKS, _NO_FALLOCATE)
        for operation, native in (
            (_O.FALLOCATE, (0, ETXTBSY)),
            (_O.FALLOCATE_KEEP_SIZE, (0, ETXTBSY)),
            (_O.FALLOCATE_PUNCH_HOLE, (0, ETXTBSY)),
            (_O.FALLOCATE_ZERO_RANGE, (0, ETXTBSY)),
        )
    ),
    *(
        _differs(operation, "", native, (EOPNOTSUPP,) * 2, "vfs_fallocate", _BLOCKS, _NO_FALLOCATE)
        for operation, native in (
            (_O.FALLOCATE_COLLAPSE_RANGE, (0, ETXTBSY)),
            (_O.FALLOCATE_INSERT_RANGE, (0, ETXTBSY)),
            (_O.FALLOCATE_UNSHARE_RANGE, (EOPNOTSUPP, ETXTBSY)),
        )
    ),
    _guarded(_O.UNLINK, "UNLINK", EPERM, "may_delete", _NAME),
    _guarded(_O.UNLINK_OTHER_NAME, "UNLINK", EPERM, "may_delete", _NAME),
    _guarded(_O.RENAME_SOURCE, "RENAME", EPERM, "may_delete", _NAME),
    _guarded(_O.RENAME_TARGET, "RENAME", EPERM, "may_delete", _NAME),
    _differs(
        _O.RENAME_EXCHANGE,
        "RENAME2",
        (0, EPERM),
        (EINVAL, EPERM),
        "may_delete",
        _NAME,
        "NFSv3's RENAME can replace, not exchange.",
    ),
    _allowed(_O.LINK, "LINK", "A further name takes nothing away; it cannot be removed until swapoff."),
    _allowed(_O.RENAME_DIRECTORY, "RENAME", "The file is found by its inode, not by its path."),
    _same(_O.REMOVE_DIRECTORY, "RMDIR", ENOTEMPTY, "vfs_rmdir", "A directory that holds a file is not empty."),
    _allowed(_O.STAT, "GETATTR", _HARMLESS),
    _allowed(_O.CHMOD, "SETATTR", _HARMLESS),
    _allowed(_O.CHOWN, "SETATTR", _HARMLESS),
    _allowed(_O.UTIMES, "SETATTR", _HARMLESS),
    _allowed(_O.GETXATTR, "GETXATTR", _HARMLESS),
    _differs(_O.SETXATTR, "SETXATTR", (0, 0), (EOPNOTSUPP,) * 2, "nobody", _HARMLESS, _NO_XATTR),
    _differs(_O.REMOVEXATTR, "REMOVEXATTR", (0, 0), (EOPNOTSUPP,) * 2, "nobody", _HARMLESS, _NO_XATTR),
    _differs(
        _O.CHATTR,
        "IOCTL",
        (0, 0),
        (ENOTTY, ENOTTY),
        "nobody",
        _HARMLESS,
        "NFSv3 has no inode flags, and pyfuse3 does not carry IOCTL.",
    ),
    _differs(_O.MMAP_SHARED_WRITE, "", (0, ETXTBSY), (0, ENODEV), "do_mmap", _CONTENT, _DIRECT_ONLY),
    _differs(_O.MMAP_SHARED_READ, "", (0, 0), (0, ENODEV), "nobody", _READING, _DIRECT_ONLY),
    _allowed(_O.MMAP_PRIVATE, "", "What is stored there never reaches the file."),
    _allowed(_O.LOAD_OLD_SHARED_MAPPING, "READ", _READING),
    _differs(
        _O.STORE_OLD_SHARED_MAPPING,
        "WRITE",
        (0, OUTCOME_SIGBUS),
        (0, ETXTBSY),
        "do_page_mkwrite",
        "swapon cleans such mappings (inode_drain_writes), so that the next store faults and is refused.",
        "FUSE asks at writeback, not at the store: it lands in the page cache, and msync is refused.",
    ),
    _allowed(_O.STORE_OLD_PRIVATE_MAPPING, "", "What is stored there never reaches the file."),
    _differs(
        _O.COPY_RANGE_FROM,
        "READ",
        (0, ETXTBSY),
        (0, 0),
        "generic_copy_file_checks",
        "A clone would share blocks, after which writing to one would move the other.",
        "Without a server-side copy the kernel falls back to reading, which is allowed.",
    ),
    _guarded(_O.COPY_RANGE_INTO, "WRITE", ETXTBSY, "generic_copy_file_checks", _CONTENT),
    *(
        _same(operation, "", EOPNOTSUPP, "generic_remap_file_range_prep", _SHARED_BLOCKS)
        for operation in (_O.CLONE_FROM, _O.CLONE_INTO, _O.DEDUPE_FROM, _O.DEDUPE_INTO)
    ),
    _allowed(_O.SEEK_DATA, "LSEEK", _HARMLESS),
    _allowed(_O.SEEK_HOLE, "LSEEK", _HARMLESS),
    _differs(
        _O.FIEMAP,
        "",
        (0, 0),
        (EOPNOTSUPP, EOPNOTSUPP),
        "nobody",
        _HARMLESS,
        "Where the server keeps a file is not known here.",
    ),
    _allowed(_O.FIBMAP, "", "On FUSE the answer is block 0, that is none."),
    _allowed(_O.FSYNC, "FSYNC", "An answered swap write is stable already."),
    _allowed(_O.SYNC_FILE_RANGE, "", _HARMLESS),
    _allowed(_O.SYNCFS, "", _HARMLESS),
    _allowed(_O.FADVISE, "", _HARMLESS),
    _allowed(_O.LOCK, "", "Locks are advisory."),
    _allowed(_O.FLOCK, "", "Locks are advisory."),
    _guarded(_O.ACTIVATE, "SETXATTR", EBUSY, "sys_swapon", _TWO_AREAS),
    _guarded(_O.ACTIVATE_OTHER_NAME, "SETXATTR", EBUSY, "sys_swapon", _TWO_AREAS),
    Rule(
        _O.DEACTIVATE,
        "SETXATTR",
        native=(EINVAL, 0),
        here=(EINVAL, EINVAL, 0, EINVAL),
        imposed_by="sys_swapoff",
        why="Only what is swapped on, and not already on its way off, can be swapped off.",
    ),
    _differs(_O.UNMOUNT, "", (0, EBUSY), (0, 0), "do_umount", "The swap file is open.", _NOT_NEEDED),
    _differs(
        _O.REMOUNT_READ_ONLY,
        "",
        (0, EBUSY),
        (0, 0),
        "sb_prepare_remount_readonly",
        "The swap file is open for writing.",
        _NOT_NEEDED,
    ),
)

RULES: Final[Mapping[Operation, Rule]] = MappingProxyType({row.operation: row for row in _ROWS})
"""Every operation's row, in the order of `Operation`."""


NATIVE_DEVIATIONS: Final[Mapping[tuple[str, Operation], tuple[int, int]]] = MappingProxyType(
    {
        # btrfs serves unaligned direct I/O through the page cache; xfs looks at alignment, and at length, first.
        ("btrfs", _O.READ_UNALIGNED): (0, 0),
        ("btrfs", _O.WRITE_UNALIGNED): (0, ETXTBSY),
        ("xfs", _O.WRITE_UNALIGNED): (EINVAL, EINVAL),
        ("xfs", _O.WRITE_EMPTY): (0, 0),
        ("btrfs", _O.FALLOCATE_COLLAPSE_RANGE): (EOPNOTSUPP, ETXTBSY),
        ("btrfs", _O.FALLOCATE_INSERT_RANGE): (EOPNOTSUPP, ETXTBSY),
        ("xfs", _O.FALLOCATE_UNSHARE_RANGE): (0, ETXTBSY),
        **{
            (filesystem, operation): (0, ETXTBSY)
            for filesystem in ("xfs", "btrfs")
            for operation in (_O.CLONE_FROM, _O.CLONE_INTO, _O.DEDUPE_FROM, _O.DEDUPE_INTO)
        },
        ("btrfs", _O.FIBMAP): (EINVAL, EINVAL),
    }
)
"""What xfs and btrfs do where it is not what ext4 does: (ordinary, active), as measured on 6.18."""


def native_outcomes(filesystem: str, operation: Operation) -> tuple[int, int]:
    """What the kernel's ext4, xfs or btrfs does to an ordinary and to an active file. Never fails."""
    return NATIVE_DEVIATIONS.get((filesystem, operation), RULES[operation].native)


def verdict(operation: Operation, state: FileState) -> int:
    """0 if the ordinary mount allows `operation` on a file in `state`, else the errno. Never fails."""
    return RULES[operation].outcome(state)


@frozen
class EngineRule:
    """One row of the engine's private file."""

    request: str
    outcome: int
    why: str


ENGINE_RULES: Final = (
    EngineRule("OPEN for writing with O_DIRECT, the first", 0, "The loop device's; swap I/O carries this handle."),
    EngineRule("OPEN for writing, a second", ETXTBSY, "The write handle is granted once."),
    EngineRule("OPEN for writing without O_DIRECT", EINVAL, "A page cache in the path needs memory at swap-out."),
    EngineRule("OPEN with O_TRUNC", ETXTBSY, "The size is fixed."),
    EngineRule("OPEN for reading", 0, _READING),
    EngineRule("READ of whole pages", 0, "swap_rw."),
    EngineRule("WRITE of whole pages by the write handle", 0, "swap_rw."),
    EngineRule("WRITE by another handle", ETXTBSY, "Only the kernel's swap writes here."),
    EngineRule("READ or WRITE of anything but whole pages", EINVAL, "A slot is a page."),
    EngineRule("READ behind the end", 0, "No bytes, as read(2) has it; swap and the loop device never ask."),
    EngineRule("WRITE behind the end", EFBIG, "There is no such slot, and the file does not grow."),
    EngineRule("LOOKUP, GETATTR, OPENDIR, READDIR, STATFS", 0, "Answered from memory."),
    EngineRule("FSYNC, FLUSH, RELEASE", 0, "An answered write is stable already."),
    EngineRule("FALLOCATE", EOPNOTSUPP, "A discard of the loop device looks the same, whoever asked for it."),
    EngineRule("SETATTR of the size (truncate)", ETXTBSY, "The size is fixed."),
    EngineRule("SETATTR of anything else, and what makes or removes a name", EPERM, "Nothing here changes."),
    EngineRule("everything else", ENOSYS, "One name, one size, one owner, for as long as the file exists."),
)
"""The engine's private mount: one file of fixed size, answered from memory (all but READ and WRITE)."""
