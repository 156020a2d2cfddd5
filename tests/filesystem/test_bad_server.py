"""A server that answers nonsense, or whose export goes away: a clear errno, and a mount that works on."""

# os.listdir fails at once, Path.iterdir when it is read:
# ruff: noqa: PTH208

import contextlib
import errno
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
from attrs import frozen

from fuseswap.backends.memory import MemoryBackend
from fuseswap.backends.protocol import Caller, Entry, Handle, Listing
from fuseswap.filesystem import directories
from fuseswap.filesystem.directories import OpenDirectory
from fuseswap.filesystem.inodes import InodeTable
from fuseswap.host.ganesha import Export, GaneshaServer
from tests.backends.test_nfs_faults import mangled
from tests.filesystem.conftest import Mount
from tests.filesystem.mounted import Mounted
from tests.kit.proxy import READ, WRITE, Cut, Proxy, Record, Rule, Send, forward

GETATTR, LOOKUP, READLINK, READDIRPLUS, FSSTAT, COMMIT = 1, 3, 5, 17, 18, 21
ONES = (1 << 64) - 1


@frozen
class Mad:
    """A mount whose replies a rule may rewrite."""

    mounted: Mounted
    proxy: Proxy
    behind: Path

    @property
    def point(self) -> Path:
        return self.mounted.point

    @contextlib.contextmanager
    def answering(self, rule: Rule, procedure: int) -> Iterator[None]:
        """`rule` for replies of one procedure; afterwards everything works as before."""

        def apply(record: Record, rng: random.Random) -> Iterable[Send | Cut]:
            return rule(record, rng) if record.procedure == procedure else forward(record, rng)

        self.mounted.watch()
        self.proxy.on_reply = apply
        try:
            yield
        finally:
            self.proxy.on_reply = forward
        assert (self.point / "file").read_bytes() == b"content"
        assert sorted(path.name for path in self.point.iterdir()) == ["directory", "file", "link"]


_IMPATIENT = """
from fuseswap.backends.nfs import client
client._JUKEBOX_SECONDS = (0.001, 0.01)
"""
"""Bad replies are asked for again after this time."""


@pytest.fixture(scope="module")
def mad(nfs_server: GaneshaServer) -> Iterator[Mad]:
    behind = Path(tempfile.mkdtemp(prefix="mad-", dir=nfs_server.export_dir))
    (behind / "file").write_bytes(b"content")
    (behind / "link").symlink_to("file")
    (behind / "directory").mkdir()
    with (
        tempfile.TemporaryDirectory(prefix="fuseswap-test-", dir="/var/tmp") as name,
        Proxy(nfs_server.nfs_port) as proxy,
    ):
        point = Path(name) / "mount"
        point.mkdir()
        source = f"nfs://127.0.0.1/swap/{behind.name}?nfsport={proxy.port}&mountport={nfs_server.mount_port}"
        with Mounted(source, point, "actimeo=0,soft,timeo=3", prelude=_IMPATIENT) as mounted:
            yield Mad(mounted, proxy, behind)


def outcome(call: Callable[[], object]) -> str:
    """The name of the errno, or "value"."""
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return "value"


# --- XDR (RFC 4506) ---


def u32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def u64(*values: int) -> bytes:
    return struct.pack(f">{len(values)}Q", *values)


def opaque(data: bytes) -> bytes:
    return u32(len(data)) + data + bytes(-len(data) % 4)


def answer(body: bytes) -> Rule:
    """NFS3_OK and this."""
    return lambda record, _: [Send(Record(record.data[:24] + u32(0) + body, record.xid, 0, 0).framed())]


_NO_ATTRIBUTES = u32(0)

# Where fattr3 (RFC 1813 2.5) has what, and how wide it is.
_FIELDS = {
    **{name: (4 * index, 4) for index, name in enumerate(("type", "mode", "nlink", "uid", "gid"))},
    "size": (20, 8),
    "used": (28, 8),
    "rdev": (36, 8),
    "fsid": (44, 8),
    "fileid": (52, 8),
    "atime_s": (60, 4),
    "atime_ns": (64, 4),
    "mtime_s": (68, 4),
    "mtime_ns": (72, 4),
    "ctime_ns": (80, 4),
}


