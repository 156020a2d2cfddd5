#!/usr/bin/env python3
"""Activating a file with holes, and what happens.

Shows: a swap file made the quick way (truncate: nothing but a size), what swap_activate says of it and why, the
same from the kernel itself if you are root (swapon of the very file, which cannot succeed), and that writing
every byte of it is what mends it. The facts are gathered as an NFS server reports them (size, space used) and
judged by the code that the mount runs.

Leaves out: NFS. `fuseswap check URL` asks a server the same questions.

Needs no server, and root only for the kernel's own opinion: examples/holes.py [DIRECTORY]
"""

import argparse
import ctypes
import errno
import os
import tempfile
from pathlib import Path

from fuseswap.swap.activation import DataRange, FileFacts, swap_activate
from fuseswap.swap.errors import ContractError
from fuseswap.swap.header import SwapHeader, format_header
from fuseswap.swap.units import PAGE_SIZE

PAGES = 256
TRANSFER_BYTES = 1 << 20


def facts_of(path: Path) -> FileFacts:
    """What a server would tell of it."""
    status = path.stat()
    with path.open("rb") as file:
        page = file.read(PAGE_SIZE)
        ranges = []
        start = 0
        while start < status.st_size:
            try:
                start = os.lseek(file.fileno(), start, os.SEEK_DATA)
            except OSError:  # ENXIO: no more data
                break
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            ranges.append(DataRange(start, end))
            start = end
    return FileFacts(
        mode=status.st_mode,
        size_bytes=status.st_size,
        allocated_bytes=status.st_blocks * 512,
        header_page=page,
        read_bytes_max=TRANSFER_BYTES,
        write_bytes_max=TRANSFER_BYTES,
        data_ranges=tuple(ranges),
    )


def activate(path: Path) -> None:
    """Ask for swap_activate, and say what comes of it."""
    facts = facts_of(path)
    print(f"  size {facts.size_bytes} bytes, {facts.allocated_bytes} of them allocated")
    try:
        verdict = swap_activate(facts)
    except ContractError as refusal:
        print(f"  swap_activate: {refusal.errno_name}, {refusal.text!r}")
        print(f"  what mends it: {refusal.remedy}")
        return
    (extent,) = verdict.extents
    print(f"  swap_activate: granted, {verdict.pages} slots, one extent (page, pages, block) = ", end="")
    print((extent.start_page, extent.page_count, extent.start_block))


def ask_the_kernel(path: Path) -> None:
    """swapon(2) of a file with holes: it looks at the blocks and refuses."""
    if os.geteuid() != 0:
        print("  the kernel: not asked, for that needs root")
        return
    libc = ctypes.CDLL(None, use_errno=True)
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    os.lseek(log, 0, os.SEEK_END)
    if libc.swapon(os.fsencode(path), 0) == 0:
        libc.swapoff(os.fsencode(path))
        raise SystemExit("this file system has no holes at all: try another DIRECTORY")
    print(f"  the kernel: swapon gives {errno.errorcode[ctypes.get_errno()]}")
    try:
        while True:
            line = os.read(log, 8192).decode(errors="replace").partition(";")[2].splitlines()[0]
            if "swap" in line:
                print(f"  its log:    {line}")
    except BlockingIOError:
        os.close(log)


def main() -> None:
    """The file with holes, and the file without."""
    parser = argparse.ArgumentParser(description="Activating a file with holes, and what happens.")
    parser.add_argument("directory", nargs="?", default="/var/tmp", help="on a disk (default: /var/tmp)")
    options = parser.parse_args()
    header = format_header(SwapHeader(last_page=PAGES - 1))
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        path = Path(directory, "swapfile")

        print("Made by truncate, with a header but nothing behind it:")
        path.touch(mode=0o600)
        os.truncate(path, PAGES * PAGE_SIZE)
        with path.open("r+b") as file:
            file.write(header)
        activate(path)
        ask_the_kernel(path)

        print("\nThe same with every byte written (what `fuseswap create` does):")
        with path.open("r+b") as file:
            file.write(header + os.urandom((PAGES - 1) * PAGE_SIZE))
            file.flush()
            os.fsync(file.fileno())
        activate(path)


if __name__ == "__main__":
    main()
