"""Loop devices, through losetup, set up as swap needs them."""

import json
from pathlib import Path

from attrs import frozen

from fuseswap.host.bounded import HostError, run
from fuseswap.swap.units import PAGE_SIZE

# These columns come from sysfs. Others (BACK-INO) make losetup ask the backing file's server.
_COLUMNS = "NAME,BACK-FILE,DIO,LOG-SEC,AUTOCLEAR,SIZELIMIT"

_QUEUE = {
    "wbt_lat_usec": "0",  # a writer throttled by wbt waits for completions that only the engine can give
    "max_sectors_kb": "1024",  # the engine's largest request
}


@frozen
class LoopDevice:
    """A used loop device."""

    path: str
    """/dev/loopN."""
    backing_file: str
    direct_io: bool
    sector_bytes: int
    autoclear: bool
    """Detached already, and gone with its last user."""
    size_limit: int
    """As `attach` was told."""


def parse_losetup(text: str) -> tuple[LoopDevice, ...]:
    """The output of `losetup --json` with the columns used here. Empty if no device is in use."""
    if not text.strip():
        return ()
    return tuple(
        LoopDevice(
            path=device["name"],
            backing_file=device["back-file"] or "",
            direct_io=bool(device["dio"]),
            sector_bytes=int(device["log-sec"]),
            autoclear=bool(device["autoclear"]),
            size_limit=int(device["sizelimit"]),
        )
        for device in json.loads(text)["loopdevices"]
    )


def loop_devices() -> tuple[LoopDevice, ...]:
    """The loop devices in use. Asks only sysfs, so a hung backing file does not matter."""
    return parse_losetup(run(["losetup", "--json", "--output", _COLUMNS]))


def loop_device(path: str) -> LoopDevice | None:
    """/dev/loopN, if it is in use."""
    return next((device for device in loop_devices() if device.path == path), None)


def attach(backing_file: str, size_limit: int = 0) -> LoopDevice:
    """A free loop device on a file, with direct I/O and sectors of a page; nothing is left on an error.

    A `size_limit` in bytes that no file reaches changes nothing, and is there from the first moment: LOOP_CONFIGURE
    takes it together with the file, and only a smaller one than the file's size counts (get_size in
    drivers/block/loop.c).

    The kernel drops direct I/O silently where the file cannot do it, and swap through the page cache
    deadlocks: so loop/dio is read back (loop_update_dio in drivers/block/loop.c).
    """
    options = ["--direct-io=on", "--sector-size", str(PAGE_SIZE), "--sizelimit", str(size_limit)]
    path = run(["losetup", "--find", "--show", *options, backing_file]).strip()
    try:
        sysfs = Path("/sys/block", Path(path).name)
        if (sysfs / "loop/dio").read_text().strip() != "1":
            raise HostError(f"{path}: the kernel refuses direct I/O on {backing_file}")
        for name, value in _QUEUE.items():
            attribute = sysfs / "queue" / name
            if attribute.exists():
                attribute.write_text(value)
        device = loop_device(path)
        if device is None or device.sector_bytes != PAGE_SIZE:
            raise HostError(f"{path}: the kernel refuses sectors of {PAGE_SIZE} bytes on {backing_file}")
        return device
    except OSError as error:
        detach(path)
        raise HostError(f"{path}: {error.filename}: {error.strerror}") from None
    except BaseException:
        detach(path)
        raise


def detach(path: str) -> None:
    """Let go of the backing file. While swap is on it the kernel only marks the device (autoclear)."""
    run(["losetup", "--detach", path])
