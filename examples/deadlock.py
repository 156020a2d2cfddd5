#!/usr/bin/env python3
"""The deadlock that a naive swap daemon meets, and the way out.

Shows: the smallest daemon that can serve a swap file over FUSE, in a memory cgroup of 64 MiB together with the
process that it swaps for, and without any of the engine's safeguards: its memory is not locked, and it asks for
more for each message. Soon the kernel must free memory for the daemon itself. It picks pages to swap out, and
waits until they are written: by the daemon, which waits. Nothing moves any more, and no signal ends a process
that sleeps like that. This program shows where they stand (their kernel stacks), and then frees them as
`fuseswap down --force` would: by aborting the FUSE connection, which fails every request at once and loses the
pages. The engine in the same place goes on (tests/pressure/test_deadlock.py).

Leaves out: the network. The daemon keeps its pages in a file; sending them would make it no better.

Needs root. It is safe: only the cgroup is short of memory, a watchdog aborts the connection also if this program
dies, and if pages of anybody else are found on this swap, a second daemon outside of the cgroup is given the
connection instead, which loses none. The kernel log will show write errors of the lost pages. Takes some 15 s:
examples/deadlock.py
"""

import argparse
import fcntl
import mmap
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from attrs import evolve, frozen

from fuseswap.engine import fuse_wire as wire
from fuseswap.engine.libc import mount_fuse
from fuseswap.engine.private_file import PrivateFile
from fuseswap.host import fusectl, loop, swap
from fuseswap.host.cgroup import MemoryCgroup
from fuseswap.host.machine import memory_available_bytes, swapped_pages
from fuseswap.host.mounts import mount_at, unmount
from fuseswap.swap.units import PAGE_SIZE

SWAP_LOCK = Path("/run/lock/fuseswap-swap.lock")
"""Of those that swap for show or test: swap is the whole machine's, and they would disturb each other."""
MIB = 1 << 20
LIMIT = 64 * MIB
HOG = 192 * MIB
SWAP = 256 * MIB
SPARE = 1024 * MIB
"""The machine must have this much to spare, so that nobody outside the cgroup swaps meanwhile."""
TRANSFER = MIB
FUSE_NOTIFY_RESEND = 7  # since Linux 6.9
STUCK_SECONDS = 5
END_SECONDS = 90


# --- the naive daemon ---


def serve(device: int, backing: str) -> None:
    """One file over FUSE. Each message gets fresh memory, as one would write it without thinking of reclaim."""
    file = PrivateFile(b"swapfile", SWAP, TRANSFER)
    pages = os.open(backing, os.O_RDWR)
    while True:
        try:
            message = os.read(device, TRANSFER + PAGE_SIZE)
        except OSError:  # unmounted, or aborted
            return
        _, opcode, unique, _, _, offset, size, _ = wire.TRANSFER_IN.unpack(message[:80].ljust(80, b"\0"))
        if opcode == wire.Opcode.WRITE:
            os.pwrite(pages, message[80:], offset)
            answer = wire.WRITE_ANSWER.pack(wire.WRITE_ANSWER.size, 0, unique, size, 0)
        elif opcode == wire.Opcode.READ:
            data = os.pread(pages, size, offset)
            answer = wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(data), 0, unique) + data
        else:
            plain = file.answer(wire.parse_request(message))
            if plain is None:
                continue
            answer = plain
        with suppress(FileNotFoundError):  # nobody waits for it any more
            os.write(device, answer)


# --- the process that needs more than it may have ---


def hog() -> None:
    """Fill memory, page by page."""
    with mmap.mmap(-1, HOG, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for start in range(0, HOG, PAGE_SIZE):
            memory[start : start + PAGE_SIZE] = os.urandom(PAGE_SIZE)
            if start % MIB == 0:
                print(start // MIB, flush=True)


# --- the show ---


@frozen
class Stage:
    """What the show has: the device on the daemon's file, the FUSE connection, and who is in the cgroup."""

    cgroup: MemoryCgroup
    connection: int
    abort: int
    backing: Path
    device: str

    def serve(self, *, inside: bool) -> "subprocess.Popen[str]":
        """A naive daemon, in the cgroup or outside of it."""
        return self._run("--serve", str(self.connection), str(self.backing), inside=inside)

    def hog(self) -> "subprocess.Popen[str]":
        """The process that fills memory."""
        return self._run("--hog", inside=True)

    def _run(self, *words: str, inside: bool) -> "subprocess.Popen[str]":
        command = [sys.executable, __file__, *words]
        return subprocess.Popen(
            self.cgroup.command(command) if inside else command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[self.connection],
            start_new_session=True,
        )


@contextmanager
def watchdog(abort: int) -> Iterator[None]:
    """A process that aborts the connection when this one is gone before the end of the block, or is late."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.setsid()
        in_time, _, _ = select.select([reader], [], [], END_SECONDS)
        if not in_time or os.read(reader, 1) != b".":
            with suppress(OSError):
                os.write(abort, b"1")
        os._exit(0)
    os.close(reader)
    try:
        yield
        with suppress(BrokenPipeError):
            os.write(writer, b".")
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def watch(process: "subprocess.Popen[str]") -> bool:
    """Whether everything stands still before the hog is done."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    before, since, filled = swapped_pages(), time.monotonic(), 0
    while process.poll() is None:
        time.sleep(0.2)
        for line in process.stdout:
            filled = int(line)
            since = time.monotonic()
        now = swapped_pages()
        if now != before:
            before, since = now, time.monotonic()
        if time.monotonic() - since > STUCK_SECONDS:
            print(f"{filled} of {HOG // MIB} MiB are filled, and nothing has moved for {STUCK_SECONDS} seconds\n")
            return True
    return False


def show_stack(who: str, pid: int) -> None:
    """Where it stands in the kernel."""
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    print(f"{who}, process {pid}, state {state}:")
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/stack").read_text().splitlines():
            print(f"    {line.partition('] ')[2]}")
    print()


def swapped_by(cgroup: MemoryCgroup) -> int:
    """Bytes of swap that the cgroup's own pages take."""
    with suppress(FileNotFoundError):
        return int((cgroup.path / "memory.swap.current").read_text())
    # Version 1 counts a page as swapped when it has left the swap cache.
    lines = (cgroup.path / "memory.stat").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("swap ", "swapcached ")))


