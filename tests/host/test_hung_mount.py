"""A mount whose process never answers: nothing here waits for it for ever, and the way out works."""

import os
import subprocess
import time
from pathlib import Path

import attrs
import pytest

from fuseswap.host import fusectl, xattr
from fuseswap.host.bounded import HostError, Hung, call
from fuseswap.host.mounts import mount_at, unmount
from tests.kit import fuse_stub


def test_abort_ends_what_waits(mount_point: Path) -> None:
    with fuse_stub.mounted(mount_point) as connection:
        waiting = subprocess.Popen(["stat", mount_point], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        with pytest.raises(Hung, match="stat hangs"):
            call(mount_point.stat, what="stat hangs", seconds=0.2)
        mounted = mount_at(str(mount_point))
        assert mounted is not None, "the mount table answers although the mount does not"
        assert mounted.type == "fuse.stub"
        present = mount_at(str(fusectl.CONNECTIONS)) is not None
        fusectl.abort(mounted)
        assert (mount_at(str(fusectl.CONNECTIONS)) is not None) == present
        _, errors = waiting.communicate(timeout=10)
        assert waiting.returncode == 1
        assert b"abort" in errors or b"not connected" in errors
        assert connection.ended(seconds=5)
        fusectl.abort(mounted)
        unmount(str(mount_point))
    fusectl.abort(mounted)
    assert mount_at(str(mount_point)) is None


def test_the_next_mount_with_its_number_is_not_aborted(disk_dir: Path) -> None:
    points = [disk_dir / "first", disk_dir / "second"]
    for point in points:
        point.mkdir()
    with fuse_stub.mounted(points[0]) as connection:
        first = mount_at(str(points[0]))
        connection.unmount()
    with fuse_stub.mounted(points[1]) as connection:
        second = mount_at(str(points[1]))
        assert first is not None and second is not None
        fusectl.abort(attrs.evolve(first, minor=second.minor, mount_id=first.mount_id + 1_000_000))
        assert not connection.ended(seconds=0.2)
        fusectl.abort(second)
        assert connection.ended(seconds=5)


def test_questions_have_limits(mount_point: Path) -> None:
    with fuse_stub.mounted(mount_point) as connection:
        mounted = mount_at(str(mount_point))
        assert mounted is not None
        started = time.monotonic()
        for ask in (
            lambda: xattr.is_served(mounted, seconds=0.2),
            lambda: xattr.read(f"{mount_point}/file", "trusted.x", seconds=0.2),
            lambda: xattr.write(f"{mount_point}/file", "trusted.x", b"", seconds=0.2),
            lambda: xattr.locate(f"{mount_point}/file", seconds=0.2),
        ):
            with pytest.raises(Hung, match=r"does not answer within 0\.2 s"):
                ask()
        assert time.monotonic() - started < 20
        fusectl.abort(mounted)
        assert not xattr.is_served(mounted, seconds=5)
        connection.unmount()


def test_only_fuse_is_aborted() -> None:
    proc = mount_at("/proc")
    assert proc is not None
    with pytest.raises(HostError, match="/proc is not a FUSE mount"):
        fusectl.abort(proc)


def test_a_file_elsewhere_is_not_ours(tmp_path: Path) -> None:
    assert xattr.locate(os.fspath(tmp_path), seconds=5) is None
    assert xattr.read(os.fspath(tmp_path), "user.none", seconds=5) is None
