"""Deaths during a fill: of each process, and of the server. What is lost, what is said, and what stays."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fuseswap.cli.failure import Exit
from fuseswap.host import processes, rundir
from fuseswap.host.ganesha import GaneshaServer
from tests.cli.command import fuseswap
from tests.cli.swapped import kill
from tests.kit.wait import wait_until
from tests.pressure.hogging import LOST, MIB, RunningHog, hog_in, small_cgroup
from tests.pressure.swapping import Swap, swap_up
from tests.pressure.watchdog import watched

pytestmark = pytest.mark.swap

HOG = 160 * MIB
LIMIT = 48 * MIB
STOPPED_SECONDS = 5.0
SILENCE_SECONDS = 40.0


@contextmanager
def filling(server: GaneshaServer) -> Iterator[tuple[Swap, RunningHog]]:
    """Swap, and a hog that has filled a third of its memory and goes on."""
    with (
        swap_up(server, HOG + 64 * MIB) as swap,
        small_cgroup(LIMIT) as cgroup,
        watched(swap.mountpoint, seconds=SILENCE_SECONDS) as alive,
        hog_in(cgroup, HOG, touches=2000, alive=alive) as hog,
    ):
        hog.until(1 / 3)
        yield swap, hog


def assert_down(swap: Swap) -> None:
    result = swap.down()
    assert (result.code, result.errors) == (0, ""), result
    assert swap.is_gone()


def test_the_filesystem_process_dies(nfs_server: GaneshaServer) -> None:
    with filling(nfs_server) as (swap, hog):
        kill(swap.pid(processes.FILESYSTEM))
        assert "its filesystem process is dead" in swap.status_text()
        hog.assert_all_right()
        # The ordinary mount is started again, and the swap file is as active as before.
        point = rundir.filesystem_mountpoint(swap.name)
        again = fuseswap("mount", nfs_server.url(), point)
        assert (again.code, again.errors) == (0, ""), again
        busy = fuseswap("check", point / swap.name)
        assert busy.code == Exit.REFUSED
        assert "EBUSY" in busy.line
        assert swap.status()["filesystem_running"]
        assert_down(swap)


def test_the_supervisor_dies(nfs_server: GaneshaServer) -> None:
    with filling(nfs_server) as (swap, hog):
        kill(swap.pid(processes.SUPERVISOR))
        assert "supervisor dead" in swap.status_text()
        hog.assert_all_right()
        assert_down(swap)


def test_the_engine_dies(nfs_server: GaneshaServer) -> None:
    with filling(nfs_server) as (swap, hog):
        kill(swap.pid(processes.ENGINE))
        assert hog.finish() in LOST
        wait_until(lambda: "killed by signal 9" in swap.status_text(), seconds=10, what="the supervisor's word")
        text = swap.status_text()
        assert f"the pages swapped to {swap.name} are lost; clean up with: fuseswap down {swap.name}" in text
        assert "engine dead" in text
        result = swap.down()
        assert result.code == Exit.DONE
        assert result.errors.count("\n") <= 1
        assert swap.is_gone()


def test_the_server_is_gone_for_good(fresh_nfs_server: GaneshaServer) -> None:
    with filling(fresh_nfs_server) as (swap, hog):
        fresh_nfs_server.kill()
        wait_until(lambda: swap.status()["state"] == "waiting", seconds=20, what="status to notice")
        refused = swap.down()
        assert refused.code == Exit.SERVER
        assert f"fuseswap down --force {swap.name}" in refused.line
        assert swap.area() is not None, "swap stays on"
        assert hog.process.poll() is None, "and its pages wait"
        # Nor is there a filesystem process any more, and none can be started.
        kill(swap.pid(processes.FILESYSTEM))
        forced = swap.down("--force")
        assert forced.code == Exit.DONE
        assert "MiB of memory swapped to it are lost" in forced.errors
        assert hog.finish() in LOST
        assert swap.is_gone()


def test_the_server_stands_still_for_a_while(fresh_nfs_server: GaneshaServer) -> None:
    with filling(fresh_nfs_server) as (swap, hog):
        os.kill(fresh_nfs_server.pid, signal.SIGSTOP)
        written = swap.words()["writes"]
        time.sleep(STOPPED_SECONDS)
        stood = swap.words()["writes"]
        os.kill(fresh_nfs_server.pid, signal.SIGCONT)
        assert stood - written <= swap.words()["slots"], "no page is on stable storage without the server's word"
        hog.assert_all_right()
        words = swap.words()
        assert (words["reconnects"], words["read_errors"], words["write_errors"]) == (0, 0, 0)
        assert_down(swap)
