"""swap_activate: the checks that a file must pass before its pages may be used as swap.

The order is that of swapon(2) in the kernel (sys_swapon, mm/swapfile.c), so that a file with several faults
is refused for the same one, with the same errno and words: opening it (may_open), claiming it (IS_SWAPFILE),
its header (read_swap_header), its extents (setup_swap_extents). What fuseswap demands beyond the kernel comes
last and is marked as its own.

How the extents come about is the decision behind SWP_FS_OPS: a backend with a swap_rw does the I/O itself, and
slot n is page n of the file (nfs_swap_activate); a file whose blocks are known, or a block device, is swapped to by
the kernel alone, without fuseswap (iomap_swapfile_activate, setup_swap_extents); all else is refused.

Nothing is looked up here: a backend reports `FileFacts`, and `swap_activate` judges them.
"""

from errno import EBUSY, EDEADLK, EINVAL, EIO, EISDIR, ENOENT, ENXIO, EPERM, EROFS
from stat import S_ISBLK, S_ISDIR, S_ISREG, S_ISSOCK
from typing import Final

from attrs import frozen

from fuseswap.swap.errors import Check
from fuseswap.swap.extents import (
    CHECK_EMPTY,
    CHECK_HOLES,
    EXTENT_CHECKS,
    FILL_FILE,
    Layout,
    Mapping,
    SwapExtent,
    device_extents,
    fs_ops_extents,
    iomap_extents,
)
from fuseswap.swap.header import (
    CHECK_BOOT_BLOCK,
    HEADER_CHECKS,
    Mark,
    SwapHeader,
    is_boot_block_free,
    parse_header,
    read_mark,
)
from fuseswap.swap.target import ActivationRequest
from fuseswap.swap.units import PAGE_SIZE, SECTOR_SIZE

CHECK_DIRECTORY: Final = Check(
    step="directory",
    errno=EISDIR,
    imposed_by="may_open",
    why="swapon opens the file for reading and writing.",
    text="is a directory",
    remedy="name another, a regular file: fuseswap create NAME --size SIZE",
)
CHECK_SOCKET: Final = Check(
    step="socket",
    errno=ENXIO,
    imposed_by="no_open",
    why="A socket cannot be opened.",
    text="is a socket",
    remedy="name another, a regular file: fuseswap create NAME --size SIZE",
)
CHECK_READ_ONLY: Final = Check(
    step="read-only",
    errno=EROFS,
    imposed_by="mnt_want_write",
    why="Pages must be written; a read-only loop device would pass swapon and then lose every one of them.",
    text="cannot be written",
    remedy="mount and export it read-write",
)
CHECK_IMMUTABLE: Final = Check(
    step="immutable",
    errno=EPERM,
    imposed_by="may_open",
    why="swapon opens the file for writing anywhere, which chattr's +i and +a forbid to root, too.",
    text="is immutable or append-only",
    remedy="take the attribute away: chattr -i -a FILE",
)
CHECK_IN_USE: Final = Check(
    step="in-use",
    errno=EBUSY,
    imposed_by="bd_prepare_to_claim",
    why="swapon opens a block device for itself alone (O_EXCL); this one is mounted, or a part of another.",
    text="is a device in use",
    remedy="name another: what is on it would be lost",
)
CHECK_UNLINKED: Final = Check(
    step="unlinked",
    errno=ENOENT,
    imposed_by="sys_swapon",
    why="A file without a name could never be swapped off by its name.",
    text="has been removed",
    remedy="make it anew: fuseswap create FILE --size SIZE",
)
CHECK_ACTIVE: Final = Check(
    step="active",
    errno=EBUSY,
    imposed_by="sys_swapon",
    why="Two swap areas on the same pages would overwrite each other (IS_SWAPFILE).",
    text="is an active swap file",
    remedy="nothing to do, or first: fuseswap off FILE",
)
CHECK_REGULAR: Final = Check(
    step="regular",
    errno=EINVAL,
    imposed_by="sys_swapon",
    why="Pages are read from a regular file (a_ops->read_folio); a device file is another machine's.",
    text="is not a regular file",
    remedy="name another, a regular file: fuseswap create NAME --size SIZE",
)
CHECK_BLOCK_SIZE: Final = Check(
    step="block-size",
    errno=EINVAL,
    imposed_by="sys_swapon",
    why="Swap goes page by page, and blocks larger than a page cannot be written so (mapping_min_folio_order).",
    text="has blocks of {bytes} bytes, more than a page",
    remedy="name another, on a file system or device with blocks of 4096 bytes or less",
)
CHECK_READ: Final = Check(
    step="read",
    errno=EIO,
    imposed_by="read_mapping_folio",
    why="Page 0 holds the header.",
    text="page 0 cannot be read",
    remedy="look at the server's log and permissions",
)
CHECK_SWAP_RW: Final = Check(
    step="swap-rw",
    errno=EINVAL,
    imposed_by="cifs_swap_activate",
    why="Without a swap_rw of its own, swap I/O would take the road of ordinary writes and their locks.",
    text="its backend has no swap_rw",
    remedy="use a file on an NFS server",
)
CHECK_ALLOCATED: Final = Check(
    step="allocated",
    errno=EINVAL,
    imposed_by="nfs_swap_activate",
    why="Filling a hole at swap-out would need an allocation on the server, which may fail (ENOSPC).",
    text="swap activate: swapfile has holes",
    remedy=FILL_FILE,
    kernel_text=True,
)
CHECK_WHOLE_PAGES: Final = Check(
    step="whole-pages",
    errno=EINVAL,
    imposed_by="fuseswap",
    why="The kernel ignores a tail below a page; a loop device with 4096-byte sectors would cut it unseen.",
    text="size of {size} bytes is not a whole number of pages of 4096 bytes",
    remedy="cut the tail, which swap cannot use: truncate -s {floor} FILE",
)
CHECK_TRANSFER: Final = Check(
    step="transfer-size",
    errno=EINVAL,
    imposed_by="fuseswap",
    why="A page that takes several calls could be stored in part.",
    text="the server moves at most {bytes} bytes in a call, less than a page",
    remedy="raise the server's rsize and wsize limits to 4096 or more",
)
CHECK_MARK: Final = Check(
    step="mark",
    errno=EBUSY,
    imposed_by="fuseswap",
    why="Two machines that swap to one file corrupt each other's memory.",
    text="in use as swap by another machine: {owner}",
    remedy="swap it off there; if that machine is gone for good, take the file over with --steal",
)
CHECK_RECURSION: Final = Check(
    step="recursion",
    errno=EDEADLK,
    imposed_by="fuseswap",
    why="A page that goes out could wait for a mount, or for memory, that waits for that page.",
    text="as swap it could wait for itself: {what}",
    remedy="use a file that depends on nothing of fuseswap on this machine",
)
ACTIVATION_CHECKS: Final = (
    CHECK_DIRECTORY,
    CHECK_SOCKET,
    CHECK_READ_ONLY,
    CHECK_IMMUTABLE,
    CHECK_IN_USE,
    CHECK_UNLINKED,
    CHECK_ACTIVE,
    CHECK_REGULAR,
    CHECK_BLOCK_SIZE,
    CHECK_READ,
    *HEADER_CHECKS,
    CHECK_SWAP_RW,
    CHECK_ALLOCATED,
    CHECK_HOLES,
    *EXTENT_CHECKS,
    CHECK_WHOLE_PAGES,
    CHECK_TRANSFER,
    CHECK_BOOT_BLOCK,
    CHECK_MARK,
    CHECK_RECURSION,
)
"""All checks, in order."""


