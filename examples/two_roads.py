#!/usr/bin/env python3
"""An ordinary write against a swap write, on the same active file.

Shows: a swap file on a private NFS server, on a fuseswap mount. While it is ordinary anybody may write it. Once it
is active the mount refuses what would harm it (ETXTBSY, EPERM), also by a descriptor opened before, and swap I/O
takes another road: a private mount with one file, for one writer. What is written there is what the ordinary mount
reads. After deactivation all is as before.

Leaves out: the loop device and swapon, so that nothing here swaps; examples/journey.py has both.

Needs root and nfs-ganesha; takes nothing but a temporary directory: examples/two_roads.py
"""

import errno
import json
import mmap
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import asdict

from fuseswap.engine.launch import launch
from fuseswap.host.ganesha import GaneshaServer
from fuseswap.host.machine import boot_id, machine_id
from fuseswap.swap.target import ActivationRequest, activation_from_json
from fuseswap.swap.units import PAGE_SIZE, XATTR_ACTIVATE, XATTR_ACTIVATION

NAME = f"two-roads-{secrets.token_hex(3)}"


def fuseswap(*words: str | Path) -> None:
    """The command, as a user runs it."""
    subprocess.run([sys.executable, "-m", "fuseswap", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def attempt(what: str, action: Callable[[], object]) -> None:
    """Do it, and say how it went."""
    try:
        action()
        outcome = "ok"
    except OSError as error:
        outcome = errno.errorcode[error.errno or 0]
    print(f"  {what:40} {outcome}")


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor."""
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def ordinary_road(path: Path, old: int) -> None:
    """What a user may try."""
    attempt("write, by a descriptor opened before", lambda: os.pwrite(old, b"x", PAGE_SIZE))
    with opened(path, os.O_RDWR) as new:
        attempt("open for writing", lambda: None)
        attempt("write, by a new descriptor", lambda: os.pwrite(new, b"x", PAGE_SIZE))
        attempt("read", lambda: os.pread(new, PAGE_SIZE, PAGE_SIZE))
        attempt("truncate to the same size", lambda: os.ftruncate(new, os.fstat(new).st_size))
    attempt("rename it", lambda: path.rename(path.with_name("other")).rename(path))


def swap_road(private: Path, ordinary: Path) -> None:
    """What the kernel's swap does, by hand: whole pages, direct I/O, one writer."""
    with mmap.mmap(-1, PAGE_SIZE) as page, opened(private, os.O_RDWR | os.O_DIRECT) as writer:
        page[:] = os.urandom(PAGE_SIZE)
        attempt("write a page", lambda: os.pwritev(writer, [page], 5 * PAGE_SIZE))
        attempt("write half a page", lambda: os.pwrite(writer, bytes(PAGE_SIZE // 2), 0))
        attempt("open for writing, a second time", lambda: os.close(os.open(private, os.O_RDWR | os.O_DIRECT)))
        attempt("unlink it", private.unlink)
        with opened(ordinary, os.O_RDONLY) as reader:
            same = os.pread(reader, PAGE_SIZE, 5 * PAGE_SIZE) == page[:]
        print(f"  the ordinary mount reads {'the same page' if same else 'SOMETHING ELSE'}")


def show(point: Path) -> None:
    """The file in its three states."""
    path = point / NAME
    with opened(path, os.O_RDWR) as old:
        print("The file is ordinary:")
        ordinary_road(path, old)

        request = json.dumps(asdict(ActivationRequest(machine_id(), boot_id()))).encode()
        os.setxattr(path, XATTR_ACTIVATE, request)
        private = launch(NAME, activation_from_json(os.getxattr(path, XATTR_ACTIVATION)), reserve_bytes=1 << 20)
        try:
            print("\nThe file is active. On the ordinary mount:")
            ordinary_road(path, old)
            print(f"\nOn the engine's own mount, {private}:")
            swap_road(private, path)
        finally:
            fuseswap("off", path)

        print("\nThe file is ordinary again:")
        attempt("write, by the old descriptor", lambda: os.pwrite(old, b"x", PAGE_SIZE))


def main() -> None:
    """A server, a file, a mount, and the comparison."""
    if os.geteuid() != 0:
        raise SystemExit("two_roads: not root: run it with sudo")
    with (
        tempfile.TemporaryDirectory(prefix="fuseswap-two-roads-", dir="/var/tmp") as directory,
        GaneshaServer(Path(directory)) as server,
    ):
        fuseswap("create", server.url(NAME), "--size", "1M")
        point = Path(directory, "mnt")
        point.mkdir()
        fuseswap("mount", server.url(), point)
        try:
            show(point)
        finally:
            fuseswap("umount", point)


if __name__ == "__main__":
    main()
