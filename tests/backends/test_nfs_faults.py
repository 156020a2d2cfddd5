"""What networks and servers do: cut connections, lost and wild replies, restarts, forgotten writes."""

import errno
import logging
import os
import random
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from fuseswap.backends.nfs import client as client_module
from fuseswap.backends.nfs.backend import NfsBackend, open_nfs
from fuseswap.backends.protocol import Caller, FileType, SetAttributes
from fuseswap.host.ganesha import GaneshaServer
from tests.kit.proxy import READ, WRITE, Cut, Proxy, Record, Rule, Send, drop, forward

ROOT = Caller(0, 0)
COMMIT = 21
UNSTABLE, FILE_SYNC = 0, 2


@pytest.fixture
def proxy(nfs_server: GaneshaServer) -> Iterator[Proxy]:
    with Proxy(nfs_server.nfs_port, seed=1) as proxy:
        yield proxy


@asynccontextmanager
async def through(proxy: Proxy, server: GaneshaServer, directory: Path) -> AsyncIterator[NfsBackend]:
    url = f"nfs://127.0.0.1/swap/{directory.name}?nfsport={proxy.port}&mountport={server.mount_port}"
    async with open_nfs(url) as backend:
        yield backend


Test = Callable[[NfsBackend], Awaitable[None]]
Run = Callable[[Test], None]


@pytest.fixture
def run(proxy: Proxy, nfs_server: GaneshaServer, nfs_dir: Path) -> Run:
    def runner(test: Test) -> None:
        async def main() -> None:
            with trio.fail_after(60):
                async with through(proxy, nfs_server, nfs_dir) as backend:
                    await test(backend)

        trio.run(main)

    return runner


def once(rule: Rule, *, procedures: Iterable[int] = ()) -> Rule:
    """`rule` for the first record (of these procedures), then a wire."""
    done = False

    def apply(record: Record, rng: random.Random) -> Iterable[Send | Cut]:
        nonlocal done
        if done or (procedures and record.procedure not in procedures):
            return forward(record, rng)
        done = True
        return rule(record, rng)

    return apply


def cut_inside(record: Record, rng: random.Random) -> Iterable[Send | Cut]:
    stream = record.framed()
    return [Cut(stream[: rng.randrange(len(stream))])]


def cut_instead(_: Record, __: random.Random) -> Iterable[Send | Cut]:
    return [Cut()]


# --- lost connections ---


def test_reads_survive_cuts_at_any_byte(run: Run, proxy: Proxy) -> None:
    """libnfs 4 alone would take the new stream's first bytes for the rest of the old record."""

    async def test(backend: NfsBackend) -> None:
        handle, _ = await backend.create(backend.root, b"f", 0o644, False, ROOT)
        content = os.urandom(1 << 20)
        await backend.write(handle, 0, content, True, ROOT)
        for _ in range(15):
            proxy.on_reply = once(cut_inside, procedures=[READ])
            assert await backend.read(handle, 0, len(content), ROOT) == content
        assert backend.client.statistics().connections >= 16

    run(test)


def test_many_calls_survive_cuts(run: Run, proxy: Proxy) -> None:
    async def test(backend: NfsBackend) -> None:
        handle, _ = await backend.create(backend.root, b"f", 0o644, False, ROOT)
        pieces = [os.urandom(30_000) for _ in range(60)]

        async def write(index: int) -> None:
            await backend.write(handle, index * 30_000, pieces[index], False, ROOT)
            await backend.commit(handle, ROOT)

        async def cut() -> None:
            for _ in range(5):
                await trio.sleep(0.02)
                proxy.cut()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            for index in range(len(pieces)):
                nursery.start_soon(write, index)
        assert await backend.read(handle, 0, 1 << 21, ROOT) == b"".join(pieces)

    run(test)


@pytest.mark.parametrize("operation", ["mkdir", "symlink", "mknod", "link", "unlink", "rmdir", "rename", "create"])
def test_nothing_is_done_twice(run: Run, proxy: Proxy, operation: str) -> None:
    """The reply is lost with its connection: the repetition must be read as the success it stands for."""

    async def test(backend: NfsBackend) -> None:
        root = backend.root
        file, _ = await backend.create(root, b"file", 0o644, False, ROOT)
        await backend.mkdir(root, b"directory", 0o755, ROOT)
        proxy.on_reply = once(cut_instead)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "mkdir": lambda: backend.mkdir(root, b"new", 0o755, ROOT),
            "symlink": lambda: backend.symlink(root, b"new", b"target", ROOT),
            "mknod": lambda: backend.mknod(root, b"new", FileType.FIFO, 0o644, (0, 0), ROOT),
            "link": lambda: backend.link(file, root, b"new", ROOT),
            "unlink": lambda: backend.unlink(root, b"file", ROOT),
            "rmdir": lambda: backend.rmdir(root, b"directory", ROOT),
            "rename": lambda: backend.rename(root, b"file", root, b"new", ROOT),
            "create": lambda: backend.create(root, b"new", 0o600, True, ROOT),
        }
        await calls[operation]()
        names = {entry.name for entry in (await backend.readdir(root, 0, b"", ROOT)).entries}
        expected = {"unlink": {b"directory"}, "rmdir": {b"file"}, "rename": {b"directory", b"new"}}
        assert names == expected.get(operation, {b"file", b"directory", b"new"})
        # Without a repetition the same answers are errors.
        with pytest.raises(OSError):
            await (calls[operation]() if operation != "create" else calls["mkdir"]())

    run(test)


