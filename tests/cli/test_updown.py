"""`up`, `down`, `on`, `off` with the real parts: loop devices, swap, engines, nfs-ganesha."""

import errno
import json
import mmap
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from fuseswap.cli import active, swapping_off
from fuseswap.cli.main import main
from fuseswap.cli.ordinary import request_of_this_machine
from fuseswap.host import processes, rundir
from fuseswap.host.cgroup import MemoryCgroup
from fuseswap.host.ganesha import GaneshaServer
from fuseswap.host.loop import detach
from fuseswap.host.mounts import FILESYSTEM_TYPE
from fuseswap.host.swap import PRIORITY_MAX, SwapArea, swap_area
from fuseswap.swap.counters import Counters, Word
from fuseswap.swap.header import read_mark
from fuseswap.swap.units import XATTR_ACTIVATE
from tests.cli.command import Result, finish, fuseswap, start
from tests.cli.swapped import PAGES, compare, is_clean, kill, server_process, swapped_process
from tests.kit import fuse_stub
from tests.kit.cover import covered
from tests.kit.proxy import READ, Proxy, forward
from tests.kit.rescue import Leftovers
from tests.kit.wait import wait_until

pytestmark = pytest.mark.swap

SIZE = "16M"
STAGES = ["mounting", "activating", "starting the engine", "with direct I/O", "of swap on"]


@pytest.fixture
def name() -> Iterator[str]:
    """A name of this test's own, of which nothing is left at the end."""
    name = f"t-{secrets.token_hex(4)}"
    yield name
    Leftovers.of(rundir.directory(name)).free()
    if rundir.directory(name).exists():
        fuseswap("down", "--force", name)


def up(url: str, *more: str) -> Result:
    return fuseswap("up", url, "--size", SIZE, "--priority", str(PRIORITY_MAX), *more)


