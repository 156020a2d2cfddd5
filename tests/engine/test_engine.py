"""Supervisor and engine as they are: real mounts, loop devices, nfs-ganesha, and what happens to them."""

import ctypes
import errno
import mmap
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from fuseswap.engine import sysctls
from fuseswap.engine.launch import EngineError, launch
from fuseswap.host.bounded import HostError, run
from fuseswap.host.ganesha import Export, GaneshaServer
from fuseswap.swap.counters import State, Word
from fuseswap.swap.target import Activation, Address, MemoryTarget, NfsTarget
from fuseswap.swap.units import RUN_DIRECTORY
from tests.engine.running import (
    FIO_SECONDS,
    VERIFY,
    Running,
    fio,
    fio_command,
    fio_result,
    in_background,
    is_running,
    nfs_target,
    reserve_used_up,
    running,
    through,
    with_small_reserve,
)
from tests.kit.proxy import READ, WRITE, Cut, Proxy, Record, Send, frame, shuffle
from tests.kit.wait import wait_until

MIB = 1 << 20
PAGE = 4096
SIZE = 64 * MIB
LIBC = ctypes.CDLL(None, use_errno=True)
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2


@pytest.fixture
def memory() -> Iterator[Running]:
    with running(MemoryTarget(delay_us=200), SIZE) as here:
        yield here


@pytest.fixture
def nfs(nfs_server: GaneshaServer, nfs_dir: Path) -> Iterator[Running]:
    with running(nfs_target(nfs_server, f"{nfs_dir.name}/swapfile", SIZE), SIZE) as here:
        yield here


# --- pages ---


@pytest.mark.parametrize("kind", ["memory", "nfs"])
def test_fio_finds_every_page_as_it_was_written(kind: str, request: pytest.FixtureRequest) -> None:
    here: Running = request.getfixturevalue(kind)
    device = here.attach()
    job = fio(device, SIZE, *VERIFY)

    assert job["write"]["io_bytes"] == job["read"]["io_bytes"] == SIZE
    words = here.counters.snapshot()
    assert (words["write_errors"], words["read_errors"], words["refused"]) == (0, 0, 0)
    assert words["write_bytes"] >= SIZE
    assert words["requests_high"] > 4
    here.detach()
    wait_until(lambda: here.words[Word.RESERVE_PAGES_USED] == 0, seconds=5)
    assert here.words[Word.REQUESTS] == 0


