"""The sides that are compared: the limit, fuseswap, its road without a server, and peers where they are installed.

Each is a context manager around a file of its own on the same NFS server.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen
from measure import Pattern, Sample, fio, limit
from portmapper import portmapper

from fuseswap.engine.launch import launch
from fuseswap.host import fusectl, loop, rundir, swap
from fuseswap.host.bounded import HostError, run
from fuseswap.host.ganesha import GaneshaServer
from fuseswap.host.mounts import mount_at, unmount
from fuseswap.swap.target import Activation, MemoryTarget
from fuseswap.swap.units import RUN_DIRECTORY

HERE: Final = Path(__file__).parent
NAME: Final = f"bench-{os.getpid()}"
READY_SECONDS_MAX: Final = 20.0
SWAP_PRIORITY: Final = 32000

Measure = Callable[[Pattern, float], Sample]


@frozen
class Side:
    """One way to the server. `io` gives what measures a pattern; `swapped_on` turns swap on (None: cannot)."""

    name: str
    io: Callable[[GaneshaServer, int], AbstractContextManager[Measure]]
    swapped_on: Callable[[GaneshaServer, int], AbstractContextManager[None]] | None
    installed: Callable[[], bool] = lambda: True


def fill(file: Path, size_bytes: int) -> None:
    """Make a file whose blocks are all allocated, of bytes that do not compress; keep one that is there."""
    if file.exists():
        return
    with file.open("wb") as out:
        for _ in range(size_bytes >> 20):
            out.write(os.urandom(1 << 20))
        out.flush()
        os.fsync(out.fileno())


def limit_program() -> Path:
    """bench/limit.c, compiled if need be."""
    program = HERE / "limit"
    source = HERE / "limit.c"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        flags = run(["pkg-config", "--cflags", "--libs", "libnfs"]).split()
        options = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra")
        run(["cc", *options, "-o", str(program), str(source), *flags])
    return program


@contextmanager
def limit_io(server: GaneshaServer, size_bytes: int) -> Iterator[Measure]:
    program = limit_program()
    fill(server.export_dir / "limit", size_bytes)
    yield lambda pattern, seconds: limit(program, server.url("limit"), pattern, seconds, size_bytes)


@contextmanager
def fuseswap_swapped_on(server: GaneshaServer, size_bytes: int) -> Iterator[None]:
    """The real command, with its own swapon."""
    command = [str(Path(sys.executable).with_name("fuseswap"))]
    size, priority = ("--size", str(size_bytes)), ("--priority", str(SWAP_PRIORITY))
    # A new name each time: the server remembers for a while what was removed behind its back.
    file = f"{NAME}-{time.monotonic_ns()}"
    run([*command, "up", server.url(file), "--name", NAME, *size, *priority], seconds=120)
    try:
        yield
    finally:
        run([*command, "down", NAME], seconds=120)
        # fio may have written over the header, and no command would take the file for swap again.
        (server.export_dir / file).unlink(missing_ok=True)


@contextmanager
def fuseswap_io(server: GaneshaServer, size_bytes: int) -> Iterator[Measure]:
    """Engine and loop device as `fuseswap up` makes them, with swap turned off: fio may write where it likes."""
    with fuseswap_swapped_on(server, size_bytes):
        device = rundir.engine_device(NAME)
        assert device is not None
        path = device.path
        swap.swapoff(path, lambda _used, _seconds: None)
        yield lambda pattern, seconds: fio(path, pattern, seconds, size_bytes)


@contextmanager
def road_io(_server: GaneshaServer, size_bytes: int) -> Iterator[Measure]:
    """Loop device, FUSE and engine as ever, but the pages stay in the engine's memory: what the way there costs."""
    name = f"{NAME}-road"
    directory = Path(RUN_DIRECTORY, name)
    with ExitStack() as stack:
        path = launch(name, Activation("bench", size_bytes, MemoryTarget()))
        stack.callback(_remove, directory)
        stack.callback(unmount, str(path.parent))
        device = loop.attach(str(path))
        stack.callback(loop.detach, device.path)
        yield lambda pattern, seconds: fio(device.path, pattern, seconds, size_bytes)


def _remove(directory: Path) -> None:
    rundir.remove_counters(directory.name)
    for left in (directory / "swap", directory):
        left.rmdir()


@contextmanager
def qsd_device(server: GaneshaServer, size_bytes: int) -> Iterator[str]:
    """qemu-storage-daemon's FUSE export of a file on the server, below a loop device set up as fuseswap's is."""
    fill(server.export_dir / "qsd", size_bytes)
    point = server.directory / "qsd-export"
    point.touch()
    with ExitStack() as stack:
        stack.enter_context(portmapper(server))
        daemon = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "qemu-storage-daemon"),
                *("--blockdev", _nfs_blockdev(server)),
                *("--export", f"type=fuse,id=e0,node-name=n0,mountpoint={point},writable=on"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        stack.callback(_end, daemon)
        deadline = time.monotonic() + READY_SECONDS_MAX
        while (mount := mount_at(str(point))) is None:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise HostError("qemu-storage-daemon did not export the file")
            time.sleep(0.02)
        with fusectl.control(mount) as control:
            (control / "max_background").write_text("256")
        device = loop.attach(str(point))
        stack.callback(loop.detach, device.path)
        yield device.path


@contextmanager
def qsd_io(server: GaneshaServer, size_bytes: int) -> Iterator[Measure]:
    with qsd_device(server, size_bytes) as device:
        yield lambda pattern, seconds: fio(device, pattern, seconds, size_bytes)


@contextmanager
def qsd_swapped_on(server: GaneshaServer, size_bytes: int) -> Iterator[None]:
    with qsd_device(server, size_bytes) as device:
        run(["mkswap", device])
        swap.swapon(device, SWAP_PRIORITY)
        try:
            yield
        finally:
            swap.swapoff(device, lambda _used, _seconds: None)


SIDES: Final = (
    Side("limit", limit_io, None),
    Side("fuseswap", fuseswap_io, fuseswap_swapped_on),
    Side("road", road_io, None),
    Side("qsd", qsd_io, qsd_swapped_on, lambda: shutil.which("qemu-storage-daemon") is not None),
)
"""The first is what the others are compared with."""


def _nfs_blockdev(server: GaneshaServer) -> str:
    path = f"/{server.exports[0].name}/qsd"
    return f"driver=nfs,node-name=n0,server.type=inet,server.host=127.0.0.1,path={path}"


def _end(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
