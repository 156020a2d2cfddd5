"""What every backend must do, by examples. Random sequences are in test_model.py."""

import errno
import os
import stat
import time
from collections.abc import Awaitable
from typing import TypeVar

import pytest
import trio

from fuseswap.backends.protocol import Backend, Caller, Entry, FileType, Handle, SetAttributes
from tests.backends.conftest import Runner

T = TypeVar("T")

ROOT = Caller(0, 0)
USER = Caller(1234, 5678, (4321,))


async def fails(number: int, call: Awaitable[object]) -> None:
    with pytest.raises(OSError) as caught:
        await call
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


async def make(backend: Backend, name: bytes, content: bytes = b"", parent: Handle | None = None) -> Handle:
    handle, _ = await backend.create(parent or backend.root, name, 0o644, True, ROOT)
    if content:
        await backend.write(handle, 0, content, True, ROOT)
    return handle


async def listing(backend: Backend, handle: Handle) -> list[Entry]:
    entries: list[Entry] = []
    cookie, verifier = 0, b""
    while True:
        part = await backend.readdir(handle, cookie, verifier, ROOT)
        entries += part.entries
        if part.end:
            return entries
        cookie, verifier = part.entries[-1].cookie, part.verifier


async def names(backend: Backend, handle: Handle) -> list[bytes]:
    return sorted(entry.name for entry in await listing(backend, handle))


# --- names ---


