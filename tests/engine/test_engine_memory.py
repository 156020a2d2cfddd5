"""The path of a page needs no memory: page faults, resident memory and system calls of a real engine under load."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from fuseswap.host.bounded import start
from fuseswap.host.ganesha import GaneshaServer
from fuseswap.swap.counters import Word
from tests.engine.running import (
    Running,
    fio,
    fio_command,
    fio_result,
    in_background,
    nfs_target,
    reserve_used_up,
    running,
    with_small_reserve,
)
from tests.kit.wait import wait_until

pytestmark = pytest.mark.machine

MIB = 1 << 20
SIZE = 64 * MIB
MIXED = (
    "--rw=randrw",
    "--iodepth=16",
    "--norandommap",
    "--bssplit=4k/80:8k/6:32k/6:128k/5:512k/2:1m/1",
    "--blockalign=4k",
)
"""4 KiB to 1 MiB, 30 KiB in the mean."""

WHITELIST = {"readv", "writev", "write", "sendmsg", "recvfrom", "epoll_wait", "sched_setscheduler"}
RECONNECTING = {"connect", "getsockopt"}


@attrs.frozen
class Memory:
    """Of one process, since its start: page faults, and pages resident now."""

    minor_faults: int
    major_faults: int
    resident_bytes: int

    @classmethod
    def of(cls, pid: int) -> "Memory":
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return cls(int(fields[7]), int(fields[9]), 4096 * int(fields[21]))


def load(here: Running, requests: int) -> None:
    """So many requests; the counters agree that they came."""
    before = here.words[Word.READS] + here.words[Word.WRITES]
    fio(here.device, SIZE, *MIXED, f"--number_ios={requests}", "--io_size=1t")
    assert here.words[Word.READS] + here.words[Word.WRITES] - before >= requests


@pytest.mark.parametrize(
    ("requests", "reserve_bytes", "resident_max"),
    [
        pytest.param(100_000, None, 64 * MIB, id="default"),
        pytest.param(20_000, 4 * MIB, 40 * MIB, id="small"),
        pytest.param(1_000_000, None, 64 * MIB, id="million", marks=[pytest.mark.torture, pytest.mark.timeout(900)]),
    ],
)
def test_no_faults_and_no_growth(
    nfs_server: GaneshaServer, nfs_dir: Path, requests: int, reserve_bytes: int | None, resident_max: int
) -> None:
    target = nfs_target(nfs_server, f"{nfs_dir.name}/swapfile", SIZE)
    with running(target, SIZE, reserve_bytes=reserve_bytes) as here:
        here.attach()
        load(here, 5000)
        before = Memory.of(here.engine_pid)
        for _ in range(0, requests, 100_000):
            load(here, min(requests, 100_000))
        after = Memory.of(here.engine_pid)
        words = here.counters.snapshot()
        here.detach()

    print(f"{after}, {after.minor_faults - before.minor_faults} minor faults, {words}")
    assert after.major_faults == before.major_faults
    assert after.minor_faults - before.minor_faults < 10
    assert after.resident_bytes == before.resident_bytes
    assert after.resident_bytes < resident_max
    assert words["memory_locked"]
    assert words["reserve_pages_high"] <= words["reserve_pages"]


@contextmanager
def traced(pid: int, output: Path) -> Iterator[None]:
    """Count the system calls of all threads of `pid` while entered."""
    tracer = start(["timeout", "60", "strace", "-c", "-f", "-o", str(output), "-p", str(pid)])
    try:
        wait_until(lambda: "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text(), seconds=5)
        yield
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=10)
    except BaseException:
        tracer.kill()
        tracer.communicate(timeout=10)
        raise


def calls_of(output: Path) -> dict[str, int]:
    """System call -> how often, from the table of strace -c."""
    rows = [line.split() for line in output.read_text().splitlines()]
    return {row[-1]: int(row[3]) for row in rows if len(row) >= 5 and row[3].isdigit() and row[-1] != "total"}


def test_only_the_whitelist_s_system_calls(nfs_server: GaneshaServer, nfs_dir: Path, tmp_path: Path) -> None:
    target = nfs_target(nfs_server, f"{nfs_dir.name}/swapfile", SIZE)
    with running(target, SIZE) as here:
        here.attach()
        with traced(here.engine_pid, tmp_path / "strace"):
            load(here, 5000)
        here.detach()
    calls = calls_of(tmp_path / "strace")

    assert set(calls) == WHITELIST
    assert calls["readv"] >= 5000
    assert calls["writev"] + calls["write"] >= 5000
    # Real-time while it sends, and not between; one such time may need several calls.
    assert 0 < calls["sched_setscheduler"] <= 2 * calls["sendmsg"] + 1


def test_reconnecting_adds_connect_and_no_more(fresh_nfs_server: GaneshaServer, tmp_path: Path) -> None:
    server = fresh_nfs_server
    with running(nfs_target(server, "swapfile", SIZE), SIZE) as here:
        here.attach()
        before = Memory.of(here.engine_pid)
        descriptors = descriptors_of(here.engine_pid)
        command = fio_command(here.device, SIZE, *MIXED, "--time_based", "--runtime=30")
        with traced(here.engine_pid, tmp_path / "strace"), in_background(command):
            wait_until(lambda: here.words[Word.WRITES] > 500, seconds=10)
            server.kill()
            wait_until(lambda: not here.words[Word.CONNECTED], seconds=10)
            server.start()
            wait_until(lambda: here.words[Word.CONNECTED], seconds=10)
            written = here.words[Word.WRITES]
            wait_until(lambda: here.words[Word.WRITES] > written + 500, seconds=10)
        assert here.words[Word.RECONNECTS] == 1
        assert descriptors_of(here.engine_pid) == descriptors
        after = Memory.of(here.engine_pid)
        here.detach()
    calls = calls_of(tmp_path / "strace")

    assert set(calls) <= WHITELIST | RECONNECTING
    assert calls["connect"] >= 2
    assert after.minor_faults - before.minor_faults < 10


def test_reconnecting_while_the_reserve_is_used_up(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    with with_small_reserve(nfs_server, f"{nfs_dir.name}/swapfile", SIZE) as (here, proxy):
        load(here, 2000)
        before, descriptors = Memory.of(here.engine_pid), descriptors_of(here.engine_pid)
        with reserve_used_up(here, proxy, SIZE) as writer:
            for _ in range(3):
                proxy.accept()
                wait_until(lambda: here.words[Word.CONNECTED], seconds=10)
                proxy.refuse()
                wait_until(lambda: not here.words[Word.CONNECTED], seconds=10)
            proxy.accept()
            output, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
        fio_result(output)
        after = Memory.of(here.engine_pid)
        assert after.minor_faults - before.minor_faults < 10
        assert (after.major_faults, after.resident_bytes) == (before.major_faults, before.resident_bytes)
        assert descriptors_of(here.engine_pid) == descriptors
        assert here.words[Word.RECONNECTS] >= 4
        here.detach()


def descriptors_of(pid: int) -> dict[str, str]:
    """Number -> what it stands for."""
    return {entry.name: str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}


def test_the_supervisor_is_locked_and_small(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    target = nfs_target(nfs_server, f"{nfs_dir.name}/swapfile", MIB)
    with running(target, MIB) as here:
        for pid in (here.engine_pid, here.supervisor_pid):
            wait_until(lambda pid=pid: unlocked_bytes(pid) < MIB // 4, seconds=5)  # type: ignore[misc]
        assert Memory.of(here.supervisor_pid).resident_bytes < 32 * MIB


def unlocked_bytes(pid: int) -> int:
    """What of the resident memory is not locked: the kernel's own pages of the process, such as the vDSO."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    resident, locked = (int(fields[name].split()[0]) << 10 for name in ("VmRSS", "VmLck"))
    return resident - locked


