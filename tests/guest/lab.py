"""A guest that is ready to boot, and the NFS server on this machine's loopback that it swaps to."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

from fuseswap.host.ganesha import GaneshaServer
from fuseswap.host.swap import make_header
from tests.guest import image
from tests.guest.qemu import HOST, Boot, Run, boot
from tests.guest.scenario import MIB, Scenario, Stage

SWAP_BYTES: Final = 1 << 30

STAGES: Final[tuple[Stage, ...]] = (
    Stage("one hog of 512 MiB", (512 * MIB,), touches=1000),
    Stage("three hogs of 180 MiB, page-cache load, fork storm", (180 * MIB,) * 3, touches=300, beside=True),
)


@frozen
class Lab:
    """Boots guests one after another."""

    files: Boot
    server: GaneshaServer
    directory: Path

    def run(
        self,
        number: int,
        *,
        stages: tuple[Stage, ...] = STAGES,
        without: tuple[str, ...] = (),
        sysctls: tuple[str, ...] = (),
        delay_ms: int = 0,
    ) -> Run:
        """Boot once and swap to a file of its own: two guests on one file destroy each other's pages."""
        name = f"swap-{number}"
        swap_file = self.server.export_dir / name
        _make_swap_file(swap_file)
        directory = self.directory_of(number)
        directory.mkdir()
        url = self.server.url(name).replace("127.0.0.1", HOST)
        try:
            return boot(self.files, Scenario(url, stages, without, sysctls), directory, delay_ms=delay_ms)
        finally:
            swap_file.unlink()

    def directory_of(self, number: int) -> Path:
        """Where that run's console and events lie."""
        return self.directory / f"run-{number}"


@contextmanager
def lab(kernel_package: str = image.KERNEL_PACKAGE) -> Iterator[Lab]:
    """Build what the guest boots from, and start the server."""
    image.which("qemu-system-x86_64")
    kernel = image.kernel(kernel_package)
    # On a disk: the NFS server needs file handles, and the swap file would fill a tmpfs.
    with tempfile.TemporaryDirectory(prefix="fuseswap-guest-", dir="/var/tmp") as temporary:
        directory = Path(temporary)
        files = Boot(kernel.image, directory / "initramfs", directory / "root", directory / "scratch")
        image.make_initramfs(kernel, files.initramfs)
        image.make_root(files.root)
        image.make_scratch(files.scratch)
        with GaneshaServer(directory / "nfs") as server:
            yield Lab(files, server, directory)


def _make_swap_file(path: Path) -> None:
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, SWAP_BYTES)
        os.pwrite(file.fileno(), make_header(SWAP_BYTES), 0)
        os.fsync(file.fileno())