def with_attribute(name: str, value: int) -> Rule:
    """The server's LOOKUP reply with another value in the attributes."""
    at, width = _FIELDS[name]

    def rule(record: Record, _: random.Random) -> Iterable[Send | Cut]:
        data = bytearray(record.data)
        if struct.unpack_from(">I", data, 24) == (0,):
            (length,) = struct.unpack_from(">I", data, 28)
            start = 32 + (length + 3) // 4 * 4 + 4 + at
            data[start : start + width] = value.to_bytes(width, "big")
        return [Send(Record(bytes(data), record.xid, 0, 0).framed())]

    return rule


# --- attributes ---


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("type", 0, "EIO"),
        ("type", 9, "EIO"),
        ("size", ONES, "EIO"),
        ("size", 1 << 63, "EIO"),
        ("size", (1 << 63) - 1, "value"),
        ("used", ONES, "value"),
        ("mode", (1 << 32) - 1, "value"),
        ("nlink", 0, "value"),
        ("nlink", (1 << 32) - 1, "value"),
        ("uid", (1 << 32) - 1, "value"),
        ("gid", (1 << 32) - 1, "value"),
        ("rdev", ONES, "value"),
        ("fileid", 0, "value"),
        ("fileid", 1, "value"),
        ("fileid", ONES, "value"),
        ("atime_ns", (1 << 32) - 1, "value"),
        ("mtime_s", (1 << 32) - 1, "value"),
        ("ctime_ns", 1_000_000_000, "value"),
    ],
)
def test_absurd_attributes(mad: Mad, name: str, value: int, expected: str) -> None:
    with mad.answering(with_attribute(name, value), LOOKUP):
        assert outcome(lambda: (mad.point / "file").stat()) == expected


@pytest.mark.parametrize("type", range(2, 8))
def test_a_file_that_is_suddenly_of_another_type(mad: Mad, type: int) -> None:
    descriptor = os.open(mad.point / "file", os.O_RDONLY)
    try:
        with mad.answering(with_attribute("type", type), LOOKUP):
            # The kernel takes the inode for bad, with all that is open of it (fuse_make_bad).
            assert outcome(lambda: (mad.point / "file").lstat()) == "EIO"
            assert outcome(lambda: os.truncate(mad.point / "file", 7)) in ("EIO", "EISDIR", "EINVAL")
        assert outcome(lambda: os.pread(descriptor, 10, 0)) == "EIO"
    finally:
        assert outcome(lambda: os.close(descriptor)) == "EIO"


def test_absurd_statistics(mad: Mad) -> None:
    with mad.answering(answer(_NO_ATTRIBUTES + u64(*(ONES,) * 6) + u32(0)), FSSTAT):
        assert os.statvfs(mad.point).f_blocks == ONES // 4096


# --- handles ---


def with_handle(of: bytes) -> Rule:
    return answer(opaque(of) + _NO_ATTRIBUTES * 2)


@pytest.mark.parametrize("length", [0, 1, 64, 65, 5000])
def test_handles_of_nothing(mad: Mad, length: int) -> None:
    with mad.answering(with_handle(b"x" * length), LOOKUP):
        assert outcome(lambda: (mad.point / "file").stat()) in ("EIO", "ESTALE")


def test_directories_that_contain_themselves(mad: Mad) -> None:
    handles: dict[int, bytes] = {}

    def learn(record: Record, rng: random.Random) -> Iterable[Send | Cut]:
        (length,) = struct.unpack_from(">I", record.data, 28)
        handles[len(handles)] = record.data[32 : 32 + length]
        return forward(record, rng)

    with mad.answering(learn, LOOKUP):
        (mad.point / "directory").stat()
    with mad.answering(with_handle(handles[0]), LOOKUP):
        assert outcome(lambda: (mad.point / "directory/inside").stat()) == "ELOOP"
        assert outcome(lambda: (mad.point / "directory/inside/inside").stat()) == "ELOOP"
        # Two names of one directory: the kernel takes it for moved.
        assert outcome(lambda: (mad.point / "other").stat()) == "value"


# --- links ---


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"x" * 4095, "value"),
        (b"x" * 5000, "EIO"),
        (b"x" * 60_000, "EIO"),
        (b"", "value"),
        (b"a\0b", "value"),
    ],
    ids=lambda value: str(len(value)) if isinstance(value, bytes) else "",
)
def test_absurd_links(mad: Mad, target: bytes, expected: str) -> None:
    with mad.answering(answer(_NO_ATTRIBUTES + opaque(target)), READLINK):
        assert outcome(lambda: (mad.point / "link").readlink()) == expected
        if target:  # an empty one leads nowhere else, as the kernel follows it
            assert outcome(lambda: (mad.point / "link").stat()) != "value"


