"""Extent arithmetic: how swapon turns the layout of a file into ranges of swap slots.

Three ways, one for each kind of swap area (setup_swap_extents, mm/swapfile.c):

- `fs_ops_extents`: the file system does the I/O (SWP_FS_OPS: NFS, SMB, fuseswap). One extent covers all;
  slot n is page n of the file, and where the pages lie is nobody's business.
- `generic_extents`: swap goes to the disk by block numbers that bmap gave (generic_swapfile_activate,
  mm/page_io.c). Logical blocks may be skipped, so that with blocks smaller than a page slot n need not be
  page n of the file.
- `iomap_extents`: the same from a list of mappings (iomap_swapfile_activate, fs/iomap/swapfile.c; ext4, xfs).
  Runs of physically contiguous blocks are rounded inward to whole pages.

A block device needs none of that (`device_extents`): slot n is page n of it.

Terms: a swap extent is (start_page, page_count, start_block), the block in units of pages too. `pages_max` is
`max` of the kernel: last_page + 1. The span is the distance between the lowest and the highest page used on
the disk, header excluded; the kernel logs it as `across`.
"""

from collections.abc import Callable, Iterable, Sequence
from errno import EINVAL
from typing import Final

from attrs import evolve, frozen

from fuseswap.swap.errors import Check
from fuseswap.swap.units import PAGE_SIZE

FILL_FILE: Final = "remove it, and write it in full, never sparse: fuseswap create FILE --size SIZE"

CHECK_HOLES: Final = Check(
    step="holes",
    errno=EINVAL,
    imposed_by="generic_swapfile_activate",
    why="Filling a hole at swap-out would need an allocation, of memory too, when there is none.",
    text="swapfile has holes",
    remedy=FILL_FILE,
    kernel_text=True,
)
CHECK_EMPTY: Final = Check(
    step="empty",
    errno=EINVAL,
    imposed_by="setup_swap_map_and_extents",
    why="An area of which only the header page can be used has no slot.",
    text="Empty swap-file",
    remedy="remove it, and make it larger: fuseswap create FILE --size SIZE",
    kernel_text=True,
)
CHECK_BAD_PAGE: Final = Check(
    step="bad-page",
    errno=EINVAL,
    imposed_by="setup_swap_map",
    why="The header page is none that could be bad, and a page behind the last does not exist.",
    text="header lists page {page} as bad, and the area has pages 1 to {last}",
    remedy="write a header: mkswap FILE",
)
CHECK_UNALLOCATED: Final = Check(
    step="unallocated",
    errno=EINVAL,
    imposed_by="iomap_swapfile_iter",
    why="As for holes: nothing may be allocated at swap-out.",
    text="has unallocated extents",
    remedy=FILL_FILE,
    kernel_text=True,
)
CHECK_INLINE: Final = Check(
    step="inline",
    errno=EINVAL,
    imposed_by="iomap_swapfile_iter",
    why="Data that lies inside an inode has no blocks of its own.",
    text="is inline",
    remedy="remove it, and make it larger: fuseswap create FILE --size SIZE",
    kernel_text=True,
)
CHECK_SHARED: Final = Check(
    step="shared",
    errno=EINVAL,
    imposed_by="iomap_swapfile_iter",
    why="Swapping to blocks that another file shares would change that file.",
    text="has shared extents",
    remedy="remove it, and make it anew, never as a reflink: fuseswap create FILE --size SIZE",
    kernel_text=True,
)
CHECK_USABLE_PAGE: Final = Check(
    step="usable-page",
    errno=EINVAL,
    imposed_by="iomap_swapfile_activate",
    why="No run of blocks holds one aligned page.",
    text="Cannot find a single usable page in file.",
    remedy="make the file anew on a file system with less fragmented free space",
    kernel_text=True,
)


MAPPING_CHECKS: Final = (CHECK_INLINE, CHECK_UNALLOCATED, CHECK_SHARED, CHECK_USABLE_PAGE)
"""Of a file that the kernel swaps to by block numbers; the first three are made of each mapping in turn."""
EXTENT_CHECKS: Final = (*MAPPING_CHECKS, CHECK_BAD_PAGE, CHECK_EMPTY)
"""Where the kernel swaps by block numbers: files, and block devices."""


@frozen
class SwapExtent:
    """struct swap_extent: slots start_page.. lie at start_block.. ; all three count pages."""

    start_page: int
    page_count: int
    start_block: int


@frozen
class Layout:
    """What setup_swap_extents leaves in swap_info_struct, and what swapon logs of it."""

    extents: tuple[SwapExtent, ...]
    pages: int
    """Usable slots: the header page never counts."""
    span: int
    """In pages; meaningless when `pages` is 0."""
    extent_count: int
    """As the kernel counts them (the sum of what add_swap_extent returned)."""


@frozen
class Mapping:
    """A stretch of a file as iomap or FIEMAP reports it, in bytes; `physical` is None for a hole."""

    logical: int
    length: int
    physical: int | None
    inline: bool = False
    """The data lies in the inode (FIEMAP_EXTENT_DATA_INLINE)."""
    shared: bool = False
    """Another file has the same blocks (FIEMAP_EXTENT_SHARED)."""