@contextmanager
def opened(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield
    finally:
        os.close(descriptor)


def area_of(name: str) -> SwapArea | None:
    device = rundir.engine_device(name)
    return swap_area(device.path) if device is not None else None


def mark_in(path: Path) -> bool:
    with path.open("rb") as stream:
        return read_mark(stream.read(4096)) is not None


def test_up_twice_and_down_twice(nfs_server: GaneshaServer, nfs_dir: Path, name: str) -> None:
    url = nfs_server.url(f"{nfs_dir.name}/{name}")
    result = up(url)
    assert (result.code, result.errors) == (0, "")
    area = area_of(name)
    assert area is not None
    assert (area.size_bytes, area.priority) == ((16 << 20) - 4096, PRIORITY_MAX)
    assert (nfs_dir / name).stat().st_mode & 0o777 == 0o600
    assert mark_in(nfs_dir / name)
    with swapped_process() as process:
        again = up(url)
        assert again.code == 0
        assert f"already swapping to {url}" in again.output
        report = json.loads(fuseswap("status", "--json").output)["swap"]
        (mine,) = (entry for entry in report if entry["name"] == name)
        assert mine["state"] == "active"
        assert mine["source"] == url
        assert mine["used_bytes"] >= PAGES * 4096
        assert mine["counters"]["write_bytes"] >= PAGES * 4096
        assert mine["server"]["connected"]
        text = fuseswap("status", "-v").output
        assert f"{name}: {url}" in text
        down = fuseswap("down", url)
        assert (down.code, down.errors) == (0, "")
        assert is_clean(name)
        assert not mark_in(nfs_dir / name)
        assert compare(process) == "same"
    assert fuseswap("down", name).code == 0


def test_on_and_off(nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path, name: str) -> None:
    assert fuseswap("mount", nfs_server.url(nfs_dir.name), mount_point).code == 0
    file = mount_point / name
    assert fuseswap("create", nfs_server.url(f"{nfs_dir.name}/{name}"), "--size", SIZE).code == 0
    assert fuseswap("check", file).code == 0
    assert fuseswap("on", file, "--priority", str(PRIORITY_MAX)).code == 0
    assert area_of(name) is not None
    assert "already swapping" in fuseswap("on", file).output
    busy = fuseswap("check", file)
    assert busy.code == 3
    assert "is an active swap file (EBUSY)" in busy.line
    with file.open("r+b") as stream, pytest.raises(OSError, match="busy") as caught:
        os.write(stream.fileno(), b"x")
    assert caught.value.errno == errno.ETXTBSY
    with swapped_process() as process:
        assert fuseswap("off", file).code == 0
        assert compare(process) == "same"
    assert is_clean(name)
    with file.open("r+b") as stream:
        os.pwrite(stream.fileno(), b"x", 8192)
    assert fuseswap("off", file).code == 0
    assert fuseswap("umount", mount_point).code == 0


def test_off_by_another_mount(nfs_server: GaneshaServer, nfs_dir: Path, disk_dir: Path, name: str) -> None:
    """It was there first, by another address, and knows what the other turned on; then both let the file be written."""
    points = [disk_dir / "one", disk_dir / "two"]
    url = nfs_server.url(nfs_dir.name)
    for point, source in zip(points, (url.replace("127.0.0.1", "localhost"), url), strict=True):
        point.mkdir()
        assert fuseswap("mount", source, point).code == 0
    first, second = (point / name for point in points)
    assert fuseswap("create", nfs_server.url(f"{nfs_dir.name}/{name}"), "--size", SIZE).code == 0
    with first.open("r+b") as one, second.open("r+b") as two:
        assert fuseswap("on", second).code == 0
        for stream in (one, two):
            with pytest.raises(OSError, match="busy") as caught:
                os.pwrite(stream.fileno(), b"x", 8192)
            assert caught.value.errno == errno.ETXTBSY
        assert fuseswap("off", first).code == 0
        assert is_clean(name)
        for stream in (one, two):
            assert os.pwrite(stream.fileno(), b"x", 8192) == 1
    for point in points:
        assert fuseswap("umount", point).code == 0


def test_off_of_a_file_whose_engine_never_came(
    nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path, name: str
) -> None:
    assert fuseswap("mount", nfs_server.url(nfs_dir.name), mount_point).code == 0
    file = mount_point / name
    assert fuseswap("create", nfs_server.url(f"{nfs_dir.name}/{name}"), "--size", SIZE).code == 0
    os.setxattr(file, XATTR_ACTIVATE, request_of_this_machine())
    result = fuseswap("off", file)
    assert (result.code, result.output) == (0, f"{file} is not active, and may be written again\n")
    with file.open("r+b") as stream:
        assert os.pwrite(stream.fileno(), b"x", 8192) == 1
    assert fuseswap("off", file).output == f"{file} is not active\n"
    assert fuseswap("umount", mount_point).code == 0


def test_up_and_down_where_nobody_reads(nfs_server: GaneshaServer, nfs_dir: Path, name: str) -> None:
    url = nfs_server.url(f"{nfs_dir.name}/{name}")
    for arguments in (("up", url, "--size", SIZE), ("down", name)):
        process = start(*arguments)
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        assert finish(process).code == 0
        assert (area_of(name) is None) == (arguments[0] == "down")
    assert is_clean(name)


def test_two_at_once(nfs_server: GaneshaServer, nfs_dir: Path, name: str) -> None:
    url = nfs_server.url(f"{nfs_dir.name}/{name}")
    assert fuseswap("create", url, "--size", SIZE).code == 0
    started = [start("up", url) for _ in range(2)]
    results = [finish(process) for process in started]
    assert [result.code for result in results] == [0, 0], results
    assert sum("already swapping" in result.output for result in results) == 1
    started = [start("down", name) for _ in range(2)]
    assert [finish(process).code for process in started] == [0, 0]
    assert is_clean(name)


def test_a_name_that_is_taken(nfs_server: GaneshaServer, nfs_dir: Path, name: str) -> None:
    assert up(nfs_server.url(f"{nfs_dir.name}/{name}")).code == 0
    other = up(nfs_server.url(f"{nfs_dir.name}/other"), "--name", name)
    assert other.code == 1
    assert "choose another name with --name" in other.line
    assert fuseswap("down", name).code == 0
    assert is_clean(name)


def stop_at(stage: str, url: str, number: signal.Signals) -> Result:
    """`up`, and a signal when it says that it has come to `stage`."""
    process = start("up", url, "--size", SIZE)
    assert process.stdout is not None
    said = ""
    while stage not in said:
        said = process.stdout.readline()
        assert said, f"up ended before {stage}"
    process.send_signal(number)
    return finish(process)


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_an_interrupted_up_leaves_nothing(stage: str, nfs_server: GaneshaServer, nfs_dir: Path, name: str) -> None:
    url = nfs_server.url(f"{nfs_dir.name}/{name}")
    number = signal.SIGINT if stage == "mounting" else signal.SIGTERM
    result = stop_at(stage, url, number)
    assert result.code == 1
    assert result.line == f"interrupted by {number.name}"
    assert is_clean(name)
    assert not mark_in(nfs_dir / name)


@pytest.mark.parametrize("stage", STAGES)
def test_down_after_a_killed_up(stage: str, nfs_server: GaneshaServer, nfs_dir: Path, name: str) -> None:
    url = nfs_server.url(f"{nfs_dir.name}/{name}")
    assert stop_at(stage, url, signal.SIGKILL).code == -signal.SIGKILL
    # What it had started may be on its way still.
    wait_until(lambda: fuseswap("down", name).code == 0 and is_clean(name), seconds=20, what="down")
    again = up(url)
    assert again.code == 0, again
    assert fuseswap("down", name).code == 0
    assert is_clean(name)
    assert not mark_in(nfs_dir / name)


def test_up_after_a_killed_up(nfs_server: GaneshaServer, nfs_dir: Path, name: str) -> None:
    url = nfs_server.url(f"{nfs_dir.name}/{name}")
    stop_at("with direct I/O", url, signal.SIGKILL)
    assert up(url).code == 0
    assert area_of(name) is not None
    assert fuseswap("down", name).code == 0
    assert is_clean(name)


def test_down_without_filesystem_and_supervisor(nfs_server: GaneshaServer, nfs_dir: Path, name: str) -> None:
    url = nfs_server.url(f"{nfs_dir.name}/{name}")
    assert up(url).code == 0
    with swapped_process() as process:
        kill(server_process(name, processes.FILESYSTEM))
        kill(server_process(name, processes.SUPERVISOR))
        assert "already swapping" in up(url).output
        assert fuseswap("status").code == 0
        result = fuseswap("down", name)
        assert (result.code, result.errors) == (0, ""), result
        assert compare(process) == "same"
    assert is_clean(name)
    assert not mark_in(nfs_dir / name), "the filesystem was started again to clear it"


def test_down_after_a_lazy_unmount(nfs_server: GaneshaServer, nfs_dir: Path, name: str) -> None:
    assert up(nfs_server.url(f"{nfs_dir.name}/{name}")).code == 0
    with swapped_process() as process:
        subprocess.run(["umount", "-l", str(rundir.engine_mountpoint(name))], check=True, timeout=20)
        (mine,) = (entry for entry in json.loads(fuseswap("status", "--json").output)["swap"] if entry["name"] == name)
        assert mine["state"] == "active"
        result = fuseswap("down", name)
        assert (result.code, result.errors) == (0, ""), result
        assert compare(process) == "same"
    assert is_clean(name)
    assert not mark_in(nfs_dir / name)


def test_an_engine_that_serves_somebody_is_not_killed(
    nfs_server: GaneshaServer,
    nfs_dir: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert up(nfs_server.url(f"{nfs_dir.name}/{name}")).code == 0
    with opened(rundir.engine_mountpoint(name)):
        subprocess.run(["umount", "-l", str(rundir.engine_mountpoint(name))], check=True, timeout=20)
        with monkeypatch.context() as patch:
            patch.setattr(active, "_END_SECONDS", 0.5)
            assert main(("down", name)) == 1
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        assert "something still holds the engine's file" in errors
        assert server_process(name, processes.ENGINE)
    assert fuseswap("down", name).code == 0
    assert is_clean(name)


def test_the_number_of_a_dead_engine_given_to_another(nfs_server: GaneshaServer, nfs_dir: Path, name: str) -> None:
    other = f"{name}-other"
    assert up(nfs_server.url(f"{nfs_dir.name}/{name}")).code == 0
    assert up(nfs_server.url(f"{nfs_dir.name}/{other}")).code == 0
    try:
        engine = server_process(other, processes.ENGINE)
        kill(server_process(name, processes.ENGINE))
        with (rundir.directory(name) / "counters").open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapping:
            counters = Counters(mapping)
            counters.words[Word.ENGINE_PID] = engine
            counters.close()
        assert fuseswap("down", "--force", name).code == 0
        assert server_process(other, processes.ENGINE) == engine
        assert area_of(other) is not None
    finally:
        assert fuseswap("down", other).code == 0
    assert is_clean(name)


def test_the_same_file_by_another_address(nfs_server: GaneshaServer, nfs_dir: Path, name: str) -> None:
    url = nfs_server.url(f"{nfs_dir.name}/{name}")
    assert up(url).code == 0
    with Proxy(nfs_server.nfs_port) as proxy:
        other = up(url.replace(str(nfs_server.nfs_port), str(proxy.port)), "--name", f"{name}-other")
    assert other.code == 3, other
    assert "is an active swap file" in other.errors
    assert is_clean(f"{name}-other")
    assert area_of(name) is not None
    assert mark_in(nfs_dir / name)
    assert fuseswap("down", name).code == 0
    assert is_clean(name)


def test_two_mounts_of_the_same_file(nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path, name: str) -> None:
    url = nfs_server.url(f"{nfs_dir.name}/{name}")
    with Proxy(nfs_server.nfs_port) as proxy:
        source = nfs_server.url(nfs_dir.name).replace(str(nfs_server.nfs_port), str(proxy.port))
        assert fuseswap("mount", source, mount_point).code == 0
        assert up(url).code == 0
        refused = fuseswap("on", mount_point / name, "--name", f"{name}-other")
        assert refused.code == 3, refused
        assert "is an active swap file (EBUSY)" in refused.errors
        assert area_of(name) is not None
        assert mark_in(nfs_dir / name)
        assert fuseswap("umount", mount_point).code == 0
    assert fuseswap("down", name).code == 0
    assert is_clean(name)


@contextmanager
def mount_of_a_user(source: str, _name: str, directory: Path) -> Iterator[None]:
    with fuse_stub.mounted(directory, FILESYSTEM_TYPE, source, user=65534) as connection:
        yield
        connection.unmount()


@contextmanager
def mount_of_no_url(_source: str, _name: str, directory: Path) -> Iterator[None]:
    with fuse_stub.mounted(directory, FILESYSTEM_TYPE, "nfs://[x") as connection:
        yield
        connection.unmount()


@contextmanager
def covered_mount(source: str, _name: str, directory: Path) -> Iterator[None]:
    point = directory / "point"
    point.mkdir()
    assert fuseswap("mount", source, point).code == 0
    try:
        with covered(directory):
            yield
    finally:
        assert fuseswap("umount", point).code == 0


@contextmanager
def covered_by_a_lookalike(source: str, name: str, directory: Path) -> Iterator[None]:
    with covered_mount(source, name, directory):
        (directory / "point").mkdir()
        (directory / "point" / name).touch()
        yield


@contextmanager
def bound_mount(source: str, _name: str, directory: Path) -> Iterator[None]:
    point, bound = directory / "point", directory / "bound"
    for each in (point, bound):
        each.mkdir()
    assert fuseswap("mount", source, point).code == 0
    subprocess.run(["mount", "--bind", point, bound], check=True, timeout=10)
    yield
    for each in (bound, point):
        assert fuseswap("umount", each).code == 0


@contextmanager
def read_only_mount(source: str, _name: str, directory: Path) -> Iterator[None]:
    assert fuseswap("mount", source, directory, "-o", "ro").code == 0
    yield
    assert fuseswap("umount", directory).code == 0


@pytest.mark.parametrize(
    "other",
    [mount_of_a_user, mount_of_no_url, covered_mount, covered_by_a_lookalike, bound_mount, read_only_mount],
)
def test_a_mount_that_is_not_ours_to_ask(
    other: Callable[[str, str, Path], AbstractContextManager[None]],
    nfs_server: GaneshaServer,
    nfs_dir: Path,
    disk_dir: Path,
    name: str,
) -> None:
    with other(nfs_server.url(nfs_dir.name), name, disk_dir):
        assert up(nfs_server.url(f"{nfs_dir.name}/{name}")).code == 0
        result = fuseswap("down", name)
        assert (result.code, result.errors) == (0, "")
        assert is_clean(name)
        assert not mark_in(nfs_dir / name)


def test_down_of_a_leftover_whose_file_has_a_new_name(nfs_server: GaneshaServer, nfs_dir: Path, name: str) -> None:
    url = nfs_server.url(f"{nfs_dir.name}/{name}")
    assert up(url).code == 0
    area = area_of(name)
    assert area is not None
    subprocess.run(["swapoff", area.path], check=True, timeout=20)
    detach(area.path)
    kill(server_process(name, processes.ENGINE))
    assert up(url, "--name", f"{name}-new").code == 0
    assert fuseswap("down", name).code == 0
    assert is_clean(name)
    assert mark_in(nfs_dir / name), "it is the new engine's"
    assert area_of(f"{name}-new") is not None
    assert fuseswap("down", f"{name}-new").code == 0
    assert is_clean(f"{name}-new")
    assert not mark_in(nfs_dir / name)


def test_an_engine_without_counters(nfs_server: GaneshaServer, nfs_dir: Path, name: str) -> None:
    url = nfs_server.url(f"{nfs_dir.name}/{name}")
    assert up(url).code == 0
    rundir.remove_counters(name)
    for more in ((), ("--name", f"{name}-other")):
        refused = up(url, *more)
        assert refused.code == 1
        assert refused.line.startswith(f"{name}: /dev/loop")
        assert refused.line.endswith(f"without readable counters of its engine: fuseswap down {name}")
    assert fuseswap("down", name).code == 0
    assert is_clean(name)


def test_down_without_engine(nfs_server: GaneshaServer, nfs_dir: Path, name: str) -> None:
    url = nfs_server.url(f"{nfs_dir.name}/{name}")
    assert up(url).code == 0
    with swapped_process() as process:
        kill(server_process(name, processes.ENGINE))
        assert "engine dead, pages swapped to it are lost" in fuseswap("status").output
        again = up(url)
        assert again.code == 1
        assert "its engine is dead, its pages are lost" in again.line
        result = fuseswap("down", name)
        assert result.code == 0
        assert "its engine is dead: 2" in result.line
        assert "are lost" in result.line
        assert compare(process) != "different"
    assert is_clean(name)
    assert not mark_in(nfs_dir / name)


def test_a_server_that_is_gone_for_good(fresh_nfs_server: GaneshaServer, name: str) -> None:
    assert up(fresh_nfs_server.url(name)).code == 0
    with swapped_process() as process:
        fresh_nfs_server.kill()
        wait_until(lambda: "waiting for the server" in fuseswap("status").output, seconds=20, what="status to notice")
        refused = fuseswap("down", name)
        assert refused.code == 4
        assert "the server does not answer and 2" in refused.line
        assert f"fuseswap down --force {name}" in refused.line
        assert area_of(name) is not None, "swap stays on"
        forced = fuseswap("down", "--force", name)
        assert forced.code == 0
        assert forced.errors.startswith(f"fuseswap: {name}: aborting its connection: 2")
        assert "are lost" in forced.errors
        assert compare(process) != "different", "SIGBUS, never wrong bytes"
    assert is_clean(name)


def test_force_after_a_lazy_unmount(fresh_nfs_server: GaneshaServer, name: str) -> None:
    """The connection of such a mount cannot be looked up; it ends with the engine."""
    assert up(fresh_nfs_server.url(name)).code == 0
    with swapped_process() as process:
        subprocess.run(["umount", "-l", str(rundir.engine_mountpoint(name))], check=True, timeout=20)
        fresh_nfs_server.kill()
        wait_until(lambda: "waiting for the server" in fuseswap("status").output, seconds=20, what="status to notice")
        forced = fuseswap("down", "--force", name)
        assert forced.code == 0, forced
        assert "are lost" in forced.errors
        assert compare(process) != "different"
    assert is_clean(name)


def test_force_aborts_nothing_that_is_well(
    nfs_server: GaneshaServer, nfs_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """swapoff may look for owners of pages for long, and ask for nothing meanwhile."""
    assert up(nfs_server.url(f"{nfs_dir.name}/{name}")).code == 0
    with swapped_process() as process:
        monkeypatch.setattr(swapping_off, "_PATIENCE_SECONDS", 1.0)
        watch = swapping_off._watcher(name, force=True)
        started = time.monotonic()
        while time.monotonic() < started + 2:
            watch(PAGES * 4096, 60.0)
            time.sleep(0.25)
        assert fuseswap("down", "--force", name).errors == ""
        assert compare(process) == "same"
    assert is_clean(name)


def test_force_ends_another_down(nfs_server: GaneshaServer, nfs_dir: Path, name: str) -> None:
    """The server lives, so that nothing seems to be amiss, but answers no READ."""
    with Proxy(nfs_server.nfs_port) as proxy:
        url = nfs_server.url(f"{nfs_dir.name}/{name}").replace(str(nfs_server.nfs_port), str(proxy.port))
        assert up(url).code == 0
        with MemoryCgroup(name, 64 << 20) as cgroup, swapped_process(cgroup) as process:
            proxy.on_reply = lambda record, random: [] if record.procedure == READ else forward(record, random)
            first = start("down", name)
            assert first.stdout is not None
            assert "to bring back" in first.stdout.readline()
            forced = fuseswap("down", "--force", name)
            finish(first)
            assert forced.code == 0
            assert "waiting for another fuseswap command" in forced.output
            assert f"{name}: aborting its connection: " in forced.errors
            assert compare(process) != "different"
    assert is_clean(name)


def test_too_little_memory_for_swapoff(
    nfs_server: GaneshaServer,
    nfs_dir: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert up(nfs_server.url(f"{nfs_dir.name}/{name}")).code == 0
    with swapped_process() as process:
        with monkeypatch.context() as patch:
            patch.setattr(swapping_off, "memory_available_bytes", lambda: 4096)
            assert main(("down", name)) == 1
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        assert "of memory lack to bring them back: end some processes" in errors
        assert area_of(name) is not None, "swap stays on"
        assert fuseswap("down", name).code == 0
        assert compare(process) == "same"
    assert is_clean(name)


@pytest.fixture
def slow_url(nfs_server: GaneshaServer, nfs_dir: Path) -> str:
    """A file that takes a while to make."""
    return nfs_server.url(f"{nfs_dir.name}/file")


def write_and(number: signal.Signals, url: str, directory: Path) -> Result:
    process = start("create", url, "--size", "8G")

    def begun() -> bool:
        return any(path.stat().st_size > 1 << 20 for path in directory.iterdir())

    wait_until(begun, seconds=20, what="the beginning of the file")
    process.send_signal(number)
    return finish(process)


def test_an_interrupted_create_leaves_nothing(slow_url: str, nfs_dir: Path) -> None:
    result = write_and(signal.SIGINT, slow_url, nfs_dir)
    assert (result.code, result.line) == (1, "interrupted by SIGINT")
    assert list(nfs_dir.iterdir()) == []


def test_create_after_a_killed_create(slow_url: str, nfs_dir: Path) -> None:
    write_and(signal.SIGKILL, slow_url, nfs_dir)
    assert len(list(nfs_dir.iterdir())) == 1
    assert fuseswap("create", slow_url, "--size", SIZE).code == 0
    assert [path.name for path in nfs_dir.iterdir()] == ["file"]
    assert (nfs_dir / "file").stat().st_blocks * 512 >= 16 << 20
