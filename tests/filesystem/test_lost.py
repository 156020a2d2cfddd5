"""A server that goes, a filesystem process that dies, and how both end."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseswap.host.ganesha import GaneshaServer
from fuseswap.host.processes import start_ticks
from fuseswap.swap.units import RUN_DIRECTORY
from tests.filesystem import load
from tests.filesystem.conftest import Mount
from tests.filesystem.swapfile import activate, activation, deactivate, write_counters, write_swap_file
from tests.kit.wait import wait_until


class Load:
    """Processes that work on a mount and tell how far they are."""

    def __init__(self, point: Path, count: int) -> None:
        self._logs = [point.parent / f"load-{number}.log" for number in range(count)]
        self._processes = []
        for number, log in enumerate(self._logs):
            (point / f"load-{number}").mkdir()
            with log.open("wb") as output:
                command = [sys.executable, load.__file__, str(point / f"load-{number}")]
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=output)
                self._processes.append(process)

    def wait_for_progress(self) -> None:
        before = self._rounds()
        wait_until(
            lambda: all(now > then + 1 for now, then in zip(self._rounds(), before, strict=True)),
            seconds=30,
            what="progress of every process",
        )

    def stop(self) -> None:
        for process in self._processes:
            process.communicate(b"stop", timeout=30)
        failed = [
            log.read_text() for process, log in zip(self._processes, self._logs, strict=True) if process.returncode
        ]
        assert failed == []

    def failures(self) -> list[str]:
        """The last line of each process, all of which end."""
        for process in self._processes:
            assert process.wait(20) != 0
            assert process.stdin is not None
            process.stdin.close()
        return [log.read_text().splitlines()[-1] for log in self._logs]

    def _rounds(self) -> list[int]:
        return [log.read_bytes().count(b"\n") for log in self._logs]


def test_a_server_killed_under_load_loses_nothing(mount: Mount, fresh_nfs_server: GaneshaServer) -> None:
    mounted = mount(fresh_nfs_server.url())
    load = Load(mounted.point, 4)
    for _ in range(3):
        load.wait_for_progress()
        fresh_nfs_server.kill()
        fresh_nfs_server.start()
    load.wait_for_progress()
    load.stop()
    assert mounted.stop() == 0


_HALVES = """
import sys
with open(sys.argv[1], "wb", buffering=0) as file:
    file.write(b"1" * 1_000_000)
    print("half", flush=True)
    sys.stdin.readline()
    file.write(b"2" * 2_000_000)