def test_an_idle_engine_costs_nothing(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    """Polling must adapt: after a load the processor is left alone."""
    target = nfs_target(nfs_server, f"{nfs_dir.name}/swapfile", SIZE)
    with running(target, SIZE) as here:
        here.attach()
        fio(here.device, SIZE, "--rw=randread", "--bs=4k", "--iodepth=1", "--number_ios=2000")
        assert ticks_of_two_seconds(here.engine_pid) <= 2
        here.detach()


def test_an_engine_that_must_not_read_sleeps(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    """With the reserve used up and no server, what waits in /dev/fuse must not wake it again and again."""
    with with_small_reserve(nfs_server, f"{nfs_dir.name}/swapfile", SIZE) as (here, proxy):
        with reserve_used_up(here, proxy, SIZE) as writer:
            assert ticks_of_two_seconds(here.engine_pid) <= 5
            proxy.accept()
            assert writer.wait(timeout=60) == 0
        here.detach()


def ticks_of_two_seconds(pid: int) -> int:
    """Processor time that a process used, of 200 ticks."""
    before = ticks_of(pid)
    with pytest.raises(subprocess.TimeoutExpired), in_background(["sleep", "60"]) as nothing:
        nothing.wait(2)
    return ticks_of(pid) - before


def ticks_of(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
