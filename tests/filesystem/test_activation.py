"""swap_activate and swap_deactivate through the mount, and the guard in between."""

import errno
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuseswap.host.ganesha import Export, GaneshaServer
from fuseswap.swap.header import Mark, SwapHeader, clear_mark, format_header, put_mark, read_mark
from fuseswap.swap.target import activation_from_json
from fuseswap.swap.units import PAGE_SIZE, RUN_DIRECTORY, XATTR_ACTIVATE, XATTR_ACTIVATION
from tests.engine.running import nfs_target, running
from tests.filesystem.conftest import Mount
from tests.filesystem.swapfile import (
    BOOT,
    ELSEWHERE,
    HERE,
    PAGES,
    activate,
    activation,
    check,
    deactivate,
    write_counters,
    write_swap_file,
)
from tests.kit.proxy import WRITE, Cut, Proxy, Record, Send, forward
from tests.kit.wait import wait_until

MIB = 1 << 20


def fails(number: int) -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, match=os.strerror(number))


@pytest.fixture
def file(nfs: Path) -> Path:
    """An ordinary file that could be swap."""
    write_swap_file(nfs / "swapfile")
    return nfs / "swapfile"


@pytest.fixture
def active(file: Path) -> Path:
    activate(file)
    return file


# --- activation ---