def test_a_silent_server_is_connected_again(run: Run, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_SILENCE_SECONDS", 1.0)

    async def test(backend: NfsBackend) -> None:
        proxy.on_call = once(drop)
        await backend.getattr(backend.root, ROOT)
        assert backend.client.statistics().connections == 2

    run(test)


def test_a_refusing_server_is_waited_for(run: Run, proxy: Proxy) -> None:
    async def test(backend: NfsBackend) -> None:
        proxy.refuse()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(backend.getattr, backend.root, ROOT)
            await trio.sleep(0.5)
            assert backend.client.statistics().outstanding == 20
            proxy.accept()
        await backend.getattr(backend.root, ROOT)

    run(test)


def test_a_call_given_up_is_not_repeated(run: Run, proxy: Proxy) -> None:
    async def test(backend: NfsBackend) -> None:
        proxy.refuse()
        with trio.move_on_after(0.2):
            await backend.mkdir(backend.root, b"given-up", 0o755, ROOT)
        assert backend.client.statistics().outstanding == 0
        proxy.accept()
        with pytest.raises(FileNotFoundError):
            await backend.lookup(backend.root, b"given-up", ROOT)

    run(test)


# --- wild replies ---


def accepted(body: bytes) -> Rule:
    """Answer success with this body instead."""
    return lambda record, _: [Send(Record(record.data[:24] + body, record.xid, 0, 0).framed())]


def status(number: int) -> Rule:
    return lambda record, _: [Send(Record(record.data[:24] + struct.pack(">I", number) + bytes(8), 0, 0, 0).framed())]


def test_jukebox_is_a_wait(run: Run, proxy: Proxy) -> None:
    async def test(backend: NfsBackend) -> None:
        proxy.on_reply = once(status(10008))
        assert (await backend.getattr(backend.root, ROOT)).type is FileType.DIRECTORY

    run(test)


@pytest.mark.parametrize("accept_status", [1, 5], ids=["PROG_UNAVAIL", "SYSTEM_ERR"])
def test_a_starting_server_is_a_wait(run: Run, proxy: Proxy, accept_status: int) -> None:
    async def test(backend: NfsBackend) -> None:
        def reply(record: Record, _: random.Random) -> Iterable[Send | Cut]:
            return [Send(Record(record.data[:20] + struct.pack(">I", accept_status), 0, 0, 0).framed())]

        proxy.on_reply = once(reply)
        assert (await backend.getattr(backend.root, ROOT)).type is FileType.DIRECTORY

    run(test)


@pytest.mark.parametrize("number", [0, 1, 5, 77, 10006, 123456, 0xFFFFFFFF])
def test_statuses_become_errno(run: Run, proxy: Proxy, number: int) -> None:
    async def test(backend: NfsBackend) -> None:
        proxy.on_reply = status(number)
        with pytest.raises(OSError) as caught:
            await backend.getattr(backend.root, ROOT)
        assert caught.value.errno == (errno.EPERM if number == 1 else errno.EIO)
        proxy.on_reply = forward

    run(test)


@pytest.mark.parametrize("number", [0, 1, 0xFFFFFFFF])
def test_absurd_limits(run: Run, proxy: Proxy, number: int) -> None:
    def fsinfo(record: Record, rng: random.Random) -> Iterable[Send | Cut]:
        if record.procedure != 19:
            return forward(record, rng)
        limits = struct.pack(">2I7IQ3I", 0, 0, *(number,) * 7, number * 0x1_0000_0001, 0, 1, 0x1B)
        return accepted(limits)(record, rng)

    async def test(backend: NfsBackend) -> None:
        handle, _ = await backend.create(backend.root, b"f", 0o644, False, ROOT)
        await backend.write(handle, 0, b"content", False, ROOT)
        await backend.commit(handle, ROOT)
        assert await backend.read(handle, 0, 100, ROOT) == b"content"
        if number == 1:
            with pytest.raises(OSError, match="maxfilesize"):
                await backend.write(handle, (1 << 32) + 1, b"xx", False, ROOT)

    proxy.on_reply = fsinfo
    run(test)


def mangled(probability: float, limit: int) -> tuple[Rule, Callable[[], int]]:
    """Random damage behind the XID, to at most `limit` replies."""
    count = 0

    def rule(record: Record, rng: random.Random) -> Iterable[Send | Cut]:
        nonlocal count
        data = bytearray(record.data)
        if count < limit and rng.random() < probability:
            count += 1
            kind = rng.randrange(4)
            if kind == 0:
                del data[rng.randrange(4, len(data)) :]
            elif kind == 1:
                for _ in range(rng.randrange(1, 8)):
                    data[rng.randrange(24, max(25, len(data))) % len(data)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            elif kind == 2:
                at = rng.randrange(6, max(7, len(data) // 4)) * 4
                data[at : at + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), b"\x00\x01\x00\x00"))
            else:
                data += rng.randbytes(rng.randrange(1, 100))
        return [Send(Record(bytes(data), record.xid, 0, 0).framed())]

    return rule, lambda: count


@pytest.mark.parametrize("seed", range(4))
def test_wild_replies_end_as_values_or_errno(
    nfs_server: GaneshaServer, nfs_dir: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    rng = random.Random(seed)

    async def attempt(call: Callable[[], Awaitable[object]]) -> object:
        try:
            return await call()
        except OSError as error:
            assert error.errno
            return None

    async def test(backend: NfsBackend) -> None:
        root = backend.root
        handle, _ = await backend.create(root, b"file", 0o644, False, ROOT)
        link, _ = await backend.symlink(root, b"link", b"target", ROOT)
        await backend.write(handle, 0, os.urandom(50_000), True, ROOT)

        def calls(name: bytes) -> list[Callable[[], Awaitable[object]]]:
            return [
                partial(backend.getattr, handle, ROOT),
                partial(backend.setattr, handle, SetAttributes(mode=0o600), ROOT),
                partial(backend.lookup, root, b"file", ROOT),
                partial(backend.access, handle, 4, ROOT),
                partial(backend.readlink, link, ROOT),
                partial(backend.read, handle, 0, 60_000, ROOT),
                partial(backend.write, handle, 0, b"x" * 5000, False, ROOT),
                partial(backend.commit, handle, ROOT),
                partial(backend.readdir, root, 0, b"", ROOT),
                partial(backend.statistics, root, ROOT),
                partial(backend.mkdir, root, name, 0o755, ROOT),
                partial(backend.create, root, name, 0o644, True, ROOT),
                partial(backend.rename, root, name, root, name + b"x", ROOT),
                partial(backend.unlink, root, name, ROOT),
            ]

        rule, mangled_count = mangled(0.5, 120)
        wild.on_reply = rule
        serial = 0
        while mangled_count() < 120:
            serial += 1
            with trio.fail_after(30):
                await attempt(rng.choice(calls(b"n%d" % serial)))
        wild.on_reply = forward
        assert (await backend.getattr(root, ROOT)).type is FileType.DIRECTORY

    async def main() -> None:
        async with through(wild, nfs_server, nfs_dir) as backend:
            await test(backend)

    with pytest.MonkeyPatch.context() as patch, Proxy(nfs_server.nfs_port, seed=seed) as wild:
        patch.setattr(client_module, "_SILENCE_SECONDS", 1.0)
        patch.setattr(client_module, "_JUKEBOX_SECONDS", (0.001, 0.01))
        patch.setattr(client_module, "_BACKOFF_SECONDS", (0.001, 0.01))
        trio.run(main)


# --- forgotten writes ---


def _write_arguments(record: Record) -> tuple[int, int]:
    """Where `stable` and the data of a WRITE call begin."""
    (credential,) = struct.unpack_from(">I", record.data, 28)
    at = 32 + (credential + 3) // 4 * 4
    (verifier,) = struct.unpack_from(">I", record.data, at + 4)
    at += 8 + verifier
    (handle,) = struct.unpack_from(">I", record.data, at)
    at += 4 + (handle + 3) // 4 * 4 + 12
    return at, at + 8


class Forgetful:
    """A server that answers unstable writes and forgets them: what a crash before COMMIT looks like."""

    def __init__(self, proxy: Proxy) -> None:
        self.unstable: set[int] = set()
        self.stable = 0
        self.forgetting = True
        proxy.on_call, proxy.on_reply = self.call, self.reply

    def call(self, record: Record, rng: random.Random) -> Iterable[Send | Cut]:
        if record.procedure != WRITE:
            return forward(record, rng)
        stable, data = _write_arguments(record)
        if struct.unpack_from(">I", record.data, stable)[0] == FILE_SYNC:
            self.stable += 1
            return forward(record, rng)
        if not self.forgetting:
            return forward(record, rng)
        self.unstable.add(record.xid)
        forgotten = record.data[:data] + bytes(len(record.data) - data)
        return [Send(Record(forgotten, record.xid, WRITE, 0).framed())]

    def reply(self, record: Record, rng: random.Random) -> Iterable[Send | Cut]:
        if record.xid in self.unstable:
            answer = record.data[:-12] + struct.pack(">I", UNSTABLE) + b"old-boot"
            return [Send(Record(answer, record.xid, WRITE, 0).framed())]
        return forward(record, rng)


def test_forgotten_writes_are_written_again(run: Run, proxy: Proxy) -> None:
    async def test(backend: NfsBackend) -> None:
        handle, _ = await backend.create(backend.root, b"f", 0o644, False, ROOT)
        server = Forgetful(proxy)
        expected = bytearray(300_000)
        rng = random.Random(5)
        for _ in range(12):
            offset = rng.randrange(250_000)
            piece = rng.randbytes(rng.randrange(1, 50_000))
            expected[offset : offset + len(piece)] = piece
            await backend.write(handle, offset, piece, False, ROOT)
        # Overlapping a forgotten write, and not forgotten: repeating the older one must not cover it.
        server.forgetting = False
        expected[1000:1004] = b"last"
        await backend.write(handle, 1000, b"last", False, ROOT)
        await backend.commit(handle, ROOT)
        assert server.stable >= 13
        size = (await backend.getattr(handle, ROOT)).size
        assert await backend.read(handle, 0, 1 << 20, ROOT) == expected[:size]
        repeated = server.stable
        await backend.commit(handle, ROOT)
        assert server.stable == repeated

    run(test)


def test_truncation_after_a_crash_is_not_undone(run: Run, proxy: Proxy) -> None:
    async def test(backend: NfsBackend) -> None:
        handle, _ = await backend.create(backend.root, b"f", 0o644, False, ROOT)
        Forgetful(proxy)
        await backend.write(handle, 0, b"x" * 10_000, False, ROOT)
        await backend.setattr(handle, SetAttributes(size=100), ROOT)
        await backend.commit(handle, ROOT)
        assert await backend.read(handle, 0, 20_000, ROOT) == b"x" * 100

    run(test)


def test_a_failed_commit_is_said_once(run: Run, proxy: Proxy) -> None:
    async def test(backend: NfsBackend) -> None:
        handle, _ = await backend.create(backend.root, b"f", 0o644, False, ROOT)
        await backend.write(handle, 0, b"x" * 10_000, False, ROOT)
        proxy.on_reply = once(status(28), procedures=[COMMIT])
        with pytest.raises(OSError, match="nfsstat3 28"):
            await backend.commit(handle, ROOT)
        await backend.commit(handle, ROOT)

    run(test)


def test_a_truncation_leaves_the_error_of_an_early_commit(run: Run, proxy: Proxy) -> None:
    async def test(backend: NfsBackend) -> None:
        handle, _ = await backend.create(backend.root, b"f", 0o644, False, ROOT)
        await backend.write(handle, 0, b"x" * 10_000, False, ROOT)
        proxy.on_reply = once(status(28), procedures=[COMMIT])
        await backend.settle()
        assert (await backend.setattr(handle, SetAttributes(size=0), ROOT)).size == 0
        with pytest.raises(OSError, match="nfsstat3 28"):
            await backend.commit(handle, ROOT)

    run(test)


def test_short_writes_are_continued(run: Run, proxy: Proxy) -> None:
    def shorten(record: Record, rng: random.Random) -> Iterable[Send | Cut]:
        data = record.data
        (count,) = struct.unpack_from(">I", data, len(data) - 16)
        answer = data[:-16] + struct.pack(">I", count // 3) + data[-12:]
        return [Send(Record(answer, record.xid, WRITE, 0).framed())]

    async def test(backend: NfsBackend) -> None:
        for stable in (True, False):
            handle, _ = await backend.create(backend.root, b"f%d" % stable, 0o644, False, ROOT)
            content = os.urandom(100_000)
            proxy.on_reply = once(shorten, procedures=[WRITE])
            await backend.write(handle, 0, content, stable, ROOT)
            await backend.commit(handle, ROOT)
            assert await backend.read(handle, 0, 1 << 20, ROOT) == content

    run(test)


def test_the_decoders_of_libnfs_are_guarded() -> None:
    # In a process of its own: a libnfs that another module has loaded before keeps its own decoders.
    check = "from fuseswap.backends.nfs._libnfs import lib; raise SystemExit(not lib.guards_stand())"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=20)
