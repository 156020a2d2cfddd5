"""What the kernel wrote into its log meanwhile."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logged() -> Iterator[list[str]]:
    """A list that holds, after the context, the lines that the kernel has logged in it."""
    lines: list[str] = []
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.lseek(fd, 0, os.SEEK_END)
        yield lines
        while True:
            try:
                record = os.read(fd, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:
                continue  # the ring overtook us; the next read goes on with what is left
            lines.append(record.decode(errors="replace").partition(";")[2].splitlines()[0])
    finally:
        os.close(fd)