def test_a_new_file_is_found_by_its_name(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        handle, made = await backend.create(backend.root, b"file", 0o640, False, ROOT)
        found, attributes = await backend.lookup(backend.root, b"file", ROOT)
        assert found == handle
        assert attributes.fileid == made.fileid
        assert (attributes.type, attributes.mode, attributes.size) == (FileType.REGULAR, 0o640, 0)
        assert (attributes.uid, attributes.gid, attributes.nlink) == (0, 0, 1)
        await fails(errno.ENOENT, backend.lookup(backend.root, b"other", ROOT))
        await fails(errno.ENOTDIR, backend.lookup(handle, b"x", ROOT))

    run(test)


def test_create_opens_what_exists_unless_exclusive(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        handle = await make(backend, b"file", b"content")
        again, attributes = await backend.create(backend.root, b"file", 0o644, False, ROOT)
        assert (again, attributes.size) == (handle, 7)
        await fails(errno.EEXIST, backend.create(backend.root, b"file", 0o644, True, ROOT))
        _, made = await backend.create(backend.root, b"new", 0o4751, True, ROOT)
        assert made.mode == 0o4751
        assert abs(made.mtime_ns - time.time_ns()) < 60e9

    run(test)


@pytest.mark.parametrize(
    "name",
    [
        b"a b",
        b"\xff\xfe",
        b"x" * 255,
        "Größe".encode(),
        b"-",
        b"...",
        b"\n\t\x01\x7f",
        b"%2e%2e",
        b"\\",
        b"a" + b"\xe2\x82",
    ],
)
def test_names_are_bytes(run: Runner, name: bytes) -> None:
    async def test(backend: Backend) -> None:
        handle = await make(backend, name)
        assert (await backend.lookup(backend.root, name, ROOT))[0] == handle
        assert await names(backend, backend.root) == [name]
        await backend.unlink(backend.root, name, ROOT)
        assert await names(backend, backend.root) == []

    run(test)


def test_over_long_names(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        for name in (b"x" * 256, b"x" * 4000):
            await fails(errno.ENAMETOOLONG, backend.create(backend.root, name, 0o644, False, ROOT))
            await fails(errno.ENAMETOOLONG, backend.mkdir(backend.root, name, 0o755, ROOT))
            await fails(errno.ENAMETOOLONG, backend.lookup(backend.root, name, ROOT))

    run(test)


def test_directories(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        before = (await backend.getattr(backend.root, ROOT)).nlink
        directory, attributes = await backend.mkdir(backend.root, b"d", 0o750, ROOT)
        assert (attributes.type, attributes.mode, attributes.nlink) == (FileType.DIRECTORY, 0o750, 2)
        assert (await backend.getattr(backend.root, ROOT)).nlink == before + 1
        await make(backend, b"f", parent=directory)
        await fails(errno.EEXIST, backend.mkdir(backend.root, b"d", 0o755, ROOT))
        await fails(errno.ENOTEMPTY, backend.rmdir(backend.root, b"d", ROOT))
        await fails(errno.ENOTDIR, backend.rmdir(directory, b"f", ROOT))
        await fails(errno.ENOENT, backend.rmdir(backend.root, b"e", ROOT))
        await backend.unlink(directory, b"f", ROOT)
        await backend.rmdir(backend.root, b"d", ROOT)
        assert (await backend.getattr(backend.root, ROOT)).nlink == before
        await fails(errno.ESTALE, backend.getattr(directory, ROOT))

    run(test)


def test_unlink(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        handle = await make(backend, b"f", b"data")
        await backend.link(handle, backend.root, b"g", ROOT)
        await backend.unlink(backend.root, b"f", ROOT)
        assert (await backend.getattr(handle, ROOT)).nlink == 1
        assert await backend.read(handle, 0, 10, ROOT) == b"data"
        await backend.unlink(backend.root, b"g", ROOT)
        await fails(errno.ENOENT, backend.unlink(backend.root, b"g", ROOT))
        await fails(errno.ESTALE, backend.getattr(handle, ROOT))
        await fails(errno.ESTALE, backend.read(handle, 0, 10, ROOT))
        await backend.mkdir(backend.root, b"d", 0o755, ROOT)
        with pytest.raises(OSError) as caught:
            await backend.unlink(backend.root, b"d", ROOT)
        assert caught.value.errno in (errno.EISDIR, errno.EPERM)

    run(test)


def test_links_share_everything(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        directory, _ = await backend.mkdir(backend.root, b"d", 0o755, ROOT)
        handle = await make(backend, b"f")
        assert (await backend.link(handle, directory, b"g", ROOT)).nlink == 2
        other, attributes = await backend.lookup(directory, b"g", ROOT)
        assert attributes.fileid == (await backend.getattr(handle, ROOT)).fileid
        await backend.write(other, 0, b"through g", True, ROOT)
        await backend.setattr(other, SetAttributes(mode=0o600), ROOT)
        assert await backend.read(handle, 0, 100, ROOT) == b"through g"
        assert (await backend.getattr(handle, ROOT)).mode == 0o600
        await fails(errno.EEXIST, backend.link(handle, directory, b"g", ROOT))

    run(test)


def test_rename(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        one, two = await make(backend, b"1", b"one"), await make(backend, b"2", b"two")
        directory, _ = await backend.mkdir(backend.root, b"d", 0o755, ROOT)
        await backend.rename(backend.root, b"1", directory, b"x", ROOT)
        assert (await backend.lookup(directory, b"x", ROOT))[0] == one
        await backend.rename(backend.root, b"2", directory, b"x", ROOT)
        assert (await backend.lookup(directory, b"x", ROOT))[0] == two
        await fails(errno.ESTALE, backend.getattr(one, ROOT))
        await fails(errno.ENOENT, backend.rename(backend.root, b"2", directory, b"y", ROOT))
        assert await names(backend, backend.root) == [b"d"]
        await backend.rename(directory, b"x", directory, b"x", ROOT)
        assert await names(backend, directory) == [b"x"]

    run(test)


def test_rename_of_directories(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        outer, _ = await backend.mkdir(backend.root, b"outer", 0o755, ROOT)
        inner, _ = await backend.mkdir(outer, b"inner", 0o755, ROOT)
        full, _ = await backend.mkdir(backend.root, b"full", 0o755, ROOT)
        await make(backend, b"f", parent=full)
        await make(backend, b"file")
        await fails(errno.EINVAL, backend.rename(backend.root, b"outer", inner, b"x", ROOT))
        await fails(errno.ENOTEMPTY, backend.rename(backend.root, b"outer", backend.root, b"full", ROOT))
        await fails(errno.ENOTDIR, backend.rename(backend.root, b"outer", backend.root, b"file", ROOT))
        await fails(errno.EISDIR, backend.rename(backend.root, b"file", backend.root, b"outer", ROOT))
        await backend.rename(outer, b"inner", backend.root, b"i", ROOT)
        await backend.rename(backend.root, b"full", backend.root, b"i", ROOT)
        assert await names(backend, (await backend.lookup(backend.root, b"i", ROOT))[0]) == [b"f"]
        assert (await backend.getattr(outer, ROOT)).nlink == 2

    run(test)


def test_symbolic_links(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        for target in (b"a", b"/absolute/\xff", b"../..", b"x" * 1000):
            handle, attributes = await backend.symlink(backend.root, b"s", target, ROOT)
            assert attributes.type is FileType.SYMLINK
            assert attributes.size == len(target)
            assert await backend.readlink(handle, ROOT) == target
            await fails(errno.EEXIST, backend.symlink(backend.root, b"s", target, ROOT))
            await backend.unlink(backend.root, b"s", ROOT)
        await fails(errno.EINVAL, backend.readlink(await make(backend, b"f"), ROOT))

    run(test)


@pytest.mark.parametrize(
    ("type", "rdev"),
    [
        (FileType.FIFO, (0, 0)),
        (FileType.SOCKET, (0, 0)),
        (FileType.CHARACTER, (1, 3)),
        (FileType.BLOCK, (7, 200)),
    ],
)
def test_special_files(run: Runner, type: FileType, rdev: tuple[int, int]) -> None:
    async def test(backend: Backend) -> None:
        handle, made = await backend.mknod(backend.root, b"n", type, 0o640, rdev, ROOT)
        for attributes in (made, await backend.getattr(handle, ROOT)):
            assert (attributes.type, attributes.mode) == (type, 0o640)
            if type in (FileType.CHARACTER, FileType.BLOCK):
                assert attributes.rdev == rdev
        await fails(errno.EEXIST, backend.mknod(backend.root, b"n", type, 0o640, rdev, ROOT))

    run(test)


def test_listing_of_a_large_directory_that_changes(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        for number in range(1500):
            await backend.symlink(backend.root, b"%04d" % number, b"x", ROOT)
        seen: list[bytes] = []
        cookie, verifier = 0, b""
        while True:
            part = await backend.readdir(backend.root, cookie, verifier, ROOT)
            seen += [entry.name for entry in part.entries]
            if part.end:
                break
            cookie, verifier = part.entries[-1].cookie, part.verifier
            for name in list({entry.name for entry in part.entries} - {b"new"})[:3]:
                await backend.unlink(backend.root, name, ROOT)
        assert len(seen) == len(set(seen))
        assert set(seen) >= {b"%04d" % number for number in range(1500)}

    run(test)


def test_entries_say_what_they_are(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        handle = await make(backend, b"f", b"12345")
        await backend.mkdir(backend.root, b"d", 0o755, ROOT)
        for entry in await listing(backend, backend.root):
            found, attributes = await backend.lookup(backend.root, entry.name, ROOT)
            assert entry.fileid == attributes.fileid
            assert entry.handle is None or entry.handle == found
            if entry.attributes is not None and entry.name == b"f":
                assert (entry.attributes.size, found) == (5, handle)
        await fails(errno.ENOTDIR, backend.readdir(handle, 0, b"", ROOT))

    run(test)


# --- contents ---


def test_reading_ends_at_the_end(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        handle = await make(backend, b"f", b"0123456789")
        assert await backend.read(handle, 0, 4, ROOT) == b"0123"
        assert await backend.read(handle, 8, 100, ROOT) == b"89"
        assert await backend.read(handle, 10, 100, ROOT) == b""
        assert await backend.read(handle, 1 << 40, 100, ROOT) == b""
        assert await backend.read(handle, 5, 0, ROOT) == b""

    run(test)


def test_contents_larger_than_one_call(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        content = os.urandom(3 * backend.write_bytes_max + 4321)
        handle = await make(backend, b"f")
        await backend.write(handle, 17, content, False, ROOT)
        assert await backend.read(handle, 0, len(content) + 100, ROOT) == bytes(17) + content
        await backend.commit(handle, ROOT)
        assert (await backend.getattr(handle, ROOT)).size == 17 + len(content)

    run(test)


def test_holes_read_as_zeros_and_cost_nothing(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        handle = await make(backend, b"f")
        await backend.write(handle, 5 << 30, b"end", True, ROOT)
        attributes = await backend.getattr(handle, ROOT)
        assert attributes.size == (5 << 30) + 3
        assert attributes.used < 1 << 20
        assert await backend.read(handle, (5 << 30) - 4, 100, ROOT) == bytes(4) + b"end"
        assert await backend.read(handle, 1 << 30, 100, ROOT) == bytes(100)

    run(test)


def test_truncation(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        handle = await make(backend, b"f", b"x" * 100_000)
        assert (await backend.setattr(handle, SetAttributes(size=70_001), ROOT)).size == 70_001
        assert (await backend.setattr(handle, SetAttributes(size=90_000), ROOT)).size == 90_000
        content = await backend.read(handle, 0, 100_000, ROOT)
        assert content == b"x" * 70_001 + bytes(19_999)
        await fails(errno.EINVAL, _truncated(backend, await _fifo(backend)))

    run(test)


async def _fifo(backend: Backend) -> Handle:
    return (await backend.mknod(backend.root, b"fifo", FileType.FIFO, 0o644, (0, 0), ROOT))[0]


async def _truncated(backend: Backend, handle: Handle) -> None:
    await backend.setattr(handle, SetAttributes(size=0), ROOT)


def test_sizes_and_offsets_near_the_limit(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        handle = await make(backend, b"f")
        top = (1 << 63) - 1
        for call in (
            backend.setattr(handle, SetAttributes(size=top), ROOT),
            backend.write(handle, top - 1, b"xx", True, ROOT),
        ):
            try:
                await call
            except OSError as error:
                assert error.errno in (errno.EFBIG, errno.EINVAL)
        assert await backend.read(handle, top - 10, 5, ROOT) in (b"", bytes(5))

    run(test)


def test_many_writers_of_one_file(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        handle = await make(backend, b"f")
        pieces = [os.urandom(4096) for _ in range(200)]

        async def write(index: int) -> None:
            await backend.write(handle, index * 4096, pieces[index], False, ROOT)

        async with trio.open_nursery() as nursery:
            for index in reversed(range(len(pieces))):
                nursery.start_soon(write, index)
        await backend.commit(handle, ROOT)
        assert await backend.read(handle, 0, 1 << 20, ROOT) == b"".join(pieces)

    run(test)


# --- attributes and permissions ---


def test_attributes_are_set_one_by_one(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        handle = await make(backend, b"f", b"content")
        for changes in (
            SetAttributes(mode=0o6711),
            SetAttributes(uid=77),
            SetAttributes(gid=88),
            SetAttributes(atime_ns=1_000_000_000_123_456_789),
            SetAttributes(mtime_ns=999_999_999_999_999_999),
        ):
            before = await backend.getattr(handle, ROOT)
            after = await backend.setattr(handle, changes, ROOT)
            for name in ("mode", "uid", "gid", "atime_ns", "mtime_ns"):
                wanted = getattr(changes, name)
                if wanted is not None:
                    assert getattr(after, name) == wanted
                elif name != "mode" or changes.mode is not None:
                    # chown may take the setuid bits.
                    assert getattr(after, name) == getattr(before, name)
            assert after.size == 7

    run(test)


def test_who_may_write_may_touch(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        handle = await make(backend, b"f")
        old = 1_000_000_000 * 10**9
        for mode, gid, refused in ((0o644, 0, True), (0o666, 0, False), (0o664, USER.groups[0], False)):
            changes = SetAttributes(mode=mode, gid=gid, atime_ns=old, mtime_ns=old)
            await backend.setattr(handle, changes, ROOT)
            if refused:
                await fails(errno.EACCES, backend.setattr(handle, SetAttributes(touch=True), USER))
                continue
            await fails(errno.EPERM, backend.setattr(handle, SetAttributes(mtime_ns=old + 1), USER))
            found = await backend.setattr(handle, SetAttributes(touch=True), USER)
            assert min(found.atime_ns, found.mtime_ns) > old

    run(test)


def test_times_follow_changes(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        handle = await make(backend, b"f")
        old = 1_000_000_000 * 10**9
        await backend.setattr(handle, SetAttributes(atime_ns=old, mtime_ns=old), ROOT)
        await backend.write(handle, 0, b"x", True, ROOT)
        assert (await backend.getattr(handle, ROOT)).mtime_ns > old
        await backend.setattr(backend.root, SetAttributes(mtime_ns=old), ROOT)
        await backend.unlink(backend.root, b"f", ROOT)
        assert (await backend.getattr(backend.root, ROOT)).mtime_ns > old

    run(test)


def test_permissions_are_the_callers(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        await backend.setattr(backend.root, SetAttributes(mode=0o755), ROOT)
        await fails(errno.EACCES, backend.create(backend.root, b"u", 0o644, False, USER))
        await fails(errno.EACCES, backend.mkdir(backend.root, b"u", 0o755, USER))
        directory, _ = await backend.mkdir(backend.root, b"home", 0o755, ROOT)
        await backend.setattr(directory, SetAttributes(uid=USER.uid, gid=USER.gid), ROOT)
        handle, made = await backend.create(directory, b"mine", 0o600, True, USER)
        assert (made.uid, made.gid) == (USER.uid, USER.gid)
        await backend.write(handle, 0, b"mine", True, USER)
        assert await backend.access(handle, os.R_OK | os.W_OK, USER)
        assert not await backend.access(handle, os.X_OK, USER)
        assert not await backend.access(handle, os.R_OK, Caller(1, 1))
        assert await backend.access(handle, os.R_OK | os.W_OK, ROOT)
        await fails(errno.EPERM, backend.setattr(handle, SetAttributes(uid=0), USER))
        await fails(errno.EPERM, backend.setattr(handle, SetAttributes(mode=0o777), Caller(1, 1)))
        await backend.setattr(handle, SetAttributes(gid=USER.groups[0]), USER)
        await backend.setattr(directory, SetAttributes(mode=0o700), USER)
        await fails(errno.EACCES, backend.lookup(directory, b"mine", Caller(1, 1)))

    run(test)


def test_supplementary_groups_count(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        handle = await make(backend, b"f")
        await backend.setattr(handle, SetAttributes(mode=0o640, gid=USER.groups[0]), ROOT)
        assert await backend.access(handle, os.R_OK, USER)
        assert not await backend.access(handle, os.W_OK, USER)
        assert not await backend.access(handle, os.R_OK, Caller(USER.uid, USER.gid))

    run(test)


def test_statistics(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        numbers = await backend.statistics(backend.root, ROOT)
        assert 0 < numbers.available_bytes <= numbers.total_bytes
        assert numbers.free_files <= numbers.total_files
        assert numbers.name_bytes_max == 255

    run(test)


def test_handles_of_nothing(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        await fails(errno.ESTALE, backend.getattr(b"\x01" * len(backend.root), ROOT))

    run(test)


def test_mode_bits_are_those_of_the_type(run: Runner) -> None:
    async def test(backend: Backend) -> None:
        attributes = await backend.getattr(backend.root, ROOT)
        assert attributes.type.value == stat.S_IFDIR
        assert not attributes.mode & stat.S_IFMT(0o177777)

    run(test)