@frozen
class DataRange:
    """A stretch of the file that holds data (SEEK_DATA, SEEK_HOLE; FIEMAP), in bytes."""

    start: int
    end: int


@frozen
class FileFacts:
    """What a backend knows of a file, and all that swap_activate looks at."""

    mode: int
    """st_mode: type and permission bits."""
    size_bytes: int
    allocated_bytes: int
    """Storage in use, as the server counts it (`used` of fattr3; st_blocks * 512)."""
    header_page: bytes | None
    """Page 0, shorter if the file is; None if it could not be read."""
    read_bytes_max: int
    """Most that one READ moves (rtmax of FSINFO)."""
    write_bytes_max: int
    """Most that one WRITE moves (wtmax of FSINFO)."""
    active: bool = False
    """Whether it is a swap file now, by any of its names."""
    has_swap_rw: bool = True
    read_only: bool = False
    """Whether the mount or the export refuses writes."""
    immutable: bool = False
    """Whether chattr's +i or +a refuses them."""
    in_use: bool = False
    """Whether somebody has the block device for himself alone, other than as swap."""
    block_bytes: int = PAGE_SIZE
    """Of the file system or device, where the kernel swaps by block numbers."""
    nlink: int = 1
    stands_on: str = ""
    """What of fuseswap, or of memory, lies below it on this machine, in words; empty if nothing does."""
    data_ranges: tuple[DataRange, ...] | None = None
    """Ascending; None where the backend cannot tell."""
    mappings: tuple[Mapping, ...] | None = None
    """Where the blocks of a file without swap_rw lie (FIEMAP), of a block device all in one; None where the
    kernel would not swap by them."""

    @property
    def is_device(self) -> bool:
        """Whether it is a block device of this machine: the kernel swaps to all of it (setup_swap_extents)."""
        return S_ISBLK(self.mode) and self.mappings is not None


@frozen
class Verdict:
    """What swap_activate grants: the swap_info_struct of the area."""

    fs_ops: bool
    """SWP_FS_OPS: the backend does the I/O. If not, the kernel does, without fuseswap."""

    pages: int
    """Usable slots; the header page does not count."""
    extents: tuple[SwapExtent, ...]
    span: int
    """In pages."""
    header: SwapHeader
    stolen_from: Mark | None = None
    """Another machine's mark that the request said to ignore."""


