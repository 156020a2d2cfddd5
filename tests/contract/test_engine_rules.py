"""The engine's private file, really mounted, obeys ENGINE_RULES."""

import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fuseswap.engine import fuse_wire as wire
from fuseswap.engine.fuse_wire import FuseRequest, Opcode
from fuseswap.engine.launch import launch
from fuseswap.engine.private_file import PrivateFile
from fuseswap.host import rundir
from fuseswap.swap.rules import ENGINE_RULES, outcome_name
from fuseswap.swap.target import Activation, MemoryTarget
from fuseswap.swap.units import PAGE_SIZE
from tests.contract import syscalls
from tests.contract.operations import descriptor
from tests.kit.rescue import Leftovers, loop_devices
from tests.kit.wait import wait_until

SIZE_BYTES = 64 * PAGE_SIZE


@pytest.fixture
def private_file() -> Iterator[Path]:
    name = f"contract-{os.getpid()}"
    path = launch(name, Activation(f"mem:{name}", SIZE_BYTES, MemoryTarget()), reserve_bytes=1 << 20)
    directory = path.parent.parent
    try:
        yield path
        syscalls.unmount(path.parent)
        wait_until(lambda: not engine_runs(name), seconds=10, what="the end of the engine")
    finally:
        Leftovers.of(directory).free()
        rundir.remove_counters(name)
        shutil.rmtree(directory, ignore_errors=True)


def engine_runs(name: str) -> bool:
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if cmdline.read_bytes().startswith(f"fuseswap-engine {name}".encode()):
                return True
        except OSError:
            continue
    return False


def test_the_mounted_file(private_file: Path) -> None:
    path = private_file

    def with_handle(flags: int, use: Callable[[int], object]) -> Callable[[], None]:
        def attempt() -> None:
            with descriptor(path, flags) as fd:
                use(fd)

        return attempt

    direct = os.O_RDWR | os.O_DIRECT
    with ExitStack() as stack:
        page = stack.enter_context(mmap.mmap(-1, PAGE_SIZE))
        view = stack.enter_context(memoryview(page))
        first = stack.enter_context(descriptor(path, direct))
        reader = os.O_RDONLY | os.O_DIRECT
        attempts: dict[str, list[Callable[[], object]]] = {
            "OPEN for writing with O_DIRECT, the first": [lambda: None],
            "OPEN for writing, a second": [with_handle(direct, bool), with_handle(os.O_WRONLY | os.O_DIRECT, bool)],
            "OPEN with O_TRUNC": [with_handle(direct | os.O_TRUNC, bool)],
            "OPEN for reading": [with_handle(os.O_RDONLY, bool), with_handle(reader, bool)],
            "READ of whole pages": [
                lambda: os.preadv(first, [page], PAGE_SIZE),
                with_handle(reader, lambda fd: os.preadv(fd, [page], SIZE_BYTES - PAGE_SIZE)),
            ],
            "WRITE of whole pages by the write handle": [lambda: os.pwritev(first, [page], PAGE_SIZE)],
            "READ or WRITE of anything but whole pages": [
                lambda: os.preadv(first, [view[:512]], 0),
                lambda: os.preadv(first, [page], 512),
                lambda: os.pwritev(first, [view[:512]], 0),
                lambda: os.pwritev(first, [page], PAGE_SIZE + 512),
            ],
            "WRITE behind the end": [lambda: os.pwritev(first, [page], SIZE_BYTES)],
            "LOOKUP, GETATTR, OPENDIR, READDIR, STATFS": [
                path.stat,
                lambda: list(path.parent.iterdir()),
                lambda: os.statvfs(path),
            ],
            "FSYNC, FLUSH, RELEASE": [lambda: os.fsync(first), lambda: os.fdatasync(first)],
            "FALLOCATE": [
                lambda: syscalls.fallocate(first, 0, 0, PAGE_SIZE),
                lambda: syscalls.fallocate(first, syscalls.FALLOC_PUNCH_HOLE | syscalls.FALLOC_KEEP_SIZE, 0, PAGE_SIZE),
            ],
            "SETATTR of the size (truncate)": [
                lambda: os.truncate(path, 0),
                lambda: os.truncate(path, SIZE_BYTES + PAGE_SIZE),
                lambda: os.ftruncate(first, SIZE_BYTES),
            ],
            "SETATTR of anything else, and what makes or removes a name": [
                path.unlink,
                lambda: path.rename(path.with_name("other")),
                lambda: path.with_name("directory").mkdir(),
                lambda: path.with_name("link").hardlink_to(path),
                lambda: path.chmod(0o600),
                lambda: os.utime(path),
            ],
        }
        outcomes = {request: {outcome_of(attempt) for attempt in tried} for request, tried in attempts.items()}
    # With the first writer gone the next is granted, and one without O_DIRECT is told why it is not.
    request = "OPEN for writing without O_DIRECT"
    attempts[request] = [with_handle(os.O_RDWR, bool)]
    outcomes[request] = {outcome_of(attempts[request][0])}
    with descriptor(path, direct):
        pass

    table = {row.request: {row.outcome} for row in ENGINE_RULES}
    for request, got in outcomes.items():
        assert got == table[request], (request, [outcome_name(outcome) for outcome in got])
    # The kernel itself answers reads behind the end, and offers no write on a handle opened for reading.
    assert set(table) - set(outcomes) == {"READ behind the end", "WRITE by another handle", "everything else"}


def outcome_of(attempt: Callable[[], object]) -> int:
    try:
        attempt()
    except OSError as error:
        return error.errno or 0
    return 0


def test_opcodes_that_no_system_call_sends() -> None:
    """Every opcode there is or will be: one of the table's, or refused, without a change."""
    table = {row.request: row.outcome for row in ENGINE_RULES}
    known = {int(opcode) for opcode in Opcode}
    file = PrivateFile(b"name", SIZE_BYTES, 1 << 20)
    for opcode in set(range(1, 200)) - known:
        answer = file.answer(FuseRequest(opcode, 7, wire.FILE_NODE, bytes(128)))
        assert answer is not None
        assert struct.unpack_from("<IiQ", answer) == (16, -table["everything else"], 7)
    assert file.write_handle == 0


def test_a_second_loop_device(private_file: Path) -> None:
    """The kernel attaches as many loop devices to a file as one likes; here the second gets no write handle."""
    attach = ["losetup", "--find", "--show", "--direct-io=on", "--sector-size", str(PAGE_SIZE), str(private_file)]

    first = subprocess.run(attach, check=True, timeout=30, capture_output=True, text=True).stdout.strip()
    try:
        second = subprocess.run(attach, check=False, timeout=30, capture_output=True, text=True)
        assert second.returncode != 0
        assert "Text file busy" in second.stderr
        # The first goes on.
        with descriptor(Path(first), os.O_RDWR | os.O_DIRECT) as device, mmap.mmap(-1, PAGE_SIZE) as page:
            page[:] = os.urandom(PAGE_SIZE)
            written = page[:]
            os.pwritev(device, [page], PAGE_SIZE)
            assert os.preadv(device, [page], PAGE_SIZE) == PAGE_SIZE
            assert page[:] == written
    finally:
        subprocess.run(["losetup", "--detach", first], check=True, timeout=30)
        wait_until(lambda: str(private_file) not in loop_devices().values(), seconds=10, what=f"the end of {first}")