def add_swap_extent(extents: list[SwapExtent], start_page: int, page_count: int, start_block: int) -> int:
    """Append slots, which must follow the last extent's (add_swap_extent, mm/swapfile.c); never fails.

    Lengthens the last extent and returns 0 if the blocks follow its blocks, else adds one and returns 1. Only
    the last extent is looked at, and nothing detects blocks that are used twice.
    """
    if extents:
        last = extents[-1]
        if last.start_page + last.page_count != start_page:
            raise AssertionError(f"slot {start_page} does not follow {last}")
        if last.start_block + last.page_count == start_block:
            extents[-1] = SwapExtent(last.start_page, last.page_count + page_count, last.start_block)
            return 0
    extents.append(SwapExtent(start_page, page_count, start_block))
    return 1


def fs_ops_extents(pages_max: int) -> Layout:
    """The layout where the file system does the I/O (nfs_swap_activate): one extent, never an error."""
    pages = pages_max - 1
    return Layout((SwapExtent(0, pages_max, 0),), pages, pages, 1)


def device_extents(pages_max: int, bad_pages: Sequence[int]) -> Layout:
    """The layout of a block device (setup_swap_extents): one extent, of which the bad pages are no slots.

    ContractError EINVAL: a bad page that the area does not have.
    """
    for page in bad_pages:
        if not 0 < page < pages_max:
            raise CHECK_BAD_PAGE.refusal(page=page, last=pages_max - 1)
    return Layout((SwapExtent(0, pages_max, 0),), pages_max - 1 - len(bad_pages), pages_max - 1, 1)


def generic_extents(size_bytes: int, block_bytes: int, pages_max: int, bmap: Callable[[int], int]) -> Layout:
    """The walk of generic_swapfile_activate (mm/page_io.c).

    `bmap` gives the physical block of a logical one, 0 for none; block_bytes divides a page. ContractError
    EINVAL: `swapfile has holes` when a probed block has none (block 0 of the disk counts as none).
    """
    blocks_per_page = PAGE_SIZE // block_bytes
    last_block = size_bytes // block_bytes
    extents: list[SwapExtent] = []
    extent_count = 0
    lowest = highest = None
    page = probe = 0

    def physical_block(logical: int) -> int:
        block = bmap(logical)
        if block == 0:
            raise CHECK_HOLES.refusal()
        return block

    while probe + blocks_per_page <= last_block and page < pages_max:
        first = physical_block(probe)
        # A page must be aligned on the disk and whole. If not, the walk goes on one block further, and the
        # page that would have begun here is not counted.
        if first % blocks_per_page or any(physical_block(probe + i) != first + i for i in range(1, blocks_per_page)):
            probe += 1
            continue
        block = first // blocks_per_page
        if page:
            lowest = block if lowest is None else min(lowest, block)
            highest = block if highest is None else max(highest, block)
        extent_count += add_swap_extent(extents, page, 1, block)
        page += 1
        probe += blocks_per_page
    span = 1 + highest - lowest if highest is not None and lowest is not None else 0
    # The kernel forces page_no 0 to 1 ("force Empty message"), so pages is 0 either way.
    return Layout(tuple(extents), max(page, 1) - 1, span, extent_count)


def iomap_extents(size_bytes: int, pages_max: int, mappings: Iterable[Mapping]) -> Layout:
    """The layout that iomap_swapfile_activate (fs/iomap/swapfile.c) makes of `mappings`, in logical order.

    It walks the size rounded down to a page, whatever the header claims, and looks at all of it. Physically
    contiguous mappings are gathered into runs, written or not; each run is rounded inward to whole pages.
    ContractError EINVAL: a mapping that is inline, a hole or shared, or not one whole page.
    """
    limit = size_bytes // PAGE_SIZE * PAGE_SIZE
    runs: list[Mapping] = []
    for mapping in mappings:
        if mapping.logical >= limit:
            break
        if mapping.inline:
            raise CHECK_INLINE.refusal()
        if mapping.physical is None:
            raise CHECK_UNALLOCATED.refusal()
        if mapping.shared:
            raise CHECK_SHARED.refusal()
        length = min(mapping.length, limit - mapping.logical)
        if runs and _physical_end(runs[-1]) == mapping.physical:
            runs[-1] = evolve(runs[-1], length=runs[-1].length + length)
        else:
            runs.append(evolve(mapping, length=length))

    extents: list[SwapExtent] = []
    page = extent_count = 0
    lowest = highest = None
    for run in runs:
        assert run.physical is not None
        first = -(-run.physical // PAGE_SIZE)
        end = _physical_end(run) // PAGE_SIZE
        if page >= pages_max or first >= end:
            continue
        # The span takes the whole run, although pages_max may cut what is used of it; and the header page is
        # left out only where the file begins, as the kernel has it.
        reported = first + 1 if run.logical == 0 else first
        lowest = reported if lowest is None else min(lowest, reported)
        highest = end - 1 if highest is None else max(highest, end - 1)
        page_count = min(end - first, pages_max - page)
        extent_count += add_swap_extent(extents, page, page_count, first)
        page += page_count
    if lowest is None or highest is None:
        raise CHECK_USABLE_PAGE.refusal()
    return Layout(tuple(extents), page - 1, 1 + highest - lowest, extent_count)


def _physical_end(run: Mapping) -> int:
    assert run.physical is not None
    return run.physical + run.length
