"""/run/fuseswap: names, counters, and the lock on them."""

import fcntl
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fuseswap.host import processes, rundir
from fuseswap.host.bounded import HostError, abandon, run
from fuseswap.host.loop import detach, loop_device
from fuseswap.swap.counters import COUNTERS_BYTES, Counters, Level, Word
from fuseswap.swap.target import Activation, MemoryTarget, activation_to_json


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory of this test's own."""
    directory = tmp_path / "run"
    monkeypatch.setattr(rundir, "RUN_DIRECTORY", str(directory))
    return directory


@pytest.mark.parametrize("name", ["a", "swap0", "host-1.example_2", "A+b", "x" * 64])
def test_names(name: str) -> None:
    assert rundir.is_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".lock", "a/b", "a b", "ä", "-f", "x" * 65, "a\n"])
def test_no_names(name: str) -> None:
    assert not rundir.is_name(name)


def test_counters(run_directory: Path) -> None:
    assert rundir.names() == ()
    assert rundir.read_counters("file") is None
    (run_directory / "file").mkdir(parents=True)
    assert rundir.names() == ("file",)
    assert rundir.read_counters("file") is None
    path = run_directory / "file" / "counters"
    path.write_bytes(b"short")
    assert rundir.read_counters("file") is None
    path.write_bytes(bytes(COUNTERS_BYTES))
    assert rundir.read_counters("file") is None, "an engine has yet to write it"
    activation = Activation("nfs://host/export/file", 1 << 20, MemoryTarget())
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), COUNTERS_BYTES) as mapping:
        counters = Counters(mapping)
        import json

        counters.initialize({"name": "file", "activation": json.loads(activation_to_json(activation))})
        counters.words[Word.WRITES] = 7
        counters.log(Level.NOTICE, 1, "hello")
        counters.close()
    snapshot = rundir.read_counters("file")
    assert snapshot is not None
    assert snapshot.activation == activation
    assert snapshot.words["writes"] == 7
    assert [record.text for record in snapshot.log] == ["hello"]


ELSEWHERE = """
import sys
from fuseswap.host import rundir
rundir.RUN_DIRECTORY = sys.argv[1]
print(rundir.attach_engine("file").path, flush=True)
input()
print(rundir.engine_device("file").path)
"""


def mount_engine(directory: Path) -> str:
    """What stands for the engine's mount below a run directory in the making: a bind mount with one file."""
    point = directory / "file" / "swap"
    point.mkdir(parents=True)
    served = directory.with_name(f"{directory.name}-served")
    served.mkdir()
    (served / "file").write_bytes(bytes(1 << 20))
    return f"mount --bind {served} {point}"


@contextmanager
def engine_elsewhere(directory: Path) -> Iterator["subprocess.Popen[str]"]:
    """An engine of the same name, with the same paths, in a mount namespace that has another run directory."""
    other = directory.with_name("elsewhere")
    script = f'{mount_engine(other)} && mount --rbind {other} {directory} && exec "$@"'
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", ELSEWHERE, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        abandon(process)


@pytest.mark.parametrize("lazily", [False, True], ids=["mounted", "unmounted lazily"])
@pytest.mark.parametrize("first", ["here", "elsewhere"])
def test_an_engine_of_another_mount_namespace(run_directory: Path, first: str, lazily: bool) -> None:
    """Its loop device has the same backing file, as text: nobody may take the one for the other."""
    with ExitStack() as stack:
        run(mount_engine(run_directory).split())
        stack.callback(lambda: lazily or run(["umount", str(rundir.engine_mountpoint("file"))]))
        assert rundir.engine_device("file") is None

        def attach_here() -> str:
            device = rundir.attach_engine("file").path
            stack.callback(detach, device)
            return device

        here = attach_here() if first == "here" else ""
        process = stack.enter_context(engine_elsewhere(run_directory))
        assert process.stdout is not None
        elsewhere = process.stdout.readline().strip()
        stack.callback(detach, elsewhere)
        here = here or attach_here()
        if lazily:
            run(["umount", "-l", str(rundir.engine_mountpoint("file"))])
        found = rundir.engine_device("file")
        assert found is not None
        assert found.path == here
        assert process.communicate("\n", timeout=20)[0].strip() == elsewhere

        # The other's namespace has gone, and with it what its path began with.
        names = {device: (loop_device(device) or found).backing_file for device in (here, elsewhere)}
        assert names[elsewhere] == "/file"
        assert names[here] == ("/file" if lazily else str(rundir.engine_file("file")))
        assert rundir.engine_device("file") == loop_device(here)


def test_the_lock_waits_and_leaves_nothing(run_directory: Path) -> None:
    order: list[str] = []
    held = threading.Event()

    def other() -> None:
        with rundir.lock(5, lambda: order.append("waits")):
            order.append("second")

    with rundir.lock(5, lambda: order.append("waits")):
        thread = threading.Thread(target=other)
        thread.start()
        deadline = time.monotonic() + 5
        while "waits" not in order and time.monotonic() < deadline:
            held.wait(0.01)
        order.append("first")
    thread.join(5)
    assert order == ["waits", "first", "second"]
    assert not run_directory.exists()


def test_the_lock_has_a_limit() -> None:
    with (
        rundir.lock(5, lambda: None),
        pytest.raises(HostError, match="another fuseswap command is still at work"),
        rundir.lock(0.2, lambda: None),
    ):
        pytest.fail("two hold it")


def test_only_root_can_hold_the_lock(run_directory: Path) -> None:
    """Anybody can open, and so lock, the directory, but not the file."""
    run_directory.mkdir(mode=0o755)
    descriptor = os.open(run_directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with rundir.lock(0.2, lambda: pytest.fail("waits for somebody else")):
            pass
    finally:
        os.close(descriptor)
    assert Path(f"{run_directory}.lock").stat().st_mode & 0o777 == 0o600


def test_the_lock_keeps_what_is_there(run_directory: Path) -> None:
    with rundir.lock(5, lambda: None):
        (run_directory / "file").mkdir()
    assert rundir.names() == ("file",)


def test_processes_are_known_by_number_and_title() -> None:
    title = processes.comm(os.getpid())
    assert processes.is_running(os.getpid(), title)
    assert os.getpid() in processes.named(title)
    assert not processes.is_running(os.getpid(), "something else")
    assert not processes.is_running(0, title)
    assert not processes.is_running(1 << 22, title)
    assert not processes.is_running(1 << 62, title)


def test_a_number_that_was_given_again() -> None:
    ticks = processes.start_ticks(os.getpid())
    title = processes.comm(os.getpid())
    assert processes.start_ticks(1) < ticks
    assert processes.start_ticks(0) == -1
    assert processes.runs(processes.find(os.getpid(), title, lambda found: found == ticks))
    assert not processes.runs(processes.find(os.getpid(), title, lambda found: found == ticks + 1))
