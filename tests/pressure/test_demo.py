"""`fuseswap demo` as it is given to users: the whole of it, and the machine afterwards."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseswap.host.cgroup import memory_hierarchy
from fuseswap.swap.units import RUN_DIRECTORY
from tests.cli.command import FUSESWAP, finish, fuseswap
from tests.kit import rescue

pytestmark = pytest.mark.swap

PAGES_OUT_MIN = 100_000
ZSWAP = Path("/sys/module/zswap/parameters/enabled")


def machine() -> dict[str, object]:
    """What a user would look at. Other sessions mount, too, so mounts and loops are those with the demo's name."""
    return {
        "/proc/swaps": rescue.swap_areas(),
        "losetup -l": {device for device, backing in rescue.loop_devices().items() if "/demo-" in backing},
        "mounts": {mount.point for mount in rescue.fuse_mounts() if "/demo-" in mount.point},
        RUN_DIRECTORY: sorted(Path(RUN_DIRECTORY).glob("demo-*")),
        "processes": sorted(rescue.session_processes(os.environ[rescue.SESSION_VARIABLE])),
        "cgroups": sorted(memory_hierarchy().root.glob("fuseswap-demo-*")),
        "directories": sorted(Path("/var/tmp").glob("fuseswap-demo-*")),
        "zswap": ZSWAP.read_text() if ZSWAP.exists() else "",
    }


@pytest.fixture(autouse=True)
def machine_is_as_before() -> Iterator[None]:
    before = machine()
    yield
    assert machine() == before


def test_the_demo() -> None:
    result = fuseswap("demo", seconds=110)
    print(result.output)
    assert (result.code, result.errors) == (0, "")
    assert result.output.splitlines()[-1] == "0 wrong pages"
    counts = re.search(r"^pages out: (\d+) \(kernel\), (\d+) \(engine\)$", result.output, re.MULTILINE)
    assert counts is not None
    kernel, engine = map(int, counts.groups())
    assert min(kernel, engine) >= PAGES_OUT_MIN
    assert abs(kernel - engine) < kernel / 20


def test_ctrl_c_while_pages_come_back() -> None:
    """As a terminal sends it: to every process of the foreground group."""
    process = subprocess.Popen(
        [*FUSESWAP, "demo", "--size", "240M", "--limit", "64M"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("demo: fill"):
            break
    os.killpg(process.pid, signal.SIGINT)
    result = finish(process)
    assert (result.code, result.line) == (1, "interrupted by SIGINT")
