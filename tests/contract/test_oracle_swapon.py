"""swap_activate against the running kernel's swapon: the same files, the same verdict, the same words.

hypothesis makes headers and files (odd sizes, holes, fragments); each is judged by `fuseswap check`, and by
swapon(2) on the machine's own ext4 and xfs, and through a loop device.
"""

import json
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from errno import EBUSY, EINVAL, EISDIR, ENOENT, ENXIO, EPERM, EROFS
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuseswap.cli.failure import Exit
from fuseswap.cli.local_facts import local_facts
from fuseswap.cli.main import main
from fuseswap.host.bounded import run
from fuseswap.swap.activation import DataRange, FileFacts
from fuseswap.swap.header import ByteOrder, SwapHeader, format_header
from fuseswap.swap.report import check_report
from fuseswap.swap.units import PAGE_SIZE
from tests.cli.command import fuseswap
from tests.contract import syscalls
from tests.contract.conftest import NativeFilesystem
from tests.contract.kernel_log import logged
from tests.contract.operations import descriptor
from tests.kit.rescue import loop_devices
from tests.kit.wait import wait_until
from tests.swap.test_header import raw_header

pytestmark = [pytest.mark.swap, pytest.mark.timeout(300)]
"""Each file is synced; a busy disk takes its time."""

KIB = 1024
FS_IMMUTABLE_FL = 0x10
FS_APPEND_FL = 0x20
ADDING = re.compile(r"Adding (\d+)k swap on (\S+)\.\s+Priority:-?\d+ extents:(\d+) across:(\d+)k")
REFUSALS = re.compile(
    r"Unable to find swap-space signature|Unable to handle swap header version|Empty swap-file|"
    r"Swap area shorter|swapon: |swap activate: |swapfile has holes"
)


@frozen
class Activated:
    """The kernel's own line about an area that it took."""

    pages: int
    extent_count: int
    span: int


@frozen
class Refused:
    errno: int
    text: str
    """What the kernel logged; empty where it refuses silently."""


