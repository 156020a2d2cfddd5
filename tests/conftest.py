"""What every test may use: NFS servers, mount points, the swap lock; and the check that nothing is left."""

import fcntl
import os
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import hypothesis
import pytest

import fuseswap
from fuseswap.host.ganesha import Export, GaneshaServer
from fuseswap.swap.units import RUN_DIRECTORY
from tests.kit import rescue
from tests.kit.compiled import not_compiled

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
_before_key = pytest.StashKey[rescue.Leftovers]()
_report_key = pytest.StashKey[list[str]]()


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
    alone = item.get_closest_marker("swap") or "swap_lock" in getattr(item, "fixturenames", ())
    with _locked(SWAP_LOCK) if alone else ExitStack():
        return (yield)


# --- nothing is left ---


def pytest_configure(config: pytest.Config) -> None:
    if reason := not_compiled(Path(fuseswap.__file__).parents[1]):
        pytest.exit(reason, returncode=2)
    # libnfs-python's SWIG wrapper imports `imp`; nothing here can change that.
    config.addinivalue_line("filterwarnings", "ignore:the imp module is deprecated:DeprecationWarning")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    # A shell's background job ignores it, and so would all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _end_once(session, signal.SIGTERM)
    key = uuid.uuid4().hex
    session.config.stash[_session_key] = os.environ[rescue.SESSION_VARIABLE] = key
    session.config.stash[_before_key] = rescue.Leftovers.of(RUN_DIRECTORY)


def _end_once(session: pytest.Session, *numbers: signal.Signals) -> None:
    """The first of these signals ends the session as Ctrl-C does; those after it do not disturb the finalizers."""

    def end(number: int, _: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, lambda *_: None)
        # Where a test takes the exception for its own, the session ends after that test.
        session.shouldstop = signal.Signals(number).name
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, end)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
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