def test_what_the_engine_wrote_is_in_the_server_s_file(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    rng = random.Random(1)
    target = nfs_target(nfs_server, f"{nfs_dir.name}/swapfile", SIZE)
    witness = (nfs_dir / "swapfile").open("rb")
    with witness, running(target, SIZE) as here:
        before = os.pread(witness.fileno(), SIZE, 0)
        descriptor = os.open(here.attach(), os.O_RDWR)
        data = rng.randbytes(3 * MIB)
        os.pwrite(descriptor, data, 5 * MIB)
        os.fsync(descriptor)
        os.close(descriptor)
        assert os.pread(witness.fileno(), SIZE, 0) == before[: 5 * MIB] + data + before[8 * MIB :]
        here.detach()


@pytest.mark.parametrize("transfer_bytes", [4096, 8192, 32768])
def test_a_server_with_small_transfers(make_nfs_server: Callable[..., GaneshaServer], transfer_bytes: int) -> None:
    server = make_nfs_server(Export("swap", transfer_bytes_max=transfer_bytes))
    target = nfs_target(server, "swapfile", 16 * MIB)
    assert (target.read_bytes_max, target.write_bytes_max) == (transfer_bytes, transfer_bytes)
    with running(target, 16 * MIB) as here:
        fio(here.attach(), 16 * MIB, *VERIFY)
        words = here.counters.snapshot()
        assert words["write_bytes"] / words["write_calls"] <= transfer_bytes
        assert words["write_calls"] >= 16 * MIB // transfer_bytes


def test_replies_out_of_order(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    target = nfs_target(nfs_server, f"{nfs_dir.name}/swapfile", 16 * MIB)
    with Proxy(nfs_server.nfs_port, seed=3) as proxy:
        proxy.on_reply = shuffle(0.01)
        with running(through(target, proxy.port), 16 * MIB) as here:
            fio(here.attach(), 16 * MIB, *VERIFY)
            assert proxy.connections == 1
            assert here.words[Word.UNKNOWN_REPLIES] == 0


# --- the private file's contract ---


def failure(call: Callable[[], object]) -> int:
    """errno of the OSError that `call` must raise."""
    with pytest.raises(OSError) as error:
        call()
    assert error.value.errno is not None
    return error.value.errno


def test_one_may_write(memory: Running) -> None:
    first = os.open(memory.path, os.O_RDWR | os.O_DIRECT)
    for flags in (os.O_RDWR | os.O_DIRECT, os.O_WRONLY | os.O_DIRECT, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        assert failure(lambda flags=flags: os.open(memory.path, flags)) == errno.ETXTBSY  # type: ignore[misc]
    os.close(os.open(memory.path, os.O_RDONLY))
    os.close(first)
    # RELEASE is sent behind close.
    wait_until(lambda: can_open(memory.path, os.O_RDWR | os.O_DIRECT), seconds=5)
    assert failure(lambda: os.open(memory.path, os.O_RDWR)) == errno.EINVAL


def can_open(path: Path, flags: int) -> bool:
    try:
        os.close(os.open(path, flags))
    except OSError:
        return False
    return True


def test_the_loop_device_is_the_writer(memory: Running) -> None:
    memory.attach()

    assert failure(lambda: os.open(memory.path, os.O_RDWR | os.O_DIRECT)) == errno.ETXTBSY
    with pytest.raises(HostError, match="busy"):
        memory.unmount()


def test_root_may_read_whole_pages(memory: Running) -> None:
    device = os.open(memory.attach(), os.O_RDWR)
    data = os.urandom(2 * PAGE)
    os.pwrite(device, data, 7 * PAGE)
    os.fsync(device)
    os.close(device)
    file = os.open(memory.path, os.O_RDONLY)
    try:
        assert os.pread(file, 2 * PAGE, 7 * PAGE) == data
        assert failure(lambda: os.pread(file, 100, 0)) == errno.EINVAL
        assert failure(lambda: os.pread(file, PAGE, 1)) == errno.EINVAL
    finally:
        os.close(file)


def test_nobody_discards_or_preallocates(memory: Running) -> None:
    device = os.open(memory.attach(), os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, PAGE)
    page.write(b"x" * PAGE)
    os.pwrite(device, page, 3 * PAGE)
    # The block layer says that it is done (blkdev_issue_discard hides EOPNOTSUPP), but nothing has happened.
    run(["blkdiscard", memory.device])
    with pytest.raises(HostError):
        run(["fallocate", "--punch-hole", "--offset", "0", "--length", "65536", memory.device])
    assert os.preadv(device, [page], 3 * PAGE) == PAGE
    assert page[:] == b"x" * PAGE
    assert memory.words[Word.WRITES] == 1
    os.close(device)
    memory.detach()
    file = os.open(memory.path, os.O_RDWR | os.O_DIRECT)
    try:
        # The system call itself: the C library's posix_fallocate would write instead.
        for mode in (0, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE):
            assert LIBC.fallocate(file, mode, ctypes.c_long(0), ctypes.c_long(PAGE)) == -1
            assert ctypes.get_errno() == errno.EOPNOTSUPP
    finally:
        os.close(file)


def test_zeros_are_written_as_pages(memory: Running) -> None:
    """The kernel tries REQ_OP_WRITE_ZEROES, is refused, and falls back."""
    with Path(memory.attach()).open("r+b", buffering=0) as device:
        device.write(b"x" * MIB)
        os.fsync(device)
        run(["blkdiscard", "--zeroout", "--length", str(MIB // 2), memory.device])
        assert os.pread(device.fileno(), MIB, 0) == bytes(MIB // 2) + b"x" * (MIB // 2)
    assert memory.words[Word.WRITE_BYTES] == MIB + MIB // 2


def test_the_file_stays_as_it_is(memory: Running) -> None:
    path = memory.path
    other = path.parent / "other"

    assert failure(lambda: os.truncate(path, 0)) == errno.ETXTBSY
    for change in (
        lambda: path.unlink(),
        lambda: path.chmod(0o644),
        lambda: os.chown(path, 1, 1),
        lambda: path.rename(other),
        lambda: other.hardlink_to(path),
        lambda: other.symlink_to(path),
        lambda: other.mkdir(),
        lambda: other.touch(),
        lambda: os.mkfifo(other),
    ):
        assert failure(change) == errno.EPERM
    assert failure(lambda: os.setxattr(path, "user.a", b"b")) == errno.EOPNOTSUPP
    assert failure(lambda: os.utime(path)) == errno.EPERM
    facts = path.stat()
    assert (facts.st_mode, facts.st_size, facts.st_blocks, facts.st_nlink) == (0o100600, SIZE, SIZE // 512, 1)
    assert [entry.name for entry in path.parent.iterdir()] == [memory.name]
    assert not other.exists()
    assert os.statvfs(path).f_bavail == 0


def test_its_directory_is_root_s_alone(memory: Running) -> None:
    assert memory.path.parent.stat().st_mode & 0o777 == 0o700
    assert memory.directory.joinpath("counters").stat().st_mode & 0o007 == 0
    for pid, title in ((memory.engine_pid, "engine"), (memory.supervisor_pid, "supervisor")):
        assert Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode() == f"fuseswap-{title} {memory.name}"
        assert os.getsid(pid) != os.getsid(0)


def test_engine_and_supervisor_both_hold_the_sysctls(memory: Running) -> None:
    """Each would put them back for the other."""
    for pid in (memory.engine_pid, memory.supervisor_pid):
        held = [descriptor.readlink() for descriptor in Path(f"/proc/{pid}/fd").iterdir()]
        assert sysctls.LOCK in held
    assert all(setting.suits() for setting in sysctls.SETTINGS)


# --- the end ---


def test_umount_ends_engine_and_supervisor(memory: Running) -> None:
    memory.attach()
    memory.detach()
    memory.unmount()

    wait_until(memory.ended, seconds=5)
    assert memory.words[Word.STATE] == State.STOPPED
    assert memory.log() == []


def test_a_killed_engine_is_told_of_and_can_be_cleaned_up(memory: Running) -> None:
    device = memory.attach()
    supervisor = memory.supervisor_pid
    os.kill(memory.engine_pid, signal.SIGKILL)

    wait_until(lambda: not is_running(supervisor), seconds=5)
    (line,) = memory.log()
    assert line.startswith(f"the engine was killed by signal 9; the pages swapped to {memory.name} are lost")
    assert f"fuseswap down {memory.name} --force" in line
    with pytest.raises(HostError):
        run(["dd", f"if={device}", "of=/dev/null", "bs=4096", "count=1", "iflag=direct"])
    memory.detach()
    memory.unmount()
    assert not memory.is_mounted()


def test_without_its_supervisor_the_engine_serves_on(memory: Running) -> None:
    os.kill(memory.supervisor_pid, signal.SIGKILL)
    wait_until(lambda: not is_running(memory.supervisor_pid), seconds=5)

    fio(memory.attach(), 8 * MIB, *VERIFY)
    memory.detach()
    memory.unmount()
    wait_until(lambda: not is_running(memory.engine_pid), seconds=5)
    assert memory.words[Word.STATE] == State.STOPPED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_what_init_sends_to_all_ends_neither(memory: Running, number: int) -> None:
    for pid in (memory.engine_pid, memory.supervisor_pid):
        os.kill(pid, number)

    fio(memory.attach(), MIB, *VERIFY)
    assert is_running(memory.engine_pid)
    assert is_running(memory.supervisor_pid)


def test_the_supervisor_aborts_a_hang(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    """The server is gone for good, a write waits: SIGUSR1 fails it, and everything can go."""
    target = nfs_target(nfs_server, f"{nfs_dir.name}/swapfile", MIB)
    with Proxy(nfs_server.nfs_port) as proxy, running(through(target, proxy.port), MIB) as here:
        device = here.attach()
        supervisor = here.supervisor_pid
        proxy.refuse()
        command = ["dd", "if=/dev/zero", f"of={device}", "bs=4096", "count=1", "oflag=direct"]
        with in_background(command) as writer:
            wait_until(lambda: here.words[Word.REQUESTS], seconds=5)
            assert writer.poll() is None
            os.kill(supervisor, signal.SIGUSR1)
            assert writer.wait(5) != 0
        wait_until(here.ended, seconds=5)
        assert here.words[Word.STATE] == State.STOPPED
        assert any("aborted; the pages" in record.text for record in here.counters.log_since(0))
        here.detach()
        here.unmount()


def test_an_abort_is_heard_while_the_reserve_is_used_up(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    with with_small_reserve(nfs_server, f"{nfs_dir.name}/swapfile", SIZE) as (here, proxy):
        with reserve_used_up(here, proxy, SIZE) as writer:
            os.kill(here.supervisor_pid, signal.SIGUSR1)
            assert writer.wait(10) != 0
        wait_until(here.ended, seconds=5)
        here.detach()
        here.unmount()


# --- a start that fails leaves nothing ---


@pytest.fixture
def unused_name() -> Iterator[str]:
    name = f"test-unused-{os.getpid()}"
    yield name
    assert not Path(RUN_DIRECTORY, name).exists()


def refusal(name: str, target: NfsTarget | MemoryTarget, **options: int) -> str:
    with pytest.raises(EngineError) as error:
        launch(name, Activation("test", MIB, target), **options)
    text = str(error.value)
    assert text
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def test_a_server_that_cannot_write_refuses_at_once(nfs_server: GaneshaServer, nfs_dir: Path, unused_name: str) -> None:
    target = nfs_target(nfs_server, f"{nfs_dir.name}/swapfile", MIB)
    with Proxy(nfs_server.nfs_port) as proxy:
        proxy.on_reply = lambda record, _: [Send(frame(io_error(record) if record.procedure == WRITE else record.data))]

        assert refusal(unused_name, through(target, proxy.port)) == (
            "the server did not write the header page (WRITE of 4096 bytes at 0: NFS3ERR_IO)"
        )


def io_error(record: Record) -> bytes:
    """The WRITE reply with NFS3ERR_IO and no attributes instead of its results."""
    return record.data[:24] + b"\0\0\0\5" + bytes(8)


@pytest.mark.torture
def test_a_server_that_is_not_there(unused_name: str) -> None:
    target = NfsTarget((Address("127.0.0.1", 1),), b"handle", 0, 0, "tester", MIB, MIB)

    assert "Connection refused" in refusal(unused_name, target)


@pytest.mark.parametrize("options", [{"reserve_bytes": 4096}, {"reserve_bytes": 3 * PAGE}])
def test_a_reserve_too_small(unused_name: str, options: dict[str, int]) -> None:
    assert "does not hold a page" in refusal(unused_name, MemoryTarget(), **options)


# --- a lost server is a wait ---


def test_a_server_killed_and_restarted_three_times_under_load(fresh_nfs_server: GaneshaServer) -> None:
    size = 192 * MIB
    server = fresh_nfs_server
    with running(nfs_target(server, "swapfile", size), size) as here:
        command = fio_command(here.attach(), size, *VERIFY, "--rate=60m")
        with in_background(command) as load:
            for word, done in (
                (Word.WRITE_BYTES, 40 * MIB),
                (Word.WRITE_BYTES, 110 * MIB),
                (Word.READ_BYTES, 60 * MIB),
            ):
                wait_until(lambda word=word, done=done: here.words[word] > done, seconds=60)  # type: ignore[misc]
                server.kill()
                wait_until(lambda: not here.words[Word.CONNECTED], seconds=10)
                assert load.poll() is None
                server.start()
                wait_until(lambda: here.words[Word.CONNECTED], seconds=10)
            output, errors = load.communicate(timeout=FIO_SECONDS)
        assert load.returncode == 0, errors
        fio_result(output)
        words = here.counters.snapshot()
        assert words["reconnects"] >= 3
        assert (words["write_errors"], words["read_errors"], words["server_errors"]) == (0, 0, 0)
        assert sum(text.startswith("lost the server") for text in here.log()) == 3
        here.detach()


def cutting(procedure: int, every: int) -> Callable[[Record, random.Random], Iterable[Send | Cut]]:
    """Each so-manyth reply of this kind ends in the middle, and with it the connection."""
    seen = 0

    def rule(record: Record, rng: random.Random) -> Iterable[Send | Cut]:
        nonlocal seen
        stream = record.framed()
        seen += record.procedure == procedure
        if record.procedure == procedure and seen % every == 0:
            return [Cut(stream[: rng.randrange(1, len(stream))])]
        return [Send(stream)]

    return rule


@pytest.mark.parametrize("procedure", [READ, WRITE], ids=["read", "write"])
def test_replies_cut_in_the_middle_of_a_record(nfs_server: GaneshaServer, nfs_dir: Path, procedure: int) -> None:
    target = nfs_target(nfs_server, f"{nfs_dir.name}/swapfile", SIZE)
    with Proxy(nfs_server.nfs_port, seed=procedure) as proxy, running(through(target, proxy.port), SIZE) as here:
        proxy.on_reply = cutting(procedure, 20)
        fio(here.attach(), SIZE, *VERIFY)
        words = here.counters.snapshot()
        assert words["reconnects"] >= 3
        assert words["reconnects"] == proxy.connections - 1
        assert (words["write_errors"], words["read_errors"], words["bad_records"]) == (0, 0, 0)
        here.detach()


def test_calls_cut_in_the_middle_of_a_record(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    target = nfs_target(nfs_server, f"{nfs_dir.name}/swapfile", SIZE)
    with Proxy(nfs_server.nfs_port, seed=5) as proxy, running(through(target, proxy.port), SIZE) as here:
        proxy.on_call = cutting(WRITE, 30)
        fio(here.attach(), SIZE, *VERIFY)
        assert here.words[Word.RECONNECTS] >= 2
        here.detach()