def rescue(stage: Stage, daemon: "subprocess.Popen[str]", process: "subprocess.Popen[str]") -> None:
    """Free them."""
    area = swap.swap_area(stage.device)
    slack = 128 * PAGE_SIZE * (os.cpu_count() or 1)  # slots that a CPU has taken beforehand count as used
    foreign = area is not None and area.used_bytes > swapped_by(stage.cgroup) + slack
    if foreign:
        print("pages of other processes are on this swap: a second daemon goes on outside of the cgroup")
        second = stage.serve(inside=False)
        # The first may wait for what it has read itself and not answered: it has to go, and the kernel to ask again,
        # before it can end and once more when it has.
        again = wire.OUT_HEADER.pack(wire.OUT_HEADER.size, FUSE_NOTIFY_RESEND, 0)
        daemon.kill()
        os.write(stage.connection, again)
        daemon.wait(20)
        os.write(stage.connection, again)
        process.kill()
        process.wait(20)
        swap.swapoff(stage.device, lambda used, seconds: None)
        second.kill()
        second.wait()
        print("nobody has lost a page")
        return
    for each in (process, daemon):
        each.kill()
    time.sleep(1)
    alive = [each.pid for each in (process, daemon) if each.poll() is None]
    print(f"SIGKILL has been sent to both; a second later {len(alive)} of them still stand there")
    begin = time.monotonic()
    os.write(stage.abort, b"1")
    for each in (process, daemon):
        each.wait(20)
    print(f"the connection is aborted: both are gone {time.monotonic() - begin:.2f} s later")


def show(directory: Path) -> bool:
    """Everything, and back; whether it came to a deadlock."""
    backing, point = directory / "pages", directory / "mnt"
    point.mkdir()
    with backing.open("wb") as file:
        file.write(swap.make_header(SWAP))
        file.truncate(SWAP)
    with MemoryCgroup(f"fuseswap-deadlock-{secrets.token_hex(3)}", LIMIT) as cgroup, ExitStack() as stack:
        connection = os.open("/dev/fuse", os.O_RDWR)
        stack.callback(os.close, connection)
        mount_fuse(connection, str(point), "naive", TRANSFER)
        stack.callback(unmount, str(point), lazy=True)
        mounted = mount_at(str(point))
        assert mounted is not None
        with fusectl.control(mounted) as control:
            abort = os.open(control / "abort", os.O_WRONLY)
        stack.callback(os.close, abort)
        stack.enter_context(watchdog(abort))
        stage = Stage(cgroup, connection, abort, backing, str(point / "swapfile"))
        daemon = stage.serve(inside=True)
        stack.callback(daemon.wait)
        stack.callback(daemon.kill)
        stage = evolve(stage, device=loop.attach(stage.device).path)
        stack.callback(loop.detach, stage.device)
        swap.swapon(stage.device, swap.PRIORITY_MAX)
        stack.callback(swap.swapoff, stage.device, lambda used, seconds: None)
        print(f"a naive daemon and a process of {HOG // MIB} MiB share a cgroup of {LIMIT // MIB} MiB", flush=True)
        process = stage.hog()
        stack.callback(process.wait)
        stack.callback(process.kill)
        try:
            stuck = watch(process)
        except BaseException:
            rescue(stage, daemon, process)
            raise
        if stuck:
            show_stack("the daemon", daemon.pid)
            show_stack("the process that fills memory", process.pid)
            rescue(stage, daemon, process)
        else:
            print("this time it came through; try again")
    return stuck


def take(lock: IO[str]) -> None:
    """Wait until nobody else swaps for show or test."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waiting until nobody else swaps for show or test", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def main() -> int:
    """0 if the deadlock was seen and all is as before."""
    parser = argparse.ArgumentParser(description="The deadlock that a naive swap daemon meets, and the way out.")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--hog", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(int(options.serve[0]), options.serve[1])
        return 0
    if options.hog:
        hog()
        return 0
    if os.geteuid() != 0:
        raise SystemExit("deadlock: not root: run it with sudo")
    if memory_available_bytes() < SPARE:
        raise SystemExit(f"deadlock: less than {SPARE // MIB} MiB are free here; others might have to swap meanwhile")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with SWAP_LOCK.open("w") as lock, tempfile.TemporaryDirectory(prefix="fuseswap-deadlock-", dir="/var/tmp") as name:
        take(lock)
        stuck = show(Path(name))
    print("swap is off, and all is as before")
    return 0 if stuck else 1


if __name__ == "__main__":
    sys.exit(main())
