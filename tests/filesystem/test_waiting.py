"""Calls that wait for a dead server: how long, and what ends them."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fuseswap.host.ganesha import GaneshaServer
from tests.filesystem.conftest import Mount
from tests.kit.wait import wait_until


def test_soft_ends_the_wait_with_eio(mount: Mount, fresh_nfs_server: GaneshaServer) -> None:
    point = mount(fresh_nfs_server.url(), "soft,timeo=1.5,actimeo=0").point
    (point / "file").write_bytes(b"content" * 1000)
    writer = os.open(point / "file", os.O_RDWR)
    fresh_nfs_server.kill()
    calls: dict[str, Callable[[], object]] = {
        "stat": lambda: (point / "file").stat(),
        "open": lambda: (point / "other").touch(),
        "fsync": lambda: (os.pwrite(writer, b"x" * 10, 0), os.fsync(writer)),
        "list": lambda: list(point.iterdir()),
    }
    for name, call in calls.items():
        began = time.monotonic()
        with pytest.raises(OSError) as caught:
            call()
        assert (name, caught.value.errno) == (name, errno.EIO)
        assert 1.4 < time.monotonic() - began < 10, name
    fresh_nfs_server.start()
    wait_until(lambda: _works(point), seconds=20, what="the mount to work again")
    os.close(writer)


def _works(point: Path) -> bool:
    try:
        return (point / "file").read_bytes().endswith(b"content")
    except OSError:
        return False