"""


def test_what_close_promised_outlives_the_server(mount: Mount, fresh_nfs_server: GaneshaServer) -> None:
    mounted = mount(fresh_nfs_server.url())
    command = [sys.executable, "-c", _HALVES, str(mounted.point / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        fresh_nfs_server.kill()
        fresh_nfs_server.start()
        writer.communicate(b"go on\n", timeout=20)
        assert writer.returncode == 0
    assert (fresh_nfs_server.export_dir / "file").read_bytes() == b"1" * 1_000_000 + b"2" * 2_000_000


def test_umount_without_a_server(mount: Mount, fresh_nfs_server: GaneshaServer) -> None:
    mounted = mount(fresh_nfs_server.url())
    (mounted.point / "file").write_text("content")
    fresh_nfs_server.kill()
    assert mounted.stop() == 0
    assert not mounted.is_mounted()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts(mount: Mount, nfs_server: GaneshaServer, number: signal.Signals) -> None:
    mounted = mount(nfs_server.url())
    os.kill(mounted.pid, number)
    assert mounted.wait() == 0
    assert not mounted.is_mounted()


def test_a_signal_unmounts_although_users_wait_for_a_dead_server(mount: Mount, fresh_nfs_server: GaneshaServer) -> None:
    mounted = mount(fresh_nfs_server.url())
    fresh_nfs_server.kill()
    user = subprocess.Popen(
        ["ls", str(mounted.point / "x")], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: _waits(user.pid), seconds=10, what="the user waiting")
    os.kill(mounted.pid, signal.SIGTERM)
    assert mounted.wait() == 0
    assert user.wait(10) != 0
    assert not mounted.is_mounted()


def _waits(pid: int) -> bool:
    return "fuse" in Path(f"/proc/{pid}/wchan").read_text() or "request_wait" in Path(f"/proc/{pid}/wchan").read_text()


def test_umount_clears_what_a_killed_process_leaves(mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    mounted = mount(nfs_server.url(nfs_dir.name))
    path = mounted.point / "file"
    path.write_text("content")
    old = os.open(path, os.O_RDONLY)
    mounted.kill()
    assert mounted.is_mounted()
    for use in (lambda: path.read_text(), lambda: os.fsync(old), lambda: list(mounted.point.iterdir())):
        with pytest.raises(OSError) as caught:
            use()
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    with contextlib.suppress(OSError):
        os.close(old)
    subprocess.run(["umount", str(mounted.point)], check=True, timeout=10)
    assert not mounted.is_mounted()
    again = mount(nfs_server.url(nfs_dir.name))
    assert (again.point / "file").read_text() == "content"


def test_a_process_killed_under_load_and_started_again(mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    mounted = mount(nfs_server.url(nfs_dir.name))
    for _ in range(2):
        load = Load(mounted.point, 4)
        old = os.open(mounted.point, os.O_RDONLY | os.O_DIRECTORY)
        load.wait_for_progress()
        mounted.kill()
        # Every user gets a clean error, and at once.
        clean = [f"[Errno {number}]" for number in (errno.ENOTCONN, errno.ECONNABORTED)]
        assert [line for line in load.failures() if not any(words in line for words in clean)] == []
        subprocess.run(["umount", "-l", str(mounted.point)], check=True, timeout=10)
        mounted.start()
        with pytest.raises(OSError) as caught:
            os.listdir(old)  # noqa: PTH208  (a descriptor)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        os.close(old)
        # What was synced and renamed is whole.
        done = list(mounted.point.glob("load-*/*.done"))
        assert len(done) >= 4
        assert {path.stat().st_size for path in done} == {700_000}
        for directory in mounted.point.iterdir():
            for path in directory.iterdir():
                path.unlink()
            directory.rmdir()
    assert mounted.stop() == 0


@contextlib.contextmanager
def engine_of(plain: dict[str, object]) -> Iterator[subprocess.Popen[bytes]]:
    """What an engine leaves to be seen: counters, and a process of its name."""
    directory = Path(RUN_DIRECTORY) / f"test-{uuid.uuid4().hex}"
    script = "import ctypes, time; ctypes.CDLL(None).prctl(15, b'fuseswap-engine', 0, 0, 0); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.DEVNULL)
    try:
        write_counters(directory / "counters", plain, process.pid, start_ticks(process.pid))
        comm = Path(f"/proc/{process.pid}/comm")
        wait_until(lambda: comm.read_text() == "fuseswap-engine\n", seconds=10)
        yield process
    finally:
        process.kill()
        process.wait()
        (directory / "counters").unlink()
        directory.rmdir()


def test_a_new_process_guards_what_engines_serve(mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    first = mount(nfs_server.url(nfs_dir.name))
    content = write_swap_file(first.point / "swapfile")
    write_swap_file(first.point / "other")
    activate(first.point / "swapfile")
    plain = activation(first.point / "swapfile")
    with engine_of(plain) as process:
        first.kill()
        subprocess.run(["umount", str(first.point)], check=True, timeout=10)
        second = mount(nfs_server.url(nfs_dir.name))
        path = second.point / "swapfile"
        assert json.dumps(activation(path)) == json.dumps(plain)
        for call, number in (
            (lambda: path.write_bytes(b"x"), errno.ETXTBSY),
            (lambda: os.truncate(path, 0), errno.ETXTBSY),
            (path.unlink, errno.EPERM),
            (lambda: activate(path), errno.EBUSY),
        ):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == number
        (second.point / "other").write_bytes(b"not active")
        with pytest.raises(OSError) as caught:
            deactivate(path)
        assert caught.value.errno == errno.EBUSY
        process.kill()
        wait_until(lambda: _deactivated(path, nfs_dir / "swapfile", content), seconds=10, what="the mark to be gone")


def _deactivated(path: Path, behind: Path, content: bytes) -> bool:
    if b"fuseswap" in behind.read_bytes()[:1024]:
        with contextlib.suppress(OSError):
            deactivate(path)
    return behind.read_bytes() == content


# --- two mounts ---


def test_two_mounts_see_each_other(mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    one, two = mount(nfs_server.url(nfs_dir.name)).point, mount(nfs_server.url(nfs_dir.name)).point
    (one / "file").write_bytes(b"first")
    assert (two / "file").read_bytes() == b"first"
    # Close-to-open: an open after the other's close sees its bytes, at once.
    for number in range(5):
        content = b"%d" % number * (number * 2000 + 1)
        (one / "file").write_bytes(content)
        assert (two / "file").read_bytes() == content
    with (two / "file").open("ab") as file:
        file.write(b"appended")
    assert (one / "file").read_bytes() == content + b"appended"
    # Names, within the time that they may be cached.
    (one / "file").rename(one / "renamed")
    wait_until(lambda: not (two / "file").exists(), seconds=10, what="the old name")
    assert (two / "renamed").exists()
    (two / "renamed").unlink()
    wait_until(lambda: not (one / "renamed").exists(), seconds=10, what="the removal")
    (one / "directory").mkdir()
    wait_until(lambda: [path.name for path in two.iterdir()] == ["directory"], seconds=10)


def test_files_that_others_remove_are_stale(mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    one, two = mount(nfs_server.url(nfs_dir.name), "actimeo=0").point, mount(nfs_server.url(nfs_dir.name)).point
    (one / "file").write_bytes(b"x" * 10)
    with (one / "file").open("rb", buffering=0) as file:
        (two / "file").unlink()
        with pytest.raises(OSError) as caught:
            os.fstat(file.fileno())
        assert caught.value.errno == errno.ESTALE
