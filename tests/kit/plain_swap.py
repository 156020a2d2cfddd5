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

    def lose(self, from_bytes: int) -> None:
        """Punch a hole to the end of the file: what lay there reads as zeros."""
        length = self.file.stat().st_size - from_bytes
        run("fallocate", "--punch-hole", f"--offset={from_bytes}", f"--length={length}", str(self.file))

    def shrink(self, size_bytes: int) -> None:
        """Cut file and device off: what lay behind cannot be read any more (EIO), nor written.

        With the file alone the next page that goes out behind its end would make it long again, and full of zeros.
        """
        with self.file.open("r+b") as file:
            file.truncate(size_bytes)
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
