"""/run/fuseswap: names, counters, and the lock on them."""

import mmap
import os
import threading
import time
from pathlib import Path

import pytest

from fuseswap.host import processes, rundir
from fuseswap.host.bounded import HostError
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
