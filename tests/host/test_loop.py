"""Loop devices, set up as swap needs them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseswap.host.bounded import HostError
from fuseswap.host.loop import attach, detach, loop_device, loop_devices, parse_losetup


def test_parse() -> None:
    device = {"name": "/dev/loop0", "back-file": "/a b", "dio": True, "log-sec": 4096, "autoclear": False}
    (parsed,) = parse_losetup(json.dumps({"loopdevices": [device | {"sizelimit": 512}]}))
    assert (parsed.path, parsed.backing_file, parsed.direct_io) == ("/dev/loop0", "/a b", True)
    assert (parsed.sector_bytes, parsed.size_limit) == (4096, 512)
    assert parse_losetup("") == ()


@pytest.fixture
def backing(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "backing file"
    path.write_bytes(bytes(1 << 20))
    yield path
    for device in on(path):
        detach(device)


def on(path: Path) -> list[str]:
    """The loop devices on a file."""
    return [device.path for device in loop_devices() if device.backing_file == str(path)]


def test_attach_sets_the_queue_up(backing: Path) -> None:
    device = attach(str(backing), 1 << 62)
    assert device.direct_io
    assert device.sector_bytes == 4096
    sysfs = Path("/sys/block", Path(device.path).name)
    queue = sysfs / "queue"
    assert (queue / "max_sectors_kb").read_text().strip() == "1024"
    assert (queue / "wbt_lat_usec").read_text().strip() == "0"
    assert device.size_limit == 1 << 62
    assert (sysfs / "size").read_text().strip() == str((1 << 20) // 512)
    assert loop_device(device.path) == device
    detach(device.path)
    assert on(backing) == []


def test_without_direct_io_nothing_stays(tmp_path: Path) -> None:
    """squashfs-like: a file system without direct I/O; here ramfs, which has none."""
    subprocess.run(["mount", "-t", "ramfs", "none", tmp_path], check=True)
    try:
        path = tmp_path / "file"
        path.write_bytes(bytes(1 << 20))
        with pytest.raises(HostError):
            attach(str(path))
        assert on(path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"losetup: .*No such file"):
        attach(str(tmp_path / "missing"))


def test_no_free_loop_device(backing: Path) -> None:
    """As where all are taken: a control device that gives none, and none to be found."""
    attach_it = (
        "import sys; from fuseswap.host.bounded import HostError; from fuseswap.host.loop import attach\n"
        "try: attach(sys.argv[1])\n"
        "except HostError as error: print(error)"
    )
    script = (
        "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9"
        ' && mknod /dev/loop-control c 1 3 && exec "$@"'
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", attach_it, backing],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "cannot find an unused loop device" in done.stdout