# --- directories ---


def page(*entries: tuple[bytes, int], end: bool) -> bytes:
    """READDIRPLUS3resok of names and cookies, without attributes and handles."""
    body = _NO_ATTRIBUTES + bytes(8)
    for number, (name, cookie) in enumerate(entries):
        body += u32(1) + u64(1000 + number) + opaque(name) + u64(cookie) + u32(0, 0)
    return body + u32(0, end)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (page((b"file", 5), (b"link", 6), end=False), "ELOOP"),
        (page((b"file", 5), (b"link", 5), end=True), "ELOOP"),
        (page(end=False), "EIO"),
        (page((b".", 1), (b"..", 2), end=False), "EIO"),
        (page((b"", 1), end=True), "EIO"),
        (page((b"a/b", 1), end=True), "EIO"),
        (page((b"file", ONES), (b"link", 0), end=True), "value"),
        (page((b"x" * 256, 1), end=True), "ENAMETOOLONG"),
        (page((b"x" * 2000, 1), end=True), "ENAMETOOLONG"),
        (page((b"vanished", 1), end=True), "value"),
    ],
    ids=["same page", "same cookie", "nothing", "dots", "no name", "slash", "cookies", "256", "2000", "vanished"],
)
def test_mad_directories(mad: Mad, body: bytes, expected: str) -> None:
    with mad.answering(answer(body), READDIRPLUS):
        assert outcome(lambda: os.listdir(mad.point)) == expected


def status(number: int) -> bytes:
    return u32(number) + _NO_ATTRIBUTES


def test_a_server_that_takes_its_cookies_back(mad: Mad) -> None:
    """BAD_COOKIE, as of servers whose verifier is the directory's change time: the listing goes on all the same."""
    names = {f"entry-{number:04}" for number in range(1000)}
    behind = mad.behind / "directory"
    for name in names:
        (behind / name).touch()
    replies = 0

    def rule(record: Record, rng: random.Random) -> Iterable[Send | Cut]:
        nonlocal replies
        replies += 1
        if replies != 2:
            return forward(record, rng)
        return [Send(Record(record.data[:24] + status(10003), record.xid, 0, 0).framed())]

    try:
        with mad.answering(rule, READDIRPLUS):
            seen = os.listdir(mad.point / "directory")
        assert replies > 2
        assert len(seen) == len(set(seen))
        assert set(seen) == names
    finally:
        for path in behind.iterdir():
            path.unlink()


def test_a_listing_that_begins_anew_finds_fewer_names() -> None:
    class Shrinking(MemoryBackend):
        entries = 1000

        async def readdir(self, handle: Handle, cookie: int, verifier: bytes, caller: Caller) -> Listing:
            if cookie == 200 and self.entries == 1000:
                self.entries = 150
                raise OSError(errno.ESTALE, "BAD_COOKIE")
            numbers = range(cookie + 1, min(cookie + 100, self.entries) + 1)
            entries = [Entry(b"%d" % number, number, number, None, None) for number in numbers]
            return Listing(entries, bytes(8), numbers[-1] == self.entries)

    async def main() -> list[int]:
        backend = Shrinking(1 << 20)
        root = InodeTable(backend.root, await backend.getattr(backend.root, Caller(0, 0))).root
        directory = OpenDirectory(root, Caller(0, 0), 0)
        found = [entry.fileid async for _, entry in directory.entries(backend, directories.DOTS)]
        assert [entry async for entry in directory.entries(backend, directories.DOTS + 200)] == []
        return found

    assert trio.run(main) == list(range(1, 201))


