"""Commands and system calls that may never return, each with a limit.

Whoever touches a FUSE mount or a swap device can end in uninterruptible sleep, where not even SIGKILL ends it
before the connection is aborted. So that is always a child's job: the child may hang, the caller goes on.
Children have a session of their own, so that Ctrl-C at the terminal reaches the command alone, which then
undoes its steps in order.
"""

import contextlib
import os
import pickle
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

_EXIT_SECONDS = 2.0


class HostError(Exception):
    """This machine refused something; the text is one line for the user."""


class Hung(HostError):
    """Something did not return within its limit, and its process may never do."""


def run(argv: Sequence[str], *, seconds: float = 30.0) -> str:
    """The standard output of a command.

    HostError with its standard error in one line if it fails or is not installed, `Hung` after `seconds`.
    """
    process = start(argv)
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        abandon(process)
        raise Hung(f"{argv[0]} did not end within {seconds:g} s") from None
    except BaseException:
        abandon(process)
        raise
    if process.returncode:
        raise HostError(one_line(errors, argv[0], process.returncode))
    return output


def start(argv: Sequence[str]) -> subprocess.Popen[str]:
    """Start a command with its output in pipes. HostError if it is not installed."""
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="surrogateescape",
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise HostError(f"{argv[0]} is not installed") from None
    except OSError as error:
        raise HostError(f"{argv[0]}: {error.strerror}") from None


def abandon(process: "subprocess.Popen[str]") -> None:
    """Kill a child and wait for it only as long as a living one needs to die."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_EXIT_SECONDS)
    if process.returncode is None:
        # In uninterruptible sleep: init reaps it one day. Popen would warn about it when collected.
        process.returncode = -signal.SIGKILL
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def one_line(errors: str, command: str, returncode: int) -> str:
    """What a tool said on standard error, as one line that begins with its name."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if not lines:
        ended = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
        return f"{command} failed with {ended}"
    text = "; ".join(lines)
    return text if text.startswith(f"{command}:") else f"{command}: {text}"


def call(function: Callable[[], T], *, what: str, seconds: float) -> T:
    """`function()`, run in a forked child; its result or its exception come back pickled.

    `Hung` with the text `what` after `seconds`. Meant for system calls: nothing that the function changes in
    memory is seen by the caller.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(function, writer)
    os.close(writer)
    finished = False
    try:
        data = _read_all(reader, seconds)
        finished = data is not None
    finally:
        os.close(reader)
        if not finished:
            os.kill(pid, signal.SIGKILL)
        _reap(pid)
    if not data:
        raise Hung(what) if data is None else HostError(f"{what} (its process was killed)")
    succeeded, value = pickle.loads(data)
    if not succeeded:
        raise value
    result: T = value
    return result


def wait_for_exit(pidfd: int, seconds: float) -> bool:
    """Whether the process of a pidfd ends within `seconds`."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _child(function: Callable[[], Any], writer: int) -> NoReturn:
    code = 1
    try:
        os.setsid()
        # A child that hangs must not keep what the caller holds: a lock, a pipe that somebody reads.
        os.closerange(3, writer)
        os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        try:
            answer: tuple[bool, Any] = (True, function())
        except Exception as error:
            answer = (False, error)
        with open(writer, "wb") as stream:
            pickle.dump(answer, stream)
        code = 0
    finally:
        os._exit(code)


def _read_all(descriptor: int, seconds: float) -> bytes | None:
    """Everything up to the end of the stream; None if that does not come within `seconds`."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + seconds
    parts: list[bytes] = []
    while True:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return None
        part = os.read(descriptor, 1 << 16)
        if not part:
            return b"".join(parts)
        parts.append(part)


def _reap(pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        if wait_for_exit(pidfd, _EXIT_SECONDS):
            os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
