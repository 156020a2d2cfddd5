"""Swap on a local file through a loop device: for tests of what watches swap, not of what serves it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs


@attrs.frozen
class PlainSwap:
    file: Path
    device: str

    def shrink(self, size_bytes: int) -> None:
        """Cut the file off: what lay behind reads as zeros."""
        with self.file.open("r+b") as file:
            file.truncate(size_bytes)

    def shrink_device(self, size_bytes: int) -> None:
        """Cut the device off too: what lay behind cannot be read any more (EIO)."""
        self.shrink(size_bytes)
        run("losetup", "--set-capacity", self.device)


@contextmanager
def plain_swap(directory: Path, size_bytes: int) -> Iterator[PlainSwap]:
    """Swap of `size_bytes` while entered. The test must hold the swap lock (mark it `swap`)."""
    file = directory / "plain-swap"
    with file.open("xb") as out:
        out.truncate(size_bytes)
    file.chmod(0o600)
    run("mkswap", str(file))
    device = run("losetup", "--find", "--show", "--direct-io=on", str(file)).strip()
    try:
        run("swapon", "--priority", "1000", device)
        try:
            yield PlainSwap(file, device)
        finally:
            run("swapoff", device)
    finally:
        run("losetup", "--detach", device)
        file.unlink()


def run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout
