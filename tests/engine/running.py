"""An engine under test with its loop device, and what is to be asked of it. Everything here is bounded."""

import contextlib
import json
import mmap
import os
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from fuseswap.backends.protocol import Caller
from fuseswap.backends.source import open_source
from fuseswap.engine.launch import launch
from fuseswap.host import loop, rundir
from fuseswap.host.bounded import abandon, run, start
from fuseswap.host.ganesha import GaneshaServer
from fuseswap.host.mounts import mount_at, unmount
from fuseswap.swap.counters import Counters, Word
from fuseswap.swap.target import Activation, Address, MemoryTarget, NfsTarget
from fuseswap.swap.units import RUN_DIRECTORY
from tests.kit import rescue
from tests.kit.proxy import Proxy
from tests.kit.wait import wait_until

FIO_SECONDS: Final = 90
_ROOT: Final = Caller(0, 0)


@attrs.define(eq=False)
class Running:
    """A supervisor and an engine that serve one file."""

    name: str
    path: Path
    """The private file."""
    directory: Path
    counters: Counters
    device: str = ""
    """/dev/loopN once attached."""

    @property
    def words(self) -> memoryview:
        return self.counters.words

    @property
    def engine_pid(self) -> int:
        return int(self.words[Word.ENGINE_PID])

    @property
    def supervisor_pid(self) -> int:
        wait_until(lambda: self.words[Word.SUPERVISOR_PID], seconds=5, what="the supervisor's pid")
        return int(self.words[Word.SUPERVISOR_PID])

    def attach(self) -> str:
        """The loop device on the private file."""
        self.device = loop.attach(str(self.path)).path
        return self.device

    def detach(self) -> None:
        loop.detach(self.device)
        wait_until(
            lambda: str(self.path) not in rescue.loop_devices().values(), seconds=10, what="the loop device's end"
        )
        self.device = ""

    def unmount(self) -> None:
        unmount(str(self.path.parent))

    def is_mounted(self) -> bool:
        return mount_at(str(self.path.parent)) is not None

    def log(self) -> list[str]:
        return [record.text for record in self.counters.log_since(0)]

    def ended(self) -> bool:
        """Whether both processes are gone."""
        return not is_running(self.engine_pid) and not is_running(self.supervisor_pid)


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def running(
    target: NfsTarget | MemoryTarget, size_bytes: int, *, reserve_bytes: int | None = None, identity: str = ""
) -> Iterator[Running]:
    """Start an engine; at the end nothing of it is left, whatever has become of it."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    directory = Path(RUN_DIRECTORY, name)
    pids: list[int] = []
    try:
        path = launch(name, Activation("test", size_bytes, target, identity), reserve_bytes=reserve_bytes)
        with (directory / "counters").open("r+b") as file:
            counters = Counters(mmap.mmap(file.fileno(), 0))
        pids += [int(counters.words[Word.ENGINE_PID])]
        here = Running(name, path, directory, counters)
        pids += [here.supervisor_pid]
        yield here
    finally:
        rescue.Leftovers.of(directory).free()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not any(map(is_running, pids)), seconds=5)
        rescue.end_processes(pids)
        rundir.remove_counters(name)
        for left in (directory / "swap", directory):
            with contextlib.suppress(OSError):
                left.rmdir()


def nfs_target(server: GaneshaServer, path: str, size_bytes: int) -> NfsTarget:
    """The target of a new file of incompressible bytes at `path` below the server's export."""
    with (server.export_dir / path).open("xb") as file:
        for _ in range(0, size_bytes, 1 << 20):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())

    async def find() -> NfsTarget | MemoryTarget:
        async with open_source(server.url("")) as backend:
            handle = backend.root
            for part in Path(path).parts:
                handle, _ = await backend.lookup(handle, part.encode(), _ROOT)
            return backend.swap_target(handle)

    target = trio.run(find)
    assert isinstance(target, NfsTarget)
    return target


def through(target: NfsTarget, port: int) -> NfsTarget:
    """The same file behind another port of loopback."""
    return attrs.evolve(target, addresses=(Address("127.0.0.1", port),))


def fio_command(device: str, size_bytes: int, *options: str) -> list[str]:
    return [
        *("fio", "--output-format=json", "--name=load", f"--filename={device}", f"--size={size_bytes}"),
        *("--direct=1", "--ioengine=libaio", "--allow_file_create=0", "--thread", *options),
    ]


VERIFY: Final = (
    *("--rw=randwrite", "--bsrange=4k-1m", "--blockalign=4k", "--iodepth=16"),
    *("--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0", "--randrepeat=0"),
)
"""Mixed sizes at depth 16, then all of it is read back and checked."""


def fio(device: str, size_bytes: int, *options: str) -> dict[str, Any]:
    """Run fio to its end: its one job, which had no error."""
    return fio_result(run(fio_command(device, size_bytes, *options), seconds=FIO_SECONDS))


def fio_result(output: str) -> dict[str, Any]:
    job: dict[str, Any] = json.loads(output[output.index("{") :])["jobs"][0]
    assert job["error"] == 0
    return job


@contextmanager
def in_background(command: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    """A command while entered; killed at the end if it still runs."""
    process = start(command)
    try:
        yield process
    finally:
        abandon(process)


@contextmanager
def with_small_reserve(server: GaneshaServer, path: str, size_bytes: int) -> Iterator[tuple[Running, Proxy]]:
    """An engine with a reserve of 4 MiB and its loop device, and the proxy between it and the server."""
    target = nfs_target(server, path, size_bytes)
    with (
        Proxy(server.nfs_port) as proxy,
        running(through(target, proxy.port), size_bytes, reserve_bytes=4 << 20) as here,
    ):
        here.attach()
        yield here, proxy


@contextmanager
def reserve_used_up(here: Running, proxy: Proxy, size_bytes: int) -> Iterator["subprocess.Popen[str]"]:
    """The server is away, and a writer of 1 MiB requests has taken what the reserve has, and more is queued."""
    proxy.refuse()
    wait_until(lambda: not here.words[Word.CONNECTED], seconds=10)
    stalls = here.words[Word.RESERVE_FULL]
    with in_background(fio_command(here.device, size_bytes, *VERIFY, "--bsrange=1m-1m")) as writer:
        wait_until(lambda: here.words[Word.RESERVE_FULL] > stalls, seconds=10)
        wait_until(lambda: here.words[Word.RESERVE_PAGES_USED] > 768, seconds=10)
        yield writer
