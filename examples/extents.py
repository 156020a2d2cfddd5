#!/usr/bin/env python3
"""How swapon turns the blocks of a file into swap slots.

Shows: the walk of generic_swapfile_activate (mm/page_io.c) over the physical blocks of a file: which pages
become slots, in which extents, how a hole ends it, and why slot n is not page n of the file when blocks are
smaller than a page. Then what NFS and fuseswap make of any file: one extent, for they do the I/O themselves.

Leaves out: where the blocks come from (bmap, FIEMAP), and iomap's way of ext4 and xfs, which rounds whole runs.

Needs neither root nor a server:

    examples/extents.py                       the lesson
    examples/extents.py 100-104 0 200-203     a file of your own, one number for each block; 0 is a hole
    examples/extents.py --block 1024 101-140  with blocks of 1 KiB
"""

import argparse

from fuseswap.swap.errors import ContractError
from fuseswap.swap.extents import Layout, fs_ops_extents, generic_extents
from fuseswap.swap.units import PAGE_SIZE

LESSON = (
    ("One piece on the disk: one extent. Slot 0 is the header, and never counts.", 4096, "100-109"),
    ("Two pieces: two extents. `across` is the distance on the disk, which a rotating one would seek.", 4096,
     "100-104 200-204"),
    ("Backwards: nothing follows, so each page is an extent of its own.", 4096, "109 108 107 106 105"),
    ("A hole: filling it at swap-out would need an allocation when there is no memory.", 4096, "100-104 0 106-109"),
    ("Blocks of 1 KiB, one block off: pages must be aligned on the disk. Three blocks are lost, and slot 1 of"
     " swap is not page 1 of the file.", 1024, "101-140"),
    ("Blocks of 1 KiB, a break inside a page: the page that would have lain across it is lost.", 1024,
     "100-105 204-237"),
)  # fmt: skip


BLOCKS_MAX = 1 << 20


def blocks_of(text: str) -> list[int]:
    """`100-102 7` as [100, 101, 102, 7]; ValueError if it says something else, or too many."""
    blocks: list[int] = []
    for word in text.split():
        first, _, last = word.partition("-")
        run = range(int(first), int(last or first) + 1)
        if not 0 < len(run) <= BLOCKS_MAX - len(blocks):
            raise ValueError(word)
        blocks += run
    return blocks


def show(blocks: list[int], block_bytes: int) -> None:
    """What the walk makes of a file with these physical blocks."""
    size_bytes = len(blocks) * block_bytes
    pages_max = size_bytes // PAGE_SIZE
    probes = []

    def bmap(logical: int) -> int:
        probes.append(logical)
        return blocks[logical]

    print(f"    a file of {pages_max} pages, blocks of {block_bytes} bytes")
    try:
        layout = generic_extents(size_bytes, block_bytes, pages_max, bmap)
    except ContractError as refusal:
        print(f"    refused after {len(probes)} probes: {refusal.text} ({refusal.errno_name})")
        return
    show_layout(layout)


def show_layout(layout: Layout, where: str = "disk") -> None:
    """Extents as swapon keeps them, and its line in the kernel log."""
    for extent in layout.extents:
        if extent.page_count == 1:
            print(f"    slot {extent.start_page} lies in page {extent.start_block} of the {where}")
            continue
        last = extent.start_page + extent.page_count - 1
        end = extent.start_block + extent.page_count - 1
        print(f"    slots {extent.start_page} to {last} lie in pages {extent.start_block} to {end} of the {where}")
    kilobytes = PAGE_SIZE // 1024
    print(
        f"    kernel log: Adding {layout.pages * kilobytes}k swap ... extents:{layout.extent_count}"
        f" across:{layout.span * kilobytes}k"
    )


def main() -> None:
    """Show the lesson, or the file of the command line."""
    parser = argparse.ArgumentParser(description="How swapon turns the blocks of a file into swap slots.")
    parser.add_argument("blocks", nargs="*", help="physical blocks like 100-104, 0 for a hole")
    parser.add_argument("--block", type=int, default=PAGE_SIZE, choices=(512, 1024, 2048, 4096), help="bytes")
    options = parser.parse_args()
    if options.blocks:
        try:
            blocks = blocks_of(" ".join(options.blocks))
        except ValueError:
            parser.error(f"blocks are numbers such as 7 or 100-104, at most {BLOCKS_MAX:,} in all")
        show(blocks, options.block)
        return
    for what, block_bytes, text in LESSON:
        print(f"{what}\n    physical blocks: {text}")
        show(blocks_of(text), block_bytes)
        print()
    print("A file on an NFS server, wherever its blocks lie: the file system does the I/O (SWP_FS_OPS).")
    show_layout(fs_ops_extents(10), "file")
    print("    slot n is page n of the file; that is also fuseswap's way")


if __name__ == "__main__":
    main()
