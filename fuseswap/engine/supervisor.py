"""The small process that stands beside an engine: starts it, watches it, writes out its log, can abort it.

It is locked in memory like the engine, and what it needs for a rescue (the abort file of the FUSE connection)
is open beforehand. It serves nothing: without it the engine goes on, and `fuseswap down` works from the
kernel's tables.

SIGUSR1 aborts the FUSE connection: every request on it fails at once, which frees a hang and loses the pages.
SIGTERM and SIGINT are ignored, because swap must outlive the moment at which init ends all processes.
"""

import contextlib
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from fuseswap.engine import hardening, libc, sysctls
from fuseswap.host import fusectl, rundir
from fuseswap.host.bounded import HostError
from fuseswap.host.mounts import mount_at, unmount
from fuseswap.swap.counters import COUNTERS_BYTES, Counters, Level, State, Word

LOG_INTERVAL_MS: Final = 500
START_SECONDS: Final = 35
LOG_DAEMON: Final = 3 << 3
HUNG: Final = f"the engine did not start within {START_SECONDS} s"
HEAP_BYTES: Final = 1 << 20


def main(arguments: list[str]) -> int:
    """`python -m fuseswap.engine.supervisor DIRECTORY RESERVE_BYTES READY_FD`, activation JSON on standard input.

    Writes one line to READY_FD: `ready`, or what went wrong. The caller's child ends at once.
    """
    directory, reserve_bytes, ready = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    activation = json.load(sys.stdin)
    if os.fork():
        os._exit(0)
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    name = directory.name
    libc.set_title("fuseswap-superv", f"fuseswap-supervisor {name}")
    # The engine does so itself; here for one that is killed.
    with sysctls.steady():
        return _run(directory, reserve_bytes, ready, {"name": name, "activation": activation})


def _run(directory: Path, reserve_bytes: int, ready: int, identity: dict[str, Any]) -> int:
    try:
        counters = make_counters(directory, identity)
        error, engine, stderr = _start_engine(directory, reserve_bytes)
        if not error:
            try:
                abort = _open_abort(directory / "swap")
            except HostError:
                engine.kill()
                raise
    except (OSError, HostError, ValueError) as failure:
        error = str(failure)
    if error:
        _remove(directory)
    os.write(ready, f"{error or 'ready'}\n".encode())
    os.close(ready)
    if error:
        return 1
    counters.words[Word.SUPERVISOR_PID] = os.getpid()
    signal.signal(signal.SIGUSR1, lambda *_: os.write(abort, b"1"))
    hardening.harden(HEAP_BYTES, realtime=False)
    return _watch(directory.name, engine, stderr, counters)


def make_counters(directory: Path, identity: dict[str, Any]) -> Counters:
    """Make DIRECTORY, DIRECTORY/swap and a fresh DIRECTORY/counters; the latter appears whole or not at all."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    (directory / "swap").mkdir(mode=0o700, exist_ok=True)
    unfinished = directory / ".counters"
    rundir.remove_counters(directory.name)
    descriptor = rundir.create_in_memory(unfinished)
    try:
        # Allocated now: a store into a page that a full /run cannot give would be a SIGBUS in the engine.
        os.posix_fallocate(descriptor, 0, COUNTERS_BYTES)
        counters = Counters(mmap.mmap(descriptor, COUNTERS_BYTES))
    finally:
        os.close(descriptor)
    counters.initialize(identity)
    unfinished.rename(directory / "counters")
    return counters


def _start_engine(directory: Path, reserve_bytes: int) -> tuple[str, "subprocess.Popen[bytes]", int]:
    """The engine's process, its standard error (a memory file, read when it has died), and "" once it serves."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    stderr = os.memfd_create("fuseswap-engine-stderr", os.MFD_CLOEXEC)
    module = "fuseswap.engine.main"
    engine = subprocess.Popen(
        [sys.executable, "-P", "-m", module, str(directory), str(reserve_bytes), str(writer)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=(writer,),
        cwd="/",
        env={**os.environ, **hardening.ENVIRONMENT},
        start_new_session=True,
    )
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        answer = pipe.read().decode(errors="replace").strip() if poll.poll(START_SECONDS * 1000) else HUNG
    if answer == "ready":
        return "", engine, stderr
    engine.kill()
    engine.wait()
    return answer or f"the engine ended at once: {_last_words(stderr)}", engine, stderr


def _open_abort(mountpoint: Path) -> int:
    mount = mount_at(str(mountpoint))
    if mount is None:
        raise HostError(f"{mountpoint} is not mounted")
    with fusectl.control(mount) as control:
        return os.open(control / "abort", os.O_WRONLY | os.O_CLOEXEC)


def _remove(directory: Path) -> None:
    with contextlib.suppress(HostError):
        unmount(str(directory / "swap"), lazy=True)
    with contextlib.suppress(OSError):
        rundir.remove_counters(directory.name)
        (directory / "swap").rmdir()
        directory.rmdir()


def _watch(name: str, engine: "subprocess.Popen[bytes]", stderr: int, counters: Counters) -> int:
    poll = select.poll()
    poll.register(os.pidfd_open(engine.pid), select.POLLIN)
    journal = _Journal(name)
    written = 0
    ended = False
    while True:
        for record in counters.log_since(written):
            journal.write(record.level, record.text)
            written = record.sequence + 1
        if ended:
            break
        ended = bool(poll.poll(LOG_INTERVAL_MS))
    code = engine.wait()
    if code == 0 and counters.words[Word.STATE] == State.STOPPED:
        return 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}: {_last_words(stderr)}"
    text = f"the engine {how}; the pages swapped to {name} are lost; clean up with: fuseswap down {name} --force"
    # The engine is the log ring's only writer, and it is dead.
    counters.log(Level.ERROR, time.time_ns(), text)
    journal.write(Level.ERROR, text)
    return 1


class _Journal:
    """The system's log (syslog(3) on /dev/log), without ever waiting for it.

    Who reads it may itself be waiting for a page; then a line is left to the ring alone.
    """

    def __init__(self, name: str) -> None:
        self._tag = f"fuseswap[{name}]"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def write(self, level: Level, text: str) -> None:
        with contextlib.suppress(OSError):
            self._socket.sendto(f"<{LOG_DAEMON | level}>{self._tag}: {text}".encode(), "/dev/log")


def _last_words(stderr: int) -> str:
    size = os.fstat(stderr).st_size
    text = os.pread(stderr, 4096, max(0, size - 4096)).decode(errors="replace").strip()
    return text.splitlines()[-1] if text else "without a word"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
