"""The engine's process: everything that needs memory or a system call happens here, before it serves."""

import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from attrs import evolve

from fuseswap.engine import hardening, libc, sysctls
from fuseswap.engine.engine import Engine, Target
from fuseswap.engine.memory_target import MemoryTransport
from fuseswap.engine.private_file import PrivateFile, UnsupportedKernel
from fuseswap.engine.transport import Transport
from fuseswap.swap.counters import Counters, Level, State, Word
from fuseswap.swap.plug import Plug
from fuseswap.swap.requests import Request
from fuseswap.swap.reserve import Reserve, reserve_pages, watermark_pages
from fuseswap.swap.target import MemoryTarget, NfsTarget, activation_from_json
from fuseswap.swap.units import PAGE_SIZE

SLOTS: Final = 16
"""Calls in flight: enough for a near server, and little enough to bound what the kernel allocates for us."""
TRANSFER_BYTES_MAX: Final = 1 << 20
HEAP_BYTES: Final = 4 << 20
PROBE_SECONDS: Final = 10


class StartError(Exception):
    """The engine cannot serve; the text is one line."""


def main(arguments: list[str]) -> int:
    """`python -m fuseswap.engine.main DIRECTORY RESERVE_BYTES READY_FD`.

    Takes the activation from DIRECTORY/counters, mounts DIRECTORY/swap, writes `ready` or what went wrong to
    READY_FD, and serves until the mount is gone.
    """
    directory, reserve_bytes, ready = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with sysctls.steady() as refused:
        return _run(directory, reserve_bytes, ready, refused)


def _run(directory: Path, reserve_bytes: int, ready: int, refused: Sequence[sysctls.Setting]) -> int:
    try:
        counters = _open_counters(directory / "counters")
        for setting in refused:
            text = f"vm.{setting.path.name} cannot be set: {setting.otherwise}"
            counters.log(Level.WARNING, time.time_ns(), text)
        engine = _start(directory, reserve_bytes, counters)
    except (StartError, UnsupportedKernel) as error:
        os.write(ready, f"{error}\n".encode())
        return 1
    except OSError as error:
        os.write(ready, f"the engine cannot start: {error}\n".encode())
        return 1
    counters.words[Word.STARTED_NS] = time.time_ns()
    counters.words[Word.STATE] = State.SERVING
    os.write(ready, b"ready\n")
    os.close(ready)
    aborted = engine.run()
    counters.words[Word.CONNECTED] = 0
    counters.words[Word.STATE] = State.STOPPED
    if aborted:
        sys.stderr.write("its FUSE connection was aborted\n")
    return int(aborted)


def _open_counters(path: Path) -> Counters:
    with path.open("r+b") as file:
        return Counters(mmap.mmap(file.fileno(), 0))


def _start(directory: Path, reserve_bytes: int, counters: Counters) -> Engine:
    name = directory.name
    words = counters.words
    words[Word.ENGINE_PID] = os.getpid()
    words[Word.ENGINE_START_TICKS] = int(Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[19])
    words[Word.SLOTS] = SLOTS
    libc.set_title("fuseswap-engine", f"fuseswap-engine {name}")
    activation = activation_from_json(json.dumps(counters.identity()["activation"]))
    target, read_bytes_max, write_bytes_max = _limit(activation.target)
    transfer = min(read_bytes_max, write_bytes_max)
    if reserve_bytes:
        transfer = min(transfer, reserve_bytes // 4 & -PAGE_SIZE)
    if transfer < PAGE_SIZE:
        raise StartError("the server's rtmax or wtmax, or the reserve, does not hold a page")
    pages = reserve_bytes // PAGE_SIZE or reserve_pages(transfer, SLOTS, _ram_bytes())
    transfer = min(transfer, pages // 4 * PAGE_SIZE)

    def log(level: Level, text: str) -> None:
        counters.log(level, time.time_ns(), text)

    def make_target(plug: Plug, answer: Callable[[list[Request]], None]) -> Target:
        if isinstance(target, MemoryTarget):
            return MemoryTransport(target, activation.size_bytes, plug, answer)
        return Transport(target, plug, SLOTS, answer, words, log)

    device = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    engine = Engine(
        device,
        PrivateFile(name.encode(), activation.size_bytes, transfer),
        activation.size_bytes,
        counters,
        Plug(SLOTS, read_bytes_max, write_bytes_max),
        Reserve(pages, watermark_pages(pages), transfer // PAGE_SIZE),
        make_target,
        log,
    )
    done = hardening.harden(HEAP_BYTES, realtime=True)
    words[Word.MEMORY_LOCKED] = done.memory_locked
    words[Word.IO_FLUSHER] = done.io_flusher
    words[Word.OOM_PROTECTED] = done.oom_protected
    words[Word.REALTIME] = done.realtime
    fault = engine.probe(PROBE_SECONDS * 10**9)
    if fault:
        raise StartError(f"{fault}{_last_error(counters)}")
    libc.mount_fuse(device, str(directory / "swap"), f"fuseswap:{name}", transfer)
    engine.attach()
    if not engine.initialize(PROBE_SECONDS * 10**9):
        raise StartError(f"the kernel did not begin to talk over /dev/fuse in {PROBE_SECONDS} s{_last_error(counters)}")
    return engine


def _limit(target: NfsTarget | MemoryTarget) -> tuple[NfsTarget | MemoryTarget, int, int]:
    """The target with rtmax and wtmax of whole pages and at most TRANSFER_BYTES_MAX, and the two limits."""
    if isinstance(target, MemoryTarget):
        return target, TRANSFER_BYTES_MAX, TRANSFER_BYTES_MAX
    read = min(target.read_bytes_max, TRANSFER_BYTES_MAX) & -PAGE_SIZE
    write = min(target.write_bytes_max, TRANSFER_BYTES_MAX) & -PAGE_SIZE
    return evolve(target, read_bytes_max=read, write_bytes_max=write), read, write


def _last_error(counters: Counters) -> str:
    errors = [record.text for record in counters.log_since(0) if record.level <= Level.ERROR]
    return f" ({errors[-1]})" if errors else ""


def _ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
