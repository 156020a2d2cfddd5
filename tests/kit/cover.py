"""What somebody mounts on top."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def covered(point: Path) -> Iterator[None]:
    """An empty tmpfs on a directory, whatever else is mounted there or below it."""
    subprocess.run(["mount", "-t", "tmpfs", "cover", point], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", point], check=True, timeout=10)
