"""Hidden names of removed files that are open, and what becomes of those that a killed process leaves."""

import contextlib
import os
import subprocess
from pathlib import Path

from fuseswap.filesystem.removal import HiddenNames
from fuseswap.host.ganesha import GaneshaServer
from tests.filesystem.conftest import Mount
from tests.kit.wait import wait_until


def hidden(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.startswith(".nfs"))


def test_a_later_mount_removes_what_a_killed_process_left(
    mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path
) -> None:
    first, other = mount(nfs_server.url(nfs_dir.name)), mount(nfs_server.url(nfs_dir.name))
    (first.point / "directory").mkdir()
    strange = (
        f".nfs{5:016x}00000001",  # the kernel's client
        ".nfx" + HiddenNames().new(5).decode()[4:],
        f".nfs{5:016x}{0:016x}{1 << 30:08x}{1:012x}0000",  # another machine's
    )
    for name in strange:
        (first.point / "directory" / name).write_text("another client's")
    victims = [os.open(first.point / "directory" / f"left-{number}", os.O_CREAT | os.O_RDWR) for number in range(3)]
    alive = os.open(other.point / "directory" / "alive", os.O_CREAT | os.O_RDWR)
    try:
        for number in range(3):
            (first.point / "directory" / f"left-{number}").unlink()
        (other.point / "directory" / "alive").unlink()
        behind = nfs_dir / "directory"
        assert len(hidden(behind)) == 2 + 3 + 1
        first.kill()
        subprocess.run(["umount", "-l", str(first.point)], check=True, timeout=10)
        second = mount(nfs_server.url(nfs_dir.name), "ro")
        assert len(hidden(second.point / "directory")) == 2 + 3 + 1
        third = mount(nfs_server.url(nfs_dir.name))
        assert len(hidden(third.point / "directory")) == 2 + 1
        assert len(hidden(behind)) == 2 + 1
        os.pwrite(alive, b"still here", 0)
        assert os.pread(alive, 100, 0) == b"still here"
    finally:
        os.close(alive)
        for victim in victims:
            with contextlib.suppress(OSError):  # its filesystem process is dead
                os.close(victim)
    theirs = sorted(name for name in strange if name.startswith(".nfs"))
    wait_until(lambda: hidden(behind) == theirs, seconds=10, what="the name of the closed file to go")  # RELEASE
    # What is left over does not keep a directory from going.
    for name in strange:
        (behind / name).unlink()
    assert list((third.point / "directory").iterdir()) == []
    (third.point / "directory").rmdir()


def test_names_are_new_each_time_and_short_enough() -> None:
    given = [HiddenNames().new(1 << 63) for _ in range(2)] + [(names := HiddenNames()).new(1), names.new(1)]
    assert len(set(given[2:])) == 2
    assert all(len(name) < 255 and not names.is_left_over(name) for name in given)
