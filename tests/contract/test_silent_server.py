"""An active file while its server says nothing: whoever holds the inode's lock must get an answer from memory."""

import os
import signal
import time
from collections.abc import Callable
from errno import ETXTBSY
from pathlib import Path

import pytest

from fuseswap.host.ganesha import GaneshaServer
from fuseswap.swap.units import PAGE_SIZE
from tests.contract.mounting import activate, deactivate, mounted
from tests.contract.operations import CONTENT, SIZE_BYTES, descriptor

pytestmark = pytest.mark.machine

TRIES = 5
"""Of which the quickest counts: this machine does other things meanwhile."""


def outcome_and_milliseconds(attempt: Callable[[], object]) -> tuple[int, float]:
    outcomes, times = set(), []
    for _ in range(TRIES):
        start = time.monotonic()
        try:
            attempt()
        except OSError as error:
            outcomes.add(error.errno or 0)
        else:
            outcomes.add(0)
        times.append((time.monotonic() - start) * 1000)
    assert len(outcomes) == 1
    return outcomes.pop(), min(times)


@pytest.mark.parametrize("handle_from", ["before activation", "after"])
def test_answers_by_descriptor_within_10_ms(
    fresh_nfs_server: GaneshaServer, mount_point: Path, handle_from: str
) -> None:
    with mounted(fresh_nfs_server.url(), mount_point):
        path = mount_point / "swapfile"
        path.write_bytes(CONTENT)
        path.chmod(0o600)
        with descriptor(path, os.O_RDWR) as old:
            activate(path)
            with descriptor(path, os.O_RDWR) as new:
                fd = old if handle_from == "before activation" else new
                os.kill(fresh_nfs_server.pid, signal.SIGSTOP)
                try:
                    answers = {
                        "write": outcome_and_milliseconds(lambda: os.write(fd, b"x")),
                        "pwrite": outcome_and_milliseconds(lambda: os.pwrite(fd, bytes(PAGE_SIZE), PAGE_SIZE)),
                        "shrink": outcome_and_milliseconds(lambda: os.ftruncate(fd, PAGE_SIZE)),
                        "same": outcome_and_milliseconds(lambda: os.ftruncate(fd, SIZE_BYTES)),
                        "grow": outcome_and_milliseconds(lambda: os.ftruncate(fd, SIZE_BYTES + PAGE_SIZE)),
                        "fsync": outcome_and_milliseconds(lambda: os.fsync(fd)),
                        "fdatasync": outcome_and_milliseconds(lambda: os.fdatasync(fd)),
                        "fstat": outcome_and_milliseconds(lambda: os.fstat(fd)),
                        "fchmod": outcome_and_milliseconds(lambda: os.fchmod(fd, 0o600)),
                        "fchown": outcome_and_milliseconds(lambda: os.fchown(fd, 0, 0)),
                        "futimens": outcome_and_milliseconds(lambda: os.utime(fd)),
                    }
                finally:
                    os.kill(fresh_nfs_server.pid, signal.SIGCONT)
            assert os.fstat(old).st_size == SIZE_BYTES
        deactivate(path)
        assert path.read_bytes()[PAGE_SIZE:] == CONTENT[PAGE_SIZE:]

    refused = {"write", "pwrite", "shrink", "same", "grow"}
    assert {name: outcome for name, (outcome, _) in answers.items()} == {
        name: ETXTBSY if name in refused else 0 for name in answers
    }
    slow = {name: milliseconds for name, (_, milliseconds) in answers.items() if milliseconds > 10}
    assert not slow
