"""What every test may use: NFS servers, mount points, the swap lock; and the session: who runs what, its end, and the
check that nothing is left."""

import fcntl
import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
import pytest

import fuseswap
from fuseswap.host.ganesha import Export, GaneshaServer
from fuseswap.swap.units import RUN_DIRECTORY
from tests.kit import rescue
from tests.kit.compiled import not_compiled
from tests.kit.wait import wait_until

SWAP_LOCK = Path("/run/lock/fuseswap-swap.lock")

hypothesis.settings.register_profile(
    "fuseswap",
    deadline=None,
    max_examples=100,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("fuseswap")

_session_key = pytest.StashKey[str]()
_workers_key = pytest.StashKey[list[Any]]()
_before_key = pytest.StashKey[rescue.Leftovers]()
_report_key = pytest.StashKey[list[str]]()

WORKERS_END_SECONDS = 100.0
"""For what an interrupted worker has to take away: a little less than a test may take."""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _directory_on_disk() -> tempfile.TemporaryDirectory[str]:
    # /tmp may be a tmpfs, which has neither file handles for the NFS server nor extents for a loop device.
    return tempfile.TemporaryDirectory(prefix="fuseswap-test-", dir="/var/tmp")


# --- NFS servers ---


@pytest.fixture(scope="session")
def nfs_server() -> Iterator[GaneshaServer]:
    """An NFS server for all tests that do not harm it; use names of your own on it (`nfs_dir`)."""
    with _directory_on_disk() as directory, GaneshaServer(Path(directory)) as server:
        yield server


@pytest.fixture
def nfs_dir(nfs_server: GaneshaServer) -> Path:
    """A new directory on `nfs_server`; `nfs_server.url(f"{nfs_dir.name}/file")` names a file in it."""
    return Path(tempfile.mkdtemp(prefix="dir-", dir=nfs_server.export_dir))


@pytest.fixture
def make_nfs_server() -> Iterator[Callable[..., GaneshaServer]]:
    """Start servers of your own: `make_nfs_server(Export("ro", read_only=True))`."""
    with ExitStack() as stack:

        def make(*exports: Export) -> GaneshaServer:
            directory = Path(stack.enter_context(_directory_on_disk()))
            return stack.enter_context(GaneshaServer(directory, exports or (Export("swap"),)))

        yield make


@pytest.fixture
def fresh_nfs_server(make_nfs_server: Callable[..., GaneshaServer]) -> GaneshaServer:
    """An NFS server of your own, to be killed, stopped and started again."""
    return make_nfs_server()


# --- mounts and swap ---


@pytest.fixture
def disk_dir() -> Iterator[Path]:
    """A directory on a disk file system, freed of mounts, loop devices and swap at the end."""
    with _directory_on_disk() as directory:
        yield Path(directory)
        rescue.Leftovers.of(directory).free()


@pytest.fixture
def mount_point(disk_dir: Path) -> Path:
    """An empty directory to mount on. What is still mounted at the end is aborted and unmounted."""
    point = disk_dir / "mnt"
    point.mkdir()
    return point


@pytest.fixture
def swap_lock() -> None:
    """The machine's swap for this test alone; tests marked `swap` have it without asking.

    Swap is global: two test sessions that swap at once push each other's pages. The lock is taken around the
    whole test (see `pytest_runtest_protocol`), so that waiting for it does not count against the test's time.
    """


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with _locked(SWAP_LOCK) if _swaps(item) else ExitStack():
        return (yield)


def _swaps(item: pytest.Item) -> bool:
    return item.get_closest_marker("swap") is not None or "swap_lock" in getattr(item, "fixturenames", ())


# --- two workers ---
# `make test` runs two (pytest-xdist): each has a name of its own in the session's; the first process, the controller,
# looks after what they leave.


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What must not run beside one another comes first: the first worker has it all, and the other the later tests.

    Whoever is done takes half of what the other still has, from its end (`--dist worksteal`): what swaps comes last
    to that, and waits for the lock only where nothing else is left to run.
    """
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: (item.get_closest_marker("machine") is None, not _swaps(item)))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["session"] = f"{node.config.stash[_session_key]}/{node.gateway.id}"
    node.config.stash[_workers_key].append(node)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    with suppress(ValueError):
        node.config.stash[_workers_key].remove(node)


def _end_workers(workers: list[Any]) -> None:
    """Interrupt them, too, and wait for their fixtures' finalizers: execnet would kill them after 10 s."""

    def ended(worker: Any) -> bool:
        return hasattr(worker, "workeroutput") or not hasattr(worker, "workerinfo")

    for worker in workers:
        if not ended(worker):
            os.kill(worker.gateway._rinfo().pid, signal.SIGTERM)
    with suppress(AssertionError):
        wait_until(lambda: all(map(ended, workers)), seconds=WORKERS_END_SECONDS)


# --- nothing is left ---


def pytest_configure(config: pytest.Config) -> None:
    if reason := not_compiled(Path(fuseswap.__file__).parents[1]):
        pytest.exit(reason, returncode=2)
    # libnfs-python's SWIG wrapper imports `imp`; nothing here can change that.
    config.addinivalue_line("filterwarnings", "ignore:the imp module is deprecated:DeprecationWarning")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    worker = getattr(session.config, "workerinput", None)
    # A shell's background job ignores it, and so would all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _end_once(session, *([signal.SIGTERM] if worker is None else [signal.SIGTERM, signal.SIGINT]))
    key = uuid.uuid4().hex if worker is None else worker["session"]
    session.config.stash[_session_key] = os.environ[rescue.SESSION_VARIABLE] = key
    session.config.stash[_workers_key] = []
    session.config.stash[_before_key] = rescue.Leftovers.of(RUN_DIRECTORY)


def _end_once(session: pytest.Session, *numbers: signal.Signals) -> None:
    """The first of these signals ends the session as Ctrl-C does; those after it do not disturb the finalizers.

    A worker may hear of it twice: from whoever signals the whole process group, and from its controller.
    """

    def end(number: int, _: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, lambda *_: None)
        # Where a test takes the exception for its own, the session ends after that test.
        session.shouldstop = signal.Signals(number).name
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, end)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    _end_workers(session.config.stash[_workers_key])
    yield
    if hasattr(session.config, "workerinput"):
        return
    report = session.config.stash[_report_key] = []
    before = session.config.stash[_before_key]
    others = rescue.names_of_others(RUN_DIRECTORY, session.config.stash[_session_key])
    ours = [entry for entry in Path(RUN_DIRECTORY).glob("*") if entry.name not in others]
    if left := rescue.Leftovers.of(*ours).without(before):
        report.append(f"left in {RUN_DIRECTORY}: {left}")
        left.free()
    if processes := rescue.session_processes(session.config.stash[_session_key]):
        report.append(f"processes left: {[_command_line(pid) for pid in processes]}")
        rescue.end_processes(processes)
    if report:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(_report_key, []):
        terminalreporter.write_line(f"ERROR: {line}", red=True)


def _command_line(pid: int) -> str:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return str(pid)
    return f"{pid} {arguments.replace(bytes(1), b' ').decode(errors='replace')}"