def test_a_directory_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ever new names and cookies."""
    monkeypatch.setattr(directories, "ENTRIES_MAX", 5000)

    class Endless(MemoryBackend):
        async def readdir(self, handle: Handle, cookie: int, verifier: bytes, caller: Caller) -> Listing:
            numbers = range(cookie + 1, cookie + 101)
            return Listing([Entry(b"%d" % number, number, number, None, None) for number in numbers], bytes(8), False)

    async def main() -> int:
        backend = Endless(1 << 20)
        root = InodeTable(backend.root, await backend.getattr(backend.root, Caller(0, 0))).root
        count = 0
        with pytest.raises(OSError) as caught:
            async for _ in OpenDirectory(root, Caller(0, 0), 0).entries(backend, directories.DOTS):
                count += 1
        assert caught.value.errno == errno.ELOOP
        return count

    assert trio.run(main) == 5000


# --- contents ---


@pytest.mark.parametrize(
    "body",
    [
        _NO_ATTRIBUTES + u32(100_000, 1) + opaque(bytes(100_000)),
        _NO_ATTRIBUTES + u32(0, 0) + opaque(b""),
        _NO_ATTRIBUTES + u32(7, 1) + opaque(b"con"),
        _NO_ATTRIBUTES + u32(ONES >> 32, 1) + u32(ONES >> 32),
    ],
    ids=["too much", "no progress", "two lengths", "cut off"],
)
def test_mad_reads(mad: Mad, body: bytes) -> None:
    with mad.answering(answer(body), READ), (mad.point / "file").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert outcome(lambda: file.read()) == "EIO"


@pytest.mark.parametrize("count", [0, 8, (1 << 32) - 1])
def test_mad_writes(mad: Mad, count: int) -> None:
    def write() -> None:
        with (mad.point / "file").open("r+b", buffering=0) as file:
            file.write(b"content")
            os.fsync(file.fileno())

    with mad.answering(answer(_NO_ATTRIBUTES * 2 + u32(count, 0) + bytes(8)), WRITE):
        assert outcome(write) == "EIO"


def test_a_verifier_that_never_stays(mad: Mad) -> None:
    """Each COMMIT tells of a server started again: the data goes stable, and that is the end of it."""
    with mad.answering(lambda record, rng: answer(_NO_ATTRIBUTES * 2 + rng.randbytes(8))(record, rng), COMMIT):
        (mad.point / "file").write_bytes(b"content")


# --- random damage ---


def test_a_mount_outlives_wild_replies(mad: Mad) -> None:
    def user(seed: int) -> int:
        rng = random.Random(seed)
        own = mad.point / f"own-{seed}"
        calls: list[Callable[[], object]] = [
            lambda: (mad.point / "file").stat(),
            lambda: os.listdir(mad.point),
            lambda: (mad.point / "link").readlink(),
            lambda: own.mkdir(),
            lambda: (own / "file").write_bytes(rng.randbytes(10_000)),
            lambda: (own / "file").read_bytes(),
            lambda: (own / "file").rename(own / "renamed"),
            lambda: os.truncate(own / "renamed", 100),
            lambda: (own / "link").symlink_to("renamed"),
            lambda: os.link(own / "renamed", own / "hard"),
            lambda: shutil.rmtree(own),
            lambda: os.statvfs(own),
        ]
        done = 0
        while count() < 150 and done < 500:
            outcome(rng.choice(calls))
            done += 1
        return done

    rule, count = mangled(0.3, 150)
    mad.mounted.watch()
    mad.proxy.on_reply = rule
    try:
        with ThreadPoolExecutor(16) as pool:
            assert sum(pool.map(user, range(16))) > 50
    finally:
        mad.proxy.on_reply = forward
    assert count() == 150
    shutil.rmtree(mad.behind, ignore_errors=True)
    mad.behind.mkdir()


# --- the export goes ---


def test_what_the_mount_stands_on_is_removed(mount: Mount, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    (nfs_dir / "inner").mkdir()
    (nfs_dir / "inner/file").write_bytes(b"content")
    mounted = mount(nfs_server.url(f"{nfs_dir.name}/inner"), "actimeo=0")
    shutil.rmtree(nfs_dir / "inner")
    calls: dict[str, Callable[[], object]] = {
        "create": lambda: (mounted.point / "new").write_bytes(b"x"),
        "mkdir": lambda: (mounted.point / "new").mkdir(),
        "list": lambda: os.listdir(mounted.point),
    }
    assert {name: outcome(call) for name, call in calls.items()} == dict.fromkeys(calls, "ESTALE")
    assert mounted.stop() == 0


def test_an_export_goes_and_comes_back(mount: Mount, make_nfs_server: Callable[..., GaneshaServer]) -> None:
    exports = (Export("one"), Export("two"))
    server = make_nfs_server(*exports)
    mounted = mount(server.url(export="two"), "actimeo=0")
    (mounted.point / "file").write_bytes(b"content")
    server.stop()
    server.exports = exports[:1]
    server.start()
    assert outcome(lambda: (mounted.point / "file").stat()) in ("ESTALE", "EACCES")
    assert outcome(lambda: (mounted.point / "new").write_bytes(b"x")) in ("ESTALE", "EACCES")
    server.stop()
    server.exports = exports
    server.start()
    assert (mounted.point / "file").read_bytes() == b"content"
    assert mounted.stop() == 0