def swap_activate(facts: FileFacts, request: ActivationRequest | None = None) -> Verdict:
    """The verdict on a file, in the order of ACTIVATION_CHECKS.

    Without `request`, a mark in the header page is not judged, as nobody knows whose machine this is.
    ContractError with the errno (EINVAL for most) and the words of the first check that fails: sys_swapon,
    read_swap_header (mm/swapfile.c), nfs_swap_activate (fs/nfs/file.c) or iomap_swapfile_activate
    (fs/iomap/swapfile.c), then fuseswap's own.
    """
    _check_open(facts)
    header = _check_header(facts)
    layout = _setup_extents(facts, header)
    stolen_from = None
    if facts.has_swap_rw:
        _check_own(facts)
        stolen_from = _check_mark(facts, request)
    if facts.stands_on:
        raise CHECK_RECURSION.refusal(what=facts.stands_on)
    return Verdict(facts.has_swap_rw, layout.pages, layout.extents, layout.span, header, stolen_from)


def _check_open(facts: FileFacts) -> None:
    if S_ISDIR(facts.mode):
        raise CHECK_DIRECTORY.refusal()
    if S_ISSOCK(facts.mode):
        raise CHECK_SOCKET.refusal()
    if facts.read_only and S_ISREG(facts.mode):
        raise CHECK_READ_ONLY.refusal()
    if facts.immutable:
        raise CHECK_IMMUTABLE.refusal()
    if facts.in_use:
        raise CHECK_IN_USE.refusal()
    if facts.nlink == 0:
        raise CHECK_UNLINKED.refusal()
    if facts.active:
        raise CHECK_ACTIVE.refusal()
    if not S_ISREG(facts.mode) and not facts.is_device:
        raise CHECK_REGULAR.refusal()
    if facts.block_bytes > PAGE_SIZE:
        raise CHECK_BLOCK_SIZE.refusal(bytes=facts.block_bytes)


def _check_header(facts: FileFacts) -> SwapHeader:
    if facts.header_page is None:
        raise CHECK_READ.refusal()
    return parse_header(facts.header_page, facts.size_bytes, regular=not facts.is_device)


def _setup_extents(facts: FileFacts, header: SwapHeader) -> Layout:
    if facts.has_swap_rw:
        _check_storage(facts)
        return fs_ops_extents(header.pages_max)
    if facts.mappings is None:
        raise CHECK_SWAP_RW.refusal()
    if facts.is_device:
        layout = device_extents(header.pages_max, header.bad_pages)
    else:
        layout = iomap_extents(facts.size_bytes, header.pages_max, facts.mappings)
    if layout.pages <= 0:
        raise CHECK_EMPTY.refusal()
    return layout


def _check_storage(facts: FileFacts) -> None:
    # nfs_calc_block_size rounds the server's figure up to sectors.
    sectors = -(-facts.allocated_bytes // SECTOR_SIZE)
    if sectors * SECTOR_SIZE < facts.size_bytes:
        raise CHECK_ALLOCATED.refusal()
    # As in iomap_swapfile_activate, a tail below a page is not looked at.
    whole = facts.size_bytes // PAGE_SIZE * PAGE_SIZE
    if facts.data_ranges is not None and _has_hole(facts.data_ranges, whole):
        raise CHECK_HOLES.refusal()


def _check_own(facts: FileFacts) -> None:
    if facts.size_bytes % PAGE_SIZE:
        floor = facts.size_bytes // PAGE_SIZE * PAGE_SIZE
        raise CHECK_WHOLE_PAGES.refusal(size=facts.size_bytes, floor=floor)
    transfer = min(facts.read_bytes_max, facts.write_bytes_max)
    if transfer < PAGE_SIZE:
        raise CHECK_TRANSFER.refusal(bytes=transfer)


def _check_mark(facts: FileFacts, request: ActivationRequest | None) -> Mark | None:
    page = facts.header_page or b""
    if not is_boot_block_free(page):
        raise CHECK_BOOT_BLOCK.refusal()
    mark = read_mark(page)
    if request is None or mark is None or is_mark_of(mark, request):
        return None
    if not request.steal:
        raise CHECK_MARK.refusal(owner=describe_mark(mark))
    return mark


def is_mark_of(mark: Mark, request: ActivationRequest) -> bool:
    """Whether the machine that asks has left this mark, at this boot or an earlier one.

    Clones of an image share its machine-id, and containers of one machine share the boot-id, too: only the host
    name tells them apart. So a machine that was renamed in between is taken for another. Never fails.
    """
    renamed = bool(mark.host and request.host) and mark.host != request.host
    return mark.machine_id == request.machine_id and not renamed


def describe_mark(mark: Mark) -> str:
    """A mark in words: the host's name if it is known, and the machine-id; one line, whatever stood there."""
    host, machine = (repr(text)[1:-1] for text in (mark.host, mark.machine_id))
    return f"{host} (machine-id {machine})" if host else f"machine-id {machine}"


def _has_hole(ranges: tuple[DataRange, ...], length_bytes: int) -> bool:
    covered = 0
    for data in ranges:
        if data.start > covered:
            break
        covered = max(covered, data.end)
    return covered < length_bytes
