"""The machine's own file systems, on loop devices: what the kernel itself makes of swap files."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from attrs import frozen

from tests.contract import syscalls
from tests.contract.operations import World
from tests.kit.rescue import below, swap_areas

_FS_NOCOW_FL = 0x00800000
_MIB = 1 << 20

_MAKE: dict[str, tuple[list[str], int]] = {
    "ext4": (["mkfs.ext4", "-q", "-b", "4096"], 64 * _MIB),
    "ext4-1k": (["mkfs.ext4", "-q", "-b", "1024"], 64 * _MIB),
    "xfs": (["mkfs.xfs", "-q"], 320 * _MIB),
    "btrfs": (["mkfs.btrfs", "-q"], 256 * _MIB),
}


@frozen
class NativeFilesystem:
    """A file system of the kernel's own, mounted for the tests."""

    kind: str
    point: Path
    image: Path

    def world(self) -> World:
        """For `operations`: swapon(2) and swapoff(2) on this file system."""
        return World(
            directory=self.point,
            activate=syscalls.swapon,
            deactivate=syscalls.swapoff,
            unmounted=self._unmounted,
            read_only=self._read_only,
        )

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self.image), str(self.point))

    def free(self) -> None:
        """Swap off and unmount, whatever state it is in."""
        for area in swap_areas():
            if below(area, [self.point]):
                with contextlib.suppress(OSError):
                    syscalls.swapoff(Path(area))
        if os.path.ismount(self.point):
            _run("umount", str(self.point))

    @contextmanager
    def _unmounted(self) -> Iterator[None]:
        syscalls.unmount(self.point)
        try:
            yield
        finally:
            self.mount()

    @contextmanager
    def _read_only(self) -> Iterator[None]:
        syscalls.remount(self.point, read_only=True)
        try:
            yield
        finally:
            syscalls.remount(self.point, read_only=False)


@pytest.fixture(scope="session")
def native_filesystems() -> Iterator[dict[str, NativeFilesystem]]:
    """ext4 (also with 1 KiB blocks), xfs and btrfs (new files are NOCOW), by name."""
    with ExitStack() as stack:
        # Not /tmp: that may be a tmpfs, and its files then live in the memory that swap is to relieve.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuseswap-fs-", dir="/var/tmp")))
        filesystems = {}
        for kind, (command, size_bytes) in _MAKE.items():
            filesystem = NativeFilesystem(kind, directory / kind, directory / f"{kind}.img")
            with filesystem.image.open("wb") as image:
                image.truncate(size_bytes)
            filesystem.point.mkdir()
            _run(*command, str(filesystem.image))
            filesystem.mount()
            stack.callback(filesystem.free)
            if kind == "btrfs":
                fd = os.open(filesystem.point, os.O_RDONLY)
                syscalls.set_flags(fd, syscalls.get_flags(fd) | _FS_NOCOW_FL)
                os.close(fd)
            filesystems[kind] = filesystem
        yield filesystems


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=60, stdin=subprocess.DEVNULL, capture_output=True)
