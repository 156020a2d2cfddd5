"""The demo, small: it proves what it says and leaves nothing, however it ends."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseswap.host import processes, rundir
from fuseswap.host.cgroup import memory_hierarchy
from fuseswap.host.loop import loop_devices
from fuseswap.host.mounts import mounts
from fuseswap.host.swap import swaps
from tests.cli.command import finish, start
from tests.cli.swapped import is_clean, kill, server_process

pytestmark = pytest.mark.swap

SMALL = ("--size", "96M", "--limit", "40M")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """The kernel's tables, and where the demo keeps its things, are as before."""

    def state() -> tuple[object, ...]:
        groups = memory_hierarchy().root.glob("fuseswap-demo-*")
        return (
            swaps(),
            {device for device in loop_devices() if "/demo-" in device.backing_file},
            {mount.mountpoint for mount in mounts() if "demo-" in mount.mountpoint},
            [name for name in rundir.names() if name.startswith("demo-")],
            sorted(groups),
            sorted(Path("/var/tmp").glob("fuseswap-demo-*")),
            _servers(),
        )

    before = state()
    yield
    assert state() == before


def _servers() -> list[str]:
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            command = (directory / "cmdline").read_bytes()
        except OSError:
            continue
        if b"fuseswap-demo-" in command:
            found.append(command.decode())
    return found


def test_the_demo_proves_every_page() -> None:
    result = finish(start("demo", *SMALL, "--json"), seconds=100)
    assert result.code == 0, result
    proof = json.loads(result.output)
    assert proof["wrong_pages"] == 0
    assert proof["server_restarts"] == 1
    assert proof["engine_reconnects"] >= 1
    assert proof["pages_out"] > (96 - 40) << 8
    assert abs(proof["pages_out"] - proof["engine_pages_out"]) < proof["pages_out"] / 10
    assert set(proof["phases"]) == {"fill", "sequential", "random"}
    assert all(phase["mb_per_s"] > 0 for phase in proof["phases"].values())
    assert sum(proof["nfs_write_sizes"].values()) > 0
    assert "killing the server" in result.errors


def run_until(stage: str) -> tuple["subprocess.Popen[str]", str]:
    """A demo that has just said `stage`, and the name of its swap."""
    process = start("demo", *SMALL)
    assert process.stdout is not None
    said = name = ""
    while stage not in said:
        said = process.stdout.readline()
        assert said, f"the demo ended before {stage}"
        if said.startswith("demo-"):
            name = said.partition(":")[0]
    return process, name


@pytest.mark.parametrize("stage", ["writing", "with direct I/O", "unique pages", "killing the server"])
def test_an_interrupted_demo_leaves_nothing(stage: str) -> None:
    process, name = run_until(stage)
    process.send_signal(signal.SIGINT)
    result = finish(process)
    assert (result.code, result.line) == (1, "interrupted by SIGINT")
    assert is_clean(name)


def test_filesystem_and_supervisor_cost_no_page() -> None:
    process, name = run_until("unique pages")
    kill(server_process(name, processes.FILESYSTEM))
    kill(server_process(name, processes.SUPERVISOR))
    result = finish(process)
    assert (result.code, result.errors) == (0, "")
    assert "\n0 wrong pages\n" in result.output
    assert is_clean(name)


def test_a_killed_engine_is_said() -> None:
    process, name = run_until("killing the server")
    kill(server_process(name, processes.ENGINE))
    result = finish(process)
    assert result.code == 1
    assert result.errors.endswith("before it had read all its pages: pages were lost\n")
    assert is_clean(name)