def kernel_verdict(path: Path) -> Activated | Refused:
    """swapon(2), and swapoff(2) at once."""
    errno = 0
    with logged() as lines:
        try:
            syscalls.swapon(path)
        except OSError as error:
            errno = error.errno or 0
        else:
            syscalls.swapoff(path)
    if errno:
        return Refused(errno, next((line for line in lines if REFUSALS.search(line)), ""))
    matches = [match for line in lines if (match := ADDING.match(line)) and match[2] == str(path)]
    kib, _, extents, across = matches[0].groups()
    return Activated(int(kib) // 4, int(extents), int(across) // 4)


Report = dict[str, Any]


def said_by_check(path: Path) -> Report:
    """What `fuseswap check --json` prints, and that it ends as it should."""
    output, errors = TextIOWrapper(BytesIO()), StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        code = main(("check", str(path), "--json"))
    report: Report = json.loads(output.buffer.getvalue())
    assert code == (Exit.DONE if report["error"] is None else Exit.REFUSED)
    assert errors.getvalue().count("\n") == (0 if report["error"] is None else 1)
    return report


def assert_same(report: Report, kernel: Activated | Refused) -> None:
    """The verdict on a local file is swapon's to the page, the errno and the word."""
    error = report["error"]
    if error is None:
        found = report["activation"]
        assert not found["fs_ops"]
        assert kernel == Activated(found["pages"], found["extent_count"], found["span"])
    else:
        assert isinstance(kernel, Refused), error
        assert kernel.errno == error["errno"]
        if error["kernel_text"]:
            assert kernel.text.endswith(error["text"])
        else:
            assert kernel.text == ""


def facts_of_server(path: Path) -> FileFacts:
    """The same file as a backend with a swap_rw reports it."""
    facts = local_facts(str(path))
    ranges = tuple(
        DataRange(mapping.logical, mapping.logical + mapping.length)
        for mapping in facts.mappings or ()
        if mapping.physical is not None
    )
    return evolve(facts, has_swap_rw=True, data_ranges=ranges, mappings=None)


# --- files that hypothesis makes ---


@st.composite
def headers(draw: st.DrawFn, pages: int) -> bytes:
    """A page for a file of `pages`: mostly a header that is right or nearly so, as only such gets far."""
    last_page = draw(st.one_of(st.integers(1, max(1, pages - 1)), st.integers(0, pages + 1)))
    match draw(st.sampled_from(["right", "right", "right", "raw", "raw", "signature", "none"])):
        case "right":
            orders: list[ByteOrder] = ["little", "big"]
            order = draw(st.sampled_from(orders))
            bad = draw(st.lists(st.integers(0, pages + 1), max_size=3, unique=True)) if draw(st.booleans()) else []
            return format_header(SwapHeader(max(last_page, 1), tuple(bad), label=b"oracle", byte_order=order))
        case "raw":
            version = draw(st.sampled_from([1, 1, 1, 0, 2, 0x01000000]))
            bad_pages = draw(st.sampled_from([0, 1, 637, 638]))
            return raw_header(version, last_page, bad_pages, order=draw(st.sampled_from("<>")))
        case "signature":
            return raw_header(last_page=last_page, signature=draw(st.sampled_from([b"SWAP-SPACE", b"S1SUSPEND\0"])))
        case _:
            return b""


BOOT_BLOCKS = st.sampled_from([b"", b"\xeb\x3c\x90" + bytes(507) + b"\x55\xaa" + b"x" * 512])


@frozen
class Recipe:
    """How to make a file."""

    size_bytes: int
    written: tuple[tuple[int, int], ...]
    """(offset, length) in bytes; the rest is a hole."""
    allocated: tuple[tuple[int, int], ...]
    """The same, fallocated and never written."""
    header: bytes
    boot: bytes

    def make(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        with descriptor(path, os.O_RDWR | os.O_CREAT) as fd:
            os.ftruncate(fd, self.size_bytes)
            for offset, length in self.allocated:
                syscalls.fallocate(fd, syscalls.FALLOC_KEEP_SIZE, offset, length)
            for offset, length in self.written:
                os.pwrite(fd, b"\xa5" * max(0, min(length, self.size_bytes - offset)), offset)
            if self.header:
                os.pwrite(fd, (self.boot + self.header[len(self.boot) :])[: self.size_bytes], 0)


SIZES = st.one_of(
    st.integers(2, 40).map(lambda pages: pages * PAGE_SIZE),
    st.integers(2, 40).map(lambda pages: pages * PAGE_SIZE),
    st.integers(0, 40 * PAGE_SIZE),
    st.sampled_from([0, 100, PAGE_SIZE - 1, PAGE_SIZE, PAGE_SIZE + 1, 10 * PAGE_SIZE + 512, 10 * PAGE_SIZE - 1]),
)
PIECES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 40)).map(lambda piece: (piece[0] * KIB, piece[1] * 4 * KIB)),
    max_size=4,
).map(tuple)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    size_bytes = draw(SIZES)
    whole = ((0, max(size_bytes, 1)),)
    written = draw(st.one_of(st.just(whole), st.just(whole), PIECES))
    allocated = draw(st.one_of(st.just(()), st.just(whole), PIECES))
    header = draw(headers(size_bytes // PAGE_SIZE))
    return Recipe(size_bytes, written, allocated, header, draw(BOOT_BLOCKS))


GOOD = format_header(SwapHeader(9))


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@settings(max_examples=100)
@given(recipe=recipes())
@example(Recipe(40960, ((0, 40960),), (), GOOD, b""))
@example(Recipe(40960, (), ((0, 40960),), GOOD, b""))
@example(Recipe(40960, ((0, 20480), (24576, 16384)), (), GOOD, b""))
@example(Recipe(81920, ((0, 40960),), (), GOOD, b""))
@example(Recipe(40960 + 512, ((0, 40960),), (), GOOD, b""))
@example(Recipe(0, (), (), b"", b""))
def test_check_says_what_swapon_says(
    native_filesystems: dict[str, NativeFilesystem], kind: str, recipe: Recipe
) -> None:
    path = native_filesystems[kind].point / "oracle"
    recipe.make(path)
    said, facts = said_by_check(path), facts_of_server(path)

    kernel = kernel_verdict(path)

    assert_same(said, kernel)
    # And the same file as an NFS server would have it.
    report = check_report(facts)
    error = report.error
    if error is None:
        assert report.verdict is not None
        assert isinstance(kernel, Activated), kernel
        assert kernel.pages == report.verdict.pages
    elif error.own:
        assert isinstance(kernel, Activated), (error, kernel)
    elif error.step == "allocated" and facts.size_bytes % PAGE_SIZE and isinstance(kernel, Activated):
        # Only NFS counts a hole in the tail below a page; fuseswap refuses such a size in any case.
        pass
    else:
        assert isinstance(kernel, Refused), error
        assert kernel.errno == error.errno
        if error.step in ("allocated", "holes"):
            assert kernel.text.endswith("has unallocated extents")
        else:
            assert kernel.text == (error.text if error.kernel_text else "")


@contextmanager
def loop_device(path: Path, *options: str) -> Iterator[Path]:
    device = Path(run(["losetup", "--find", "--show", *options, str(path)]).strip())
    try:
        yield device
    finally:
        run(["losetup", "--detach", str(device)])
        wait_until(lambda: str(path) not in loop_devices().values(), seconds=10, what="the loop device's end")


@settings(max_examples=60)
@given(recipe=recipes())
@example(Recipe(40960, (), (), GOOD, b""))
@example(Recipe(40960, (), (), format_header(SwapHeader(9, (3, 7))), b""))
@example(Recipe(40960, (), (), format_header(SwapHeader(9, (3, 10))), b""))
@example(Recipe(40960, (), (), format_header(SwapHeader(3, (1, 2, 3))), b""))
@example(Recipe(0, (), (), b"", b""))
def test_the_same_of_a_loop_device(native_filesystems: dict[str, NativeFilesystem], recipe: Recipe) -> None:
    """A block device: no extents to find, holes are nobody's business, and bad pages are allowed."""
    path = native_filesystems["ext4"].point / "disk"
    recipe.make(path)
    with loop_device(path) as device:
        assert_same(said_by_check(device), kernel_verdict(device))


# --- extents ---


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], int]:
    """A file's size in KiB, stretches to collapse one after another (so that it falls into runs), last_page."""
    size_kib = draw(st.integers(24, 256))
    left = size_kib
    collapses = []
    for _ in range(draw(st.integers(2, 9))):
        if left < 12:
            break
        length = draw(st.integers(1, 7))
        offset = draw(st.integers(0, left - length - 1))
        collapses.append((offset, length))
        left -= length
    return size_kib, collapses, max(1, left // 4 - 1 - draw(st.sampled_from([-1, 0, 0, 0, 1, 5])))


@pytest.mark.parametrize("kind", ["ext4-1k", "ext4", "xfs"])
@settings(max_examples=100)
@given(cut=cuts())
@example((24, [(offset, 1) for offset in (3, 6, 9, 12)], 3))
def test_extents_are_the_kernels(
    native_filesystems: dict[str, NativeFilesystem], kind: str, cut: tuple[int, list[tuple[int, int]], int]
) -> None:
    """Runs of every length and alignment: pages, span and count of extents, or the refusal, as swapon logs it."""
    size_kib, collapses, last_page = cut
    block_kib = 1 if kind == "ext4-1k" else 4
    path = native_filesystems[kind].point / "fragmented"
    path.unlink(missing_ok=True)
    with descriptor(path, os.O_RDWR | os.O_CREAT) as fd:
        syscalls.fallocate(fd, 0, 0, size_kib * block_kib * KIB)
        for offset, length in collapses:
            syscalls.fallocate(fd, syscalls.FALLOC_COLLAPSE_RANGE, offset * block_kib * KIB, length * block_kib * KIB)
        os.pwrite(fd, format_header(SwapHeader(last_page)), 0)
        os.fsync(fd)

    assert_same(said_by_check(path), kernel_verdict(path))


def test_what_a_person_reads(native_filesystems: dict[str, NativeFilesystem]) -> None:
    path = native_filesystems["ext4"].point / "read"
    make_good(path)
    result = fuseswap("check", path)
    assert (result.code, result.errors) == (0, "")
    lines = result.output.splitlines()
    assert "passed         signature" in lines
    assert "not applicable swap-rw" in lines
    assert lines[-5].startswith("header         version 1, little-endian, last page 9, 0 bad pages, UUID ")
    assert lines[-4] == "extents        1, across 9 pages"
    assert lines[-3].startswith("               slots 0 to 9 at page ")
    assert lines[-2:] == [
        f"{path}: ok: 40 KiB, 9 pages of swap",
        f"The kernel swaps to it without fuseswap: swapon {path}",
    ]
    os.truncate(path, 20480)
    result = fuseswap("check", path)
    assert result.code == 3
    assert "failed         shorter: Slots behind the end of the file could be neither" in result.output
    assert "Swap area shorter than signature indicates (EINVAL); the file was cut" in result.line
    assert f"mkswap {path}" in result.line


def test_what_is_not_known_is_not_judged(native_filesystems: dict[str, NativeFilesystem]) -> None:
    path = native_filesystems["btrfs"].point / "file"
    make_good(path)
    result = fuseswap("check", path)
    assert (result.code, result.output) == (1, "")
    assert f"lies on btrfs, whose rules for swap are not known here: ask swapon {path}" in result.line


def test_memory() -> None:
    """tmpfs has no ->read_folio."""
    path = Path("/dev/shm/fuseswap-oracle")
    try:
        make_good(path)
        assert errno_of(path) == our_errno(path) == EINVAL
    finally:
        path.unlink()


def test_shared_extents(native_filesystems: dict[str, NativeFilesystem]) -> None:
    path = native_filesystems["xfs"].point / "shared"
    clone = path.with_name("clone")
    make_good(path)
    with descriptor(path, os.O_RDWR) as fd, descriptor(clone, os.O_RDWR | os.O_CREAT) as target:
        syscalls.clone_range(fd, target, 0, 5 * PAGE_SIZE)

    kernel = kernel_verdict(path)

    assert isinstance(kernel, Refused) and kernel.text.endswith("has shared extents")
    assert_same(said_by_check(path), kernel)


# --- what is not a file that could be swap ---


def errno_of(path: Path) -> int:
    try:
        syscalls.swapon(path)
    except OSError as error:
        return error.errno or 0
    syscalls.swapoff(path)
    return 0


def our_errno(path: Path) -> int:
    error = said_by_check(path)["error"]
    return int(error["errno"]) if error else 0


@pytest.fixture
def directory(native_filesystems: dict[str, NativeFilesystem], request: pytest.FixtureRequest) -> Path:
    directory = native_filesystems["ext4"].point / str(request.node.name)
    directory.mkdir()
    return directory


def make_good(path: Path) -> Path:
    Recipe(40960, ((0, 40960),), (), GOOD, b"").make(path)
    return path


@pytest.mark.parametrize("read_only", [False, True], ids=["rw", "ro"])
def test_other_types(native_filesystems: dict[str, NativeFilesystem], directory: Path, read_only: bool) -> None:
    filesystem = native_filesystems["ext4"]
    (directory / "directory").mkdir()
    os.mkfifo(directory / "fifo")
    os.mknod(directory / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(directory / "socket"))
    make_good(directory / "file")
    expected = {"directory": EISDIR, "fifo": EINVAL, "null": EINVAL, "socket": ENXIO, "file": 0}
    if read_only:
        expected["file"] = EROFS

    syscalls.remount(filesystem.point, read_only=read_only)
    try:
        kernel = {name: errno_of(directory / name) for name in expected}
        ours = {name: our_errno(directory / name) for name in expected}
    finally:
        syscalls.remount(filesystem.point, read_only=False)

    assert kernel == expected
    assert ours == expected


def test_active_already(directory: Path) -> None:
    path = make_good(directory / "file")
    other = directory / "other-name"
    other.hardlink_to(path)

    syscalls.swapon(path)
    try:
        kernel = (errno_of(path), errno_of(other))
        ours = (our_errno(path), our_errno(other))
    finally:
        syscalls.swapoff(path)

    assert kernel == ours == (EBUSY, EBUSY)


def test_a_read_only_device_is_taken(directory: Path) -> None:
    """By the kernel, which then loses every page that it writes; fuseswap never makes one."""
    with loop_device(make_good(directory / "file"), "--read-only") as device:
        kernel = kernel_verdict(device)
        assert isinstance(kernel, Activated)
        assert_same(said_by_check(device), kernel)


def test_an_active_device(directory: Path) -> None:
    with loop_device(make_good(directory / "file")) as device:
        syscalls.swapon(device)
        try:
            assert errno_of(device) == our_errno(device) == EBUSY
        finally:
            syscalls.swapoff(device)


def test_a_device_in_use(native_filesystems: dict[str, NativeFilesystem]) -> None:
    """Where mkswap would be bad advice."""
    filesystem = native_filesystems["ext4"]
    [device] = [Path(name) for name, file in loop_devices().items() if file == str(filesystem.image)]
    report = said_by_check(device)
    assert errno_of(device) == report["error"]["errno"] == EBUSY
    assert report["error"]["step"] == "in-use"


def test_blocks_larger_than_a_page(tmp_path: Path) -> None:
    """Of a device, and of a file system on it."""
    image, point = tmp_path / "image", tmp_path / "point"
    image.touch()
    os.truncate(image, 320 << 20)
    point.mkdir()
    with loop_device(image, "--sector-size", "16384") as device:
        with descriptor(device, os.O_WRONLY) as fd:
            os.pwrite(fd, GOOD.ljust(16384, b"\0"), 0)
        assert_same(said_by_check(device), kernel_verdict(device))
        assert our_errno(device) == EINVAL
        run(["mkfs.xfs", "-q", "-f", "-b", "size=16384", str(device)], seconds=60)
        run(["mount", str(device), str(point)])
        try:
            file = make_good(point / "file")
            assert_same(said_by_check(file), kernel_verdict(file))
            assert our_errno(file) == EINVAL
        finally:
            run(["umount", str(point)])
    image.unlink()


@pytest.mark.parametrize("flag", [FS_IMMUTABLE_FL, FS_APPEND_FL], ids=["+i", "+a"])
def test_attributes(directory: Path, flag: int) -> None:
    path = make_good(directory / "file")
    with descriptor(path, os.O_RDONLY) as fd:
        flags = syscalls.get_flags(fd)
        syscalls.set_flags(fd, flags | flag)
        try:
            assert errno_of(path) == our_errno(path) == EPERM
        finally:
            syscalls.set_flags(fd, flags)


def test_unlinked(directory: Path) -> None:
    path = make_good(directory / "file")

    with descriptor(path, os.O_RDWR) as fd:
        path.unlink()
        by_descriptor = Path(f"/proc/self/fd/{fd}")
        assert errno_of(by_descriptor) == ENOENT
        error = check_report(local_facts(str(by_descriptor))).error
        assert error is not None
        assert error.errno == ENOENT
