"""Who this machine is, and what it has."""

import os
from pathlib import Path

from attrs import frozen

from fuseswap.host.bounded import HostError

_MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")

_FUSE_SETTINGS = Path("/proc/sys/fs/fuse")


def machine_id() -> str:
    """The 32 hexadecimal digits of machine-id(5). HostError if this machine has none."""
    for path in _MACHINE_ID_FILES:
        try:
            text = Path(path).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            continue
        if len(text) == 32 and text.isalnum():
            return text
    raise HostError("this machine has no machine-id: run systemd-machine-id-setup")


def boot_id() -> str:
    """The UUID that the kernel drew at this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def host_name() -> str:
    """As uname(2) tells it, at most 64 characters."""
    return os.uname().nodename[:64]


def memory_available_bytes() -> int:
    """MemAvailable of /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise HostError("/proc/meminfo has no MemAvailable")


@frozen
class SwappedPages:
    """Pages swapped since boot, over all areas."""

    out: int
    into: int


def swapped_pages() -> SwappedPages:
    """pswpout and pswpin of /proc/vmstat."""
    words = dict(line.split() for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines())
    return SwappedPages(out=int(words["pswpout"]), into=int(words["pswpin"]))


def require_root() -> None:
    """HostError if this process is not root."""
    if os.geteuid() != 0:
        raise HostError("not root: run it with sudo")


def require_fuse() -> None:
    """HostError if FUSE cannot be used."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise HostError("no /dev/fuse: load the module (modprobe fuse)") from None
    except OSError as error:
        raise HostError(f"/dev/fuse cannot be opened: {error.strerror}") from None


def require_no_request_timeout() -> None:
    """HostError if the kernel aborts a FUSE connection on which a request takes long (since Linux 6.15).

    Swap must wait for as long as its server is away. Where a connection asks for no timeout, as ours do, the default
    applies, or else the maximum (set_request_timeout in fs/fuse/inode.c).
    """
    for name in ("default_request_timeout", "max_request_timeout"):
        try:
            seconds = int((_FUSE_SETTINGS / name).read_text(encoding="ascii"))
        except FileNotFoundError:
            continue
        if seconds:
            raise HostError(
                f"this kernel ends FUSE connections whose server is away for {seconds} s, and swap with them:"
                f" sysctl fs.fuse.{name}=0"
            )


def require_loop() -> None:
    """HostError if there are no loop devices."""
    if not Path("/dev/loop-control").exists():
        raise HostError("no loop devices: /dev/loop-control does not exist (modprobe loop)")
