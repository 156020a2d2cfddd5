import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseswap.host import cgroup
from fuseswap.host.bounded import HostError
from fuseswap.host.cgroup import Hierarchy, MemoryCgroup, memory_hierarchy
from tests.kit.plain_swap import plain_swap
from tests.kit.wait import wait_until

MIB = 1 << 20


@pytest.fixture
def group(disk_dir: Path) -> Iterator[MemoryCgroup]:
    with MemoryCgroup(disk_dir.name, 64 * MIB) as group:
        yield group


@pytest.fixture
def fake_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories that look like version 2, on a machine whose memory controller belongs to version 1."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    monkeypatch.setattr(cgroup, "memory_hierarchy", lambda: Hierarchy(tmp_path, version=2))
    return tmp_path


def test_version_1_is_found_by_its_controller() -> None:
    mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup /c\\040g/memory cgroup rw,memory 0 0\n"

    assert memory_hierarchy(mounts) == Hierarchy(Path("/c g/memory"), version=1)


def test_version_2_is_found_by_its_list_of_controllers(fake_v2: Path) -> None:
    assert memory_hierarchy(f"cgroup2 {fake_v2} cgroup2 rw 0 0\n") == Hierarchy(fake_v2, version=2)


def test_a_machine_without_the_controller_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu\n")

    with pytest.raises(HostError, match="memory controller"):
        memory_hierarchy(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n")


def test_a_command_runs_inside_and_its_memory_counts(group: MemoryCgroup) -> None:
    script = "m = bytearray(20 << 20); print('ready', flush=True); input()"
    with subprocess.Popen(
        group.command([sys.executable, "-c", script]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert group.pids() == [process.pid]
        assert group.usage_bytes() > 20 * MIB
        process.communicate("\n")


def test_a_process_is_moved_in_and_removal_waits_for_its_end(disk_dir: Path) -> None:
    group = MemoryCgroup(disk_dir.name, 64 * MIB)
    with subprocess.Popen(["sleep", "0.2"]) as process:
        group.add(process.pid)
        assert group.pids() == [process.pid]
        group.remove()

    assert not group.path.exists()
    group.remove()


@pytest.mark.swap
def test_the_limit_holds(group: MemoryCgroup) -> None:
    script = "m = bytearray(200 << 20)"
    done = subprocess.run(group.command([sys.executable, "-c", script]), check=False)

    assert done.returncode == -9, "with no swap to go to (another test's would do), the kernel ends the process"


@pytest.mark.swap
def test_reclaim_swaps_out(group: MemoryCgroup, disk_dir: Path) -> None:
    script = "m = bytearray(b'x') * (20 << 20); print('ready', flush=True); input()"
    with (
        plain_swap(disk_dir, 64 * MIB),
        subprocess.Popen(
            group.command([sys.executable, "-c", script]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        group.reclaim()
        wait_until(lambda: group.usage_bytes() < 10 * MIB, seconds=10, what="usage below 10 MiB")
        process.communicate("\n")


def test_a_group_that_exists_is_refused_and_kept(group: MemoryCgroup) -> None:
    with pytest.raises(HostError, match="File exists"):
        MemoryCgroup(group.path.name, 64 * MIB)

    assert group.path.exists()


def test_a_process_that_is_gone_cannot_be_added(group: MemoryCgroup) -> None:
    with pytest.raises(HostError, match="No such process"):
        group.add(2**22)


def test_a_process_that_stays_is_named(group: MemoryCgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_REMOVE_SECONDS_MAX", 0.05)
    with subprocess.Popen(["sleep", "60"]) as process:
        group.add(process.pid)
        with pytest.raises(HostError, match=rf"busy, holds \[{process.pid}\]"):
            group.remove()
        process.kill()


def test_version_2_hands_the_controller_down_and_takes_it_back(fake_v2: Path) -> None:
    group = MemoryCgroup("group", 64 * MIB)

    assert (fake_v2 / "cgroup.subtree_control").read_text() == "+memory"
    assert (group.path / "memory.max").read_text() == str(64 * MIB)

    (group.path / "memory.current").write_text("12345\n")
    (group.path / "memory.reclaim").touch()
    assert group.usage_bytes() == 12345
    group.reclaim()
    assert (group.path / "memory.reclaim").read_text() == "12345"

    # A real cgroup directory goes with the files in it.
    for file in group.path.iterdir():
        file.unlink()
    group.remove()
    assert (fake_v2 / "cgroup.subtree_control").read_text() == "-memory"
