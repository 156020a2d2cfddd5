"""The deadlock test: engine and supervisor in the same memory cgroup as the process that they swap for.

Whoever serves swap and needs memory for it waits for reclaim, and reclaim waits for swap. In a memory cgroup of
128 MiB that happens within seconds to daemons that are not built for it. The filesystem process is in the group
too: it may be swapped out through the engine, and its users then wait for their own swap, but never swap for them.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fuseswap.host import processes, rundir
from fuseswap.host.bounded import abandon
from fuseswap.host.ganesha import GaneshaServer
from tests.kit.wait import wait_until
from tests.pressure.hogging import MIB, SILENCE_SECONDS, hog_in, major_faults, small_cgroup
from tests.pressure.swapping import Swap, swap_up
from tests.pressure.watchdog import watched

pytestmark = pytest.mark.swap

LIMIT = 128 * MIB
MARGIN = 64 * MIB

_USER = """
import os, sys
directory, done = sys.argv[1], 0
path = os.path.join(directory, "ordinary")
print("begun", flush=True)
while True:
    content = os.urandom(100_000)
    with open(path, "wb") as stream:
        stream.write(content)
        os.fsync(stream.fileno())
    names = [(entry.name, entry.stat().st_size) for entry in os.scandir(directory)]
    assert ("ordinary", len(content)) in names, names
    with open(path, "rb") as stream:
        assert stream.read() == content
    os.rename(path, path + "-2")
    os.unlink(path + "-2")
    done += 1
    print(done, flush=True)
"""


@contextmanager
def ordinary_user(swap: Swap) -> Iterator[Callable[[], int]]:
    """Somebody who lists, writes, reads back, renames and unlinks beside the swap file; how often so far."""
    process = subprocess.Popen(
        [sys.executable, "-c", _USER, str(rundir.filesystem_mountpoint(swap.name))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    done = 0

    def rounds() -> int:
        nonlocal done
        assert process.stdout is not None
        assert process.poll() is None, process.stderr and process.stderr.read()
        for line in process.stdout:
            done = int(line) if line.strip().isdigit() else done
        return done

    try:
        yield rounds
        # The last round ends although nothing swaps any more.
        before = rounds()
        wait_until(lambda: rounds() > before, seconds=SILENCE_SECONDS, what="another round of ordinary use")
    finally:
        abandon(process)


def squeeze(server: GaneshaServer, hog_bytes: int, touches: int, *, restart: bool = False) -> None:
    """One run: everything of `up` in the hog's cgroup, with an ordinary user beside it."""
    with (
        small_cgroup(LIMIT) as cgroup,
        swap_up(server, hog_bytes + MARGIN, within=cgroup.command(())) as swap,
        watched(swap.mountpoint, seconds=SILENCE_SECONDS + 10) as alive,
    ):
        engine, supervisor = swap.pid(processes.ENGINE), swap.pid(processes.SUPERVISOR)
        assert {engine, supervisor, swap.pid(processes.FILESYSTEM)} == set(cgroup.pids())
        faults = major_faults(engine)
        with ordinary_user(swap) as rounds, hog_in(cgroup, hog_bytes, touches=touches, alive=alive) as hog:
            if restart:
                hog.until(0.5)
                server.kill()
                server.start()
            hog.assert_all_right()
            print(f"{rounds()} rounds of ordinary use meanwhile, {hog.phases}")
            assert rounds() > 0
        assert major_faults(engine) == faults
        words = swap.words()
        assert words["write_bytes"] > hog_bytes - LIMIT
        assert (words["read_errors"], words["write_errors"]) == (0, 0)
        assert words["reconnects"] == (1 if restart else 0)
        result = swap.down()
        assert (result.code, result.errors) == (0, ""), result
        assert swap.is_gone()


def test_engine_and_hog_in_one_cgroup(nfs_server: GaneshaServer) -> None:
    squeeze(nfs_server, 320 * MIB, 5_000)


def test_the_server_dies_and_returns_meanwhile(fresh_nfs_server: GaneshaServer) -> None:
    squeeze(fresh_nfs_server, 320 * MIB, 5_000, restart=True)


@pytest.mark.torture
@pytest.mark.parametrize("run", range(10))
def test_ten_in_a_row(run: int, nfs_server: GaneshaServer) -> None:
    squeeze(nfs_server, 560 * MIB, 20_000)