def test_activation_tells_where_the_pages_are(file: Path, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    with fails(errno.ENODATA):
        activation(file)
    activate(file)
    found = activation_from_json(os.getxattr(file, XATTR_ACTIVATION))
    assert found.size_bytes == PAGES * PAGE_SIZE
    assert found.source == nfs_server.url(f"{nfs_dir.name}/swapfile")
    target = activation(file)["target"]
    assert target["addresses"] == [{"host": "127.0.0.1", "port": nfs_server.nfs_port}]
    assert (target["uid"], target["gid"], target["machine_name"]) == (0, 0, os.uname().nodename)
    assert min(target["read_bytes_max"], target["write_bytes_max"]) >= PAGE_SIZE


def test_an_activation_takes_no_error_from_an_open_file(mount: Mount) -> None:
    point = mount("mem:2M").point
    write_swap_file(point / "file")
    with fails(errno.ENOSPC):
        (point / "full").write_bytes(bytes(4 << 20))
    with (point / "file").open("r+b", buffering=0) as stream:
        os.pwrite(stream.fileno(), bytes(65536), PAGES * PAGE_SIZE)
        with fails(errno.ENOSPC):
            activate(point / "file")
        with fails(errno.ENOSPC):
            os.fsync(stream.fileno())
        with fails(errno.EINVAL):  # memory has no swap_rw
            activate(point / "file")


def test_the_mark_comes_and_goes(file: Path, nfs_dir: Path) -> None:
    behind = nfs_dir / "swapfile"
    content = behind.read_bytes()
    activate(file)
    marked = behind.read_bytes()
    mark = read_mark(marked[:PAGE_SIZE])
    assert mark is not None
    assert (mark.machine_id, mark.boot_id, mark.host) == (HERE, BOOT, os.uname().nodename)
    assert marked[1024:] == content[1024:]
    deactivate(file)
    assert behind.read_bytes() == content
    with fails(errno.ENODATA):
        activation(file)
    with fails(errno.EINVAL):
        deactivate(file)


def test_activation_by_descriptor_and_below_directories(nfs: Path) -> None:
    (nfs / "a").mkdir()
    (nfs / "a/b c").mkdir()
    write_swap_file(nfs / "a/b c/file")
    (nfs / "a").rename(nfs / "x")
    with (nfs / "x/b c/file").open("rb") as file:
        activate(file.fileno())
        assert "/x/b%20c/file?" in activation(file.fileno())["source"]
        deactivate(file.fileno())


def test_what_was_written_before_is_there_first(nfs: Path, nfs_dir: Path) -> None:
    content = write_swap_file(nfs / "f")
    with (nfs / "f").open("r+b") as file:
        file.seek(2 * PAGE_SIZE)
        file.write(b"late")
        file.flush()
        activate(file.fileno())
    assert (nfs_dir / "f").read_bytes()[2 * PAGE_SIZE :][:4] == b"late"
    assert (nfs_dir / "f").read_bytes()[3 * PAGE_SIZE :] == content[3 * PAGE_SIZE :]


@pytest.mark.parametrize(
    ("make", "number", "step"),
    [
        (lambda path: path.write_bytes(b""), errno.EINVAL, "signature"),
        (lambda path: path.write_bytes(bytes(8 * PAGE_SIZE)), errno.EINVAL, "signature"),
        (lambda path: os.truncate(path, 5 * PAGE_SIZE), errno.EINVAL, "shorter"),
        (lambda path: os.truncate(path, 64 * PAGE_SIZE), errno.EINVAL, "allocated"),
        (lambda path: _write(path, os.O_APPEND), errno.EINVAL, "whole-pages"),
        (lambda path: _replace(path, os.mkdir), errno.EISDIR, "directory"),
        (lambda path: _replace(path, os.mkfifo), errno.EINVAL, "regular"),
    ],
    ids=["empty", "no header", "cut", "holes", "tail", "directory", "fifo"],
)
def test_files_that_cannot_be_swap(file: Path, make: Callable[[Path], object], number: int, step: str) -> None:
    make(file)
    report = check(file)
    assert report["verdict"] == errno.errorcode[number]
    assert [result["step"] for result in report["checks"] if result["outcome"] == "failed"] == [step]
    with fails(number):
        activate(file)
    with fails(errno.ENODATA):
        activation(file)
    if file.is_file():
        file.write_bytes(b"still an ordinary file")


def test_check_says_ok_and_changes_nothing(file: Path) -> None:
    content = file.read_bytes()
    report = check(file)
    assert (report["verdict"], report["error"]) == ("ok", None)
    assert report["activation"]["pages"] == PAGES - 1
    assert file.read_bytes() == content


def test_once_only_by_any_name(active: Path) -> None:
    other = active.with_name("other")
    os.link(active, other)
    for path in (active, other):
        with fails(errno.EBUSY):
            activate(path)
        assert check(path)["verdict"] == "EBUSY"
    assert activation(other) == activation(active)
    deactivate(other)
    activate(active)


def test_another_machine_is_refused_unless_it_steals(mount: Mount, active: Path, nfs_server: GaneshaServer) -> None:
    second = mount(nfs_server.url(_directory_of(active))).point
    with fails(errno.EBUSY):
        activate(second / "swapfile", ELSEWHERE)
    activate(second / "swapfile", HERE)  # the same machine, started again
    deactivate(second / "swapfile")
    activate(second / "swapfile", ELSEWHERE, steal=True)
    # The first owner's deactivation leaves the new owner's mark alone.
    deactivate(active)
    assert check(active)["mark"]["machine_id"] == ELSEWHERE


def test_two_machines_at_the_same_moment(mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    """Both read a header without a mark. The mark of one is late on its way, and lands on the other's."""
    behind = nfs_dir / "swapfile"
    write_swap_file(behind)
    on_its_way = threading.Event()

    def lose(record: Record, _: random.Random) -> Iterable[Send | Cut]:
        if record.procedure != WRITE:
            return [Send(record.framed())]
        on_its_way.set()
        return []

    url = nfs_server.url(nfs_dir.name)
    with Proxy(nfs_server.nfs_port) as proxy, ThreadPoolExecutor() as threads:
        proxy.on_call = lose
        here = mount(url).point / "swapfile"
        there = mount(url.replace(f"nfsport={nfs_server.nfs_port}", f"nfsport={proxy.port}")).point / "swapfile"
        later = threads.submit(activate, there, ELSEWHERE)
        assert on_its_way.wait(10)
        earlier = threads.submit(activate, here, HERE)
        wait_until(lambda: read_mark(behind.read_bytes()[:PAGE_SIZE]), seconds=20, what="the first mark")
        # What was sent and not answered is sent again.
        proxy.on_call = forward
        proxy.cut()
        with fails(errno.EBUSY):
            earlier.result(20)
        later.result(20)
        assert check(here)["mark"]["machine_id"] == ELSEWHERE
        deactivate(there)


def _replace(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def _write(path: Path, flags: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | flags)
    try:
        os.write(fd, b"x")
    finally:
        os.close(fd)


def _directory_of(path: Path) -> str:
    source = activation(path)["source"]
    return str(source.split("?")[0].split("/")[4])


@pytest.mark.parametrize("value", [b"", b"x", b"[]", b"{}", b'{"machine_id": 1, "boot_id": "x"}', b"\xff" * 100])
def test_requests_that_are_none(file: Path, value: bytes) -> None:
    with fails(errno.EINVAL):
        os.setxattr(file, XATTR_ACTIVATE, value)


def test_memory_has_no_swap_rw(mount: Mount) -> None:
    path = mount("mem:16M").point / "file"
    write_swap_file(path)
    with fails(errno.EINVAL):
        activate(path)
    assert [result["step"] for result in check(path)["checks"] if result["outcome"] == "failed"] == ["swap-rw"]


def test_a_read_only_export(mount: Mount, make_nfs_server: Callable[..., GaneshaServer]) -> None:
    server = make_nfs_server(Export("ro", read_only=True))
    write_swap_file(server.export_dir / "file")
    path = mount(server.url()).point / "file"
    with fails(errno.EROFS):
        activate(path)
    with fails(errno.EROFS):
        path.with_name("new").touch()


# --- the guard ---


def test_an_active_file_is_guarded(active: Path) -> None:
    neighbour, directory = active.with_name("neighbour"), active.with_name("directory")
    neighbour.write_text("neighbour")
    directory.mkdir()
    content = active.read_bytes()
    for write in (
        lambda: _write(active),
        lambda: _write(active, os.O_APPEND),
        lambda: _write(active, os.O_SYNC),
        lambda: active.write_bytes(b"x"),
        lambda: os.truncate(active, PAGES * PAGE_SIZE),
        lambda: os.truncate(active, PAGE_SIZE),
        lambda: os.truncate(active, 1 << 30),
    ):
        with fails(errno.ETXTBSY):
            write()
    for remove in (
        lambda: active.unlink(),
        lambda: active.rename(active.with_name("moved")),
        lambda: active.rename(directory / "moved"),
        lambda: neighbour.rename(active),
    ):
        with fails(errno.EPERM):
            remove()
    assert active.read_bytes() == content
    os.link(active, directory / "link")
    with fails(errno.EPERM):
        (directory / "link").unlink()
    directory.rename(active.with_name("renamed"))
    neighbour.write_text("changed")
    deactivate(active)
    active.write_bytes(b"ordinary again")
    active.unlink()


def test_handles_from_before_gain_nothing(file: Path) -> None:
    with file.open("r+b", buffering=0) as old:
        activate(file)
        with fails(errno.ETXTBSY):
            old.write(b"x")
        with fails(errno.ETXTBSY):
            os.ftruncate(old.fileno(), 0)
        assert len(old.read()) == PAGES * PAGE_SIZE
        os.fsync(old.fileno())
        deactivate(file)
        old.seek(0)
        old.write(b"x")


def test_attributes_of_an_active_file_are_pinned(active: Path, nfs_dir: Path) -> None:
    active.chmod(0o640)
    os.chown(active, 5, 6)
    os.utime(active, ns=(10**18, 10**18 + 1))
    found = active.stat()
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o640, 5, 6)
    assert (found.st_atime_ns, found.st_mtime_ns) == (10**18, 10**18 + 1)
    behind = nfs_dir / active.name
    wait_until(lambda: behind.stat().st_mtime_ns == 10**18 + 1, seconds=10, what="the server's attributes")
    assert behind.stat().st_mode & 0o777 == 0o640
    os.truncate(behind, 10)  # another client
    wait_until(lambda: active.stat().st_size == PAGES * PAGE_SIZE, seconds=1)
    assert active.stat().st_size == PAGES * PAGE_SIZE


# --- without the server ---


def test_a_dead_server_delays_nothing_about_an_active_file(mount: Mount, fresh_nfs_server: GaneshaServer) -> None:
    mounted = mount(fresh_nfs_server.url())
    path = mounted.point / "swapfile"
    write_swap_file(path)
    activate(path)
    with path.open("r+b", buffering=0) as file:
        fresh_nfs_server.kill()
        for call in (
            lambda: os.fsync(file.fileno()),
            lambda: os.fchmod(file.fileno(), 0o600),
            lambda: os.fchown(file.fileno(), 0, 0),
            lambda: os.fstat(file.fileno()),
            lambda: os.utime(file.fileno(), (1, 1)),
        ):
            assert _seconds(call) < 0.5
        for refused in (lambda: file.write(b"x"), lambda: os.ftruncate(file.fileno(), 0)):

            def call(refused: Callable[[], object] = refused) -> None:
                with fails(errno.ETXTBSY):
                    refused()

            assert _seconds(call) < 0.5
        # The way by name stays open, though names and directories may have to be answered from memory.
        assert activation(path)["size_bytes"] == PAGES * PAGE_SIZE
    assert _seconds(lambda: deactivate(path)) < 6
    fresh_nfs_server.start()
    with fails(errno.ENODATA):
        activation(path)
    activate(path)
    assert mounted.stop() == 0


def _seconds(call: Callable[[], object]) -> float:
    begin = time.monotonic()
    call()
    return time.monotonic() - begin


# --- a process started again ---


def test_a_new_process_knows_the_files_of_running_engines(
    mount: Mount, active: Path, nfs_server: GaneshaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fuseswap.filesystem import adoption

    run_directory = tmp_path / "run"
    for name, pid in (("alive", os.getpid()), ("beginning", 0), ("dead", 1)):
        write_counters(run_directory / name / "counters", activation(active), pid)
    (run_directory / "odd").mkdir()
    (run_directory / "odd/counters").write_bytes(b"garbage")
    monkeypatch.setattr(adoption, "_is_engine", lambda pid, ticks: pid == os.getpid())
    found = [(engine.has_begun, engine.is_alive) for engine in adoption.engines(str(run_directory))]
    assert found == [(True, True), (False, False), (True, False)]


def test_engines_that_come_and_go_are_seen(tmp_path: Path) -> None:
    """At once, also when the directory changes several times within one tick of the clock that its time is of."""
    from fuseswap.filesystem.adoption import Watch

    run_directory = tmp_path / "run"
    watch = Watch(str(run_directory))
    assert watch.present() == ()
    for number in range(200):
        path = run_directory / str(number) / "counters"
        path.parent.mkdir(parents=True)
        assert watch.present() == ()
        path.touch()
        assert watch.present() == ((str(number), path.stat().st_ino),)
        path.unlink()
        assert watch.present() == ()
        path.parent.rmdir()
        if number % 2:
            run_directory.rmdir()
            assert watch.present() == ()


def test_a_file_that_becomes_swap_by_way_of_another_mount(nfs: Path, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    """Of the same machine: this mount knew it as an ordinary one, and had it open."""
    path = nfs / "file"
    target = nfs_target(nfs_server, f"{nfs_dir.name}/file", MIB)
    with path.open("r+b", buffering=0) as opened:
        opened.write(b"before")
        with running(target, MIB) as engine:
            for refused, number in (
                (lambda: opened.write(b"x"), errno.ETXTBSY),
                (lambda: opened.truncate(0), errno.ETXTBSY),
                (path.unlink, errno.EPERM),
                (lambda: path.rename(nfs / "other"), errno.EPERM),
            ):
                with fails(number):
                    refused()
            assert activation(path)["size_bytes"] == MIB
            engine.unmount()
            wait_until(engine.ended, seconds=10)
        opened.write(b"after")
        opened.truncate(0)
    path.unlink()


@contextmanager
def beginning_engine(plain: dict[str, object]) -> Iterator[None]:
    """The counters of one that does not run yet."""
    directory = Path(RUN_DIRECTORY, f"test-{uuid.uuid4().hex}")
    write_counters(directory / "counters", plain, 0)
    try:
        yield
    finally:
        (directory / "counters").unlink()
        directory.rmdir()


def test_what_was_written_before_lands_on_no_page(
    mount: Mount, active: Path, nfs_server: GaneshaServer, nfs_dir: Path
) -> None:
    """Small writes wait a little on this mount, which the activation on the other did not drain."""
    plain = activation(active)
    deactivate(active)
    other = mount(nfs_server.url(nfs_dir.name)).point / "swapfile"
    content = (nfs_dir / "swapfile").read_bytes()
    with other.open("r+b", buffering=0) as opened:
        os.pwrite(opened.fileno(), b"late", PAGE_SIZE)
        with beginning_engine(plain), fails(errno.ETXTBSY):
            os.fsync(opened.fileno())
    assert (nfs_dir / "swapfile").read_bytes() == content


def test_another_machines_mark_stays(mount: Mount, active: Path, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    """It has taken the file over before this mount came to know that it is active."""
    behind = nfs_dir / "swapfile"
    marked = put_mark(clear_mark(behind.read_bytes()[:PAGE_SIZE]), Mark(ELSEWHERE, BOOT))
    with behind.open("r+b") as stream:
        stream.write(marked)
    with beginning_engine(activation(active)):
        other = mount(nfs_server.url(nfs_dir.name)).point / "swapfile"
        deactivate(other)
    deactivate(active)
    assert behind.read_bytes()[:PAGE_SIZE] == marked


def test_a_file_that_is_swap_by_way_of_another_export(
    mount: Mount, make_nfs_server: Callable[..., GaneshaServer]
) -> None:
    """Its handle is another there."""
    server = make_nfs_server(Export("a"), Export("a/b"))
    whole, part = mount(server.url()).point, mount(server.url(export="a/b")).point
    header = format_header(SwapHeader(last_page=PAGES - 1, uuid=uuid.uuid4()))
    (whole / "b/file").write_bytes(header + os.urandom((PAGES - 1) * PAGE_SIZE))
    activate(whole / "b/file")
    found = activation_from_json(os.getxattr(whole / "b/file", XATTR_ACTIVATION))
    with running(found.target, found.size_bytes, identity=found.identity), fails(errno.EBUSY):
        activate(part / "file")
    deactivate(whole / "b/file")
    activate(part / "file")
    assert activation_from_json(os.getxattr(part / "file", XATTR_ACTIVATION)).target != found.target
