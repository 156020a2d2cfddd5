"""What may hang is bounded."""

import os
import signal
import time
from pathlib import Path

import pytest

from fuseswap.host.bounded import HostError, Hung, call, run


def test_output() -> None:
    assert run(["echo", "one"]) == "one\n"


def test_errors_become_one_line() -> None:
    with pytest.raises(HostError, match=r"^sh: one; two$"):
        run(["sh", "-c", "echo one >&2; echo; echo ' two' >&2; exit 3"])
    with pytest.raises(HostError, match=r"^false failed with exit code 1$"):
        run(["false"])
    with pytest.raises(HostError, match=r"^sh failed with signal 9$"):
        run(["sh", "-c", "kill -9 $$"])
    with pytest.raises(HostError, match="no-such-command is not installed"):
        run(["no-such-command"])


def test_a_command_that_does_not_end() -> None:
    started = time.monotonic()
    with pytest.raises(Hung, match=r"sleep did not end within 0\.1 s"):
        run(["sleep", "100"], seconds=0.1)
    assert time.monotonic() - started < 5


def test_a_call_gives_its_result_or_its_exception() -> None:
    assert call(lambda: [1, b"x" * 200_000], what="never", seconds=5) == [1, b"x" * 200_000]
    with pytest.raises(FileNotFoundError) as caught:
        call(lambda: Path("/no/such/file").stat(), what="never", seconds=5)
    assert caught.value.errno == 2


def test_a_call_that_hangs() -> None:
    with pytest.raises(Hung, match="the server does not answer"):
        call(lambda: time.sleep(100), what="the server does not answer", seconds=0.1)


def test_a_call_whose_process_is_killed() -> None:
    with pytest.raises(HostError, match="was killed"):
        call(lambda: os.kill(os.getpid(), signal.SIGKILL), what="testing", seconds=5)


def test_a_hung_child_holds_none_of_our_pipes() -> None:
    reader, writer = os.pipe()
    with pytest.raises(Hung):
        call(lambda: time.sleep(100), what="sleeping", seconds=0.05)
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
