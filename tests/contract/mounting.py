"""A fuseswap mount for the tests, and a file on it made swap as `fuseswap on` makes it, without an engine."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import asdict

from fuseswap.swap.target import ActivationRequest
from fuseswap.swap.units import XATTR_ACTIVATE, XATTR_DEACTIVATE
from tests.contract import syscalls
from tests.contract.operations import MARK, World
from tests.kit.wait import wait_until

REQUEST = json.dumps(asdict(ActivationRequest(MARK.machine_id, MARK.boot_id))).encode()


def mount(source: str, point: Path) -> None:
    command = [sys.executable, "-m", "fuseswap", "mount", source, str(point)]
    subprocess.run(command, check=True, timeout=30, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@contextmanager
def mounted(source: str, point: Path) -> Iterator[None]:
    """A mount that is gone afterwards, and its process too. What hangs is left to the fixture of `point`."""
    mount(source, point)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            syscalls.unmount(point)
        wait_until(lambda: not _is_served(point), seconds=10, what=f"the end of the filesystem on {point}")


def _is_served(point: Path) -> bool:
    title = f"fuseswap-filesystem {point}".encode()
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if cmdline.read_bytes().rstrip(b" \0") == title:
                return True
    return False


def activate(path: Path) -> None:
    """swap_activate. OSError with the errno of the refusal."""
    os.setxattr(path, XATTR_ACTIVATE, REQUEST)


def deactivate(path: Path) -> None:
    os.setxattr(path, XATTR_DEACTIVATE, b"1")


def fuseswap_world(source: str, point: Path) -> World:
    """For `operations`: a mount of `source` at `point`, which the caller has made and unmounts."""

    @contextmanager
    def unmounted() -> Iterator[None]:
        syscalls.unmount(point)
        try:
            yield
        finally:
            mount(source, point)

    @contextmanager
    def read_only() -> Iterator[None]:
        syscalls.remount(point, read_only=True)
        try:
            yield
        finally:
            syscalls.remount(point, read_only=False)

    return World(point, activate, deactivate, unmounted, read_only)
