"""A FUSE mount that answers nothing: for tests of what happens to a mount, not of what is in it."""

import ctypes
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH: Final = 2


@attrs.frozen
class Connection:
    point: Path
    descriptor: int

    def unmount(self) -> None:
        """umount2(2) itself, for umount(8) asks the file system for its root first."""
        _check(_LIBC.umount2(os.fsencode(self.point), _MNT_DETACH), self.point)

    def ended(self, *, seconds: float) -> bool:
        """Whether the kernel ends the connection (the last reference to its mount is gone) in time."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLERR)
        return any(events & select.POLLERR for _, events in poll.poll(seconds * 1000))


@contextmanager
def mounted(point: Path, type: str = "fuse.stub", source: str = "stub", user: int = 0) -> Iterator[Connection]:
    """Mount at `point` as for `user`; closing the descriptor at the end aborts the connection. The caller unmounts."""
    descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        options = f"fd={descriptor},rootmode=40000,user_id={user},group_id=0".encode()
        _check(_LIBC.mount(source.encode(), os.fsencode(point), type.encode(), 0, options), point)
        yield Connection(point, descriptor)
    finally:
        os.close(descriptor)


def _check(result: int, point: Path) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(point))
