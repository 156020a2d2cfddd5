"""Pages that go out and come in when a test says so, without any pressure.

MADV_PAGEOUT alone proves nothing about reading: the page stays in the swap cache, and a touch takes it from
there. So the owner of the pages lives in a memory cgroup of its own with everything else locked, and reclaim of
that cgroup drops what the swap cache still holds.
"""

import mmap
import os
import random
import secrets
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from fuseswap.cli.trace import Assembler, Journey
from fuseswap.host import rundir
from fuseswap.host.cgroup import MemoryCgroup
from fuseswap.host.ganesha import GaneshaServer
from fuseswap.host.swap import PRIORITY_MAX
from fuseswap.swap.counters import COUNTERS_BYTES, Counters, Word
from fuseswap.swap.units import PAGE_SIZE
from tests.cli.command import fuseswap
from tests.engine.nfs_codec import Arguments, decode_call
from tests.kit.proxy import READ, WRITE, Cut, Proxy, Record, Send, forward
from tests.kit.rescue import Leftovers
from tests.kit.wait import wait_until

COMMIT = 21
"""NFSPROC3_COMMIT (RFC 1813 section 3.3.21)."""

_OWNER = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None, use_errno=True)
size = int(sys.argv[1]) * 4096
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
content = bytearray(open("/dev/urandom", "rb").read(size))
memory[:] = content
# Everything but the pages themselves stays in memory.
assert libc.mlockall(1) == 0
assert libc.munlock(ctypes.c_void_p(address), ctypes.c_size_t(size)) == 0
print("ready", flush=True)
for line in sys.stdin:
    command, first, count = line.split()
    start, end = int(first) * 4096, (int(first) + int(count)) * 4096
    if command == "out":
        memory.madvise(21, start, end - start)
        print("done", flush=True)
    elif command == "dirty":
        content[start : end : 4096] = bytes(byte ^ 255 for byte in content[start : end : 4096])
        memory[start : end : 4096] = content[start : end : 4096]
        print("done", flush=True)
    elif command == "compare":
        print("same" if memory[start:end] == content[start:end] else "different", flush=True)
    elif command == "digest":
        print(bytes(content[start : start + 16]).hex(), flush=True)
"""


@attrs.define
class Pages:
    """Unique pages of a process of their own, numbered from 0."""

    process: "subprocess.Popen[str]"
    cgroup: MemoryCgroup
    count: int

    def out(self, first: int = 0, count: int = 0) -> None:
        """MADV_PAGEOUT: written out, but still in the swap cache."""
        assert self._ask("out", first, count) == "done"

    def leave_cache(self) -> None:
        """The swap cache lets go of clean pages: from now on they are on swap alone."""
        self.cgroup.reclaim()

    def dirty(self, first: int = 0, count: int = 0) -> None:
        """Change the first byte of each page."""
        assert self._ask("dirty", first, count) == "done"

    def are_right(self, first: int = 0, count: int = 0) -> bool:
        """Touch them in order and compare every byte."""
        return self._ask("compare", first, count) == "same"

    def begin(self, first: int) -> bytes:
        """The first 16 bytes that a page must hold; the page is not touched."""
        return bytes.fromhex(self._ask("digest", first, 1))

    def _ask(self, command: str, first: int, count: int) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(command, first, count or self.count, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()


@contextmanager
def pages(count: int) -> Iterator[Pages]:
    with MemoryCgroup(f"fuseswap-pages-{secrets.token_hex(4)}", 512 << 20) as cgroup, ExitStack() as stack:
        process = subprocess.Popen(
            cgroup.command([sys.executable, "-c", _OWNER, str(count)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.enter_context(process)
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Pages(process, cgroup, count)


@attrs.frozen
class LiveSwap:
    """A swap file on a real server, behind a proxy that sees each record."""

    name: str
    proxy: Proxy
    file: Path
    """The file as the server has it."""

    def words(self) -> dict[str, int]:
        snapshot = rundir.read_counters(self.name)
        assert snapshot is not None
        return snapshot.words

    @contextmanager
    def journeys(self) -> Iterator[list[Journey]]:
        """A list that holds, after the context, all requests that began in it; it ends when they are answered."""
        found: list[Journey] = []
        with (rundir.directory(self.name) / "counters").open("r+b") as stream:
            mapping = mmap.mmap(stream.fileno(), COUNTERS_BYTES)
        with mapping:
            counters = Counters(mapping)
            sequence = counters.words[Word.TRACE_SEQUENCE]
            counters.words[Word.TRACE] = 1
            try:
                yield found
                self.settle()
            finally:
                counters.words[Word.TRACE] = 0
                records = list(counters.trace_since(sequence))
                counters.close()
        assembler = Assembler(next_sequence=sequence)
        found += assembler.feed(records)
        assert not assembler.lost_records

    @contextmanager
    def calls(self) -> Iterator[list[Arguments]]:
        """A list that holds, after the context, every READ and WRITE that went to the server in it."""
        seen: list[Arguments] = []

        def watch(record: Record, _: random.Random) -> Iterable[Send | Cut]:
            # The filesystem process calls too, but never for a page.
            assert record.procedure != COMMIT
            if record.procedure in (READ, WRITE):
                seen.append(decode_call(record.data))
            return [Send(record.framed())]

        self.proxy.on_call = watch
        yield seen
        self.settle()
        self.proxy.on_call = forward

    @contextmanager
    def no_faults(self) -> Iterator[None]:
        """The engine has no page fault meanwhile, minor or major."""
        before = self._faults()
        yield
        assert self._faults() == before

    def _faults(self) -> int:
        # proc(5), stat, fields 10 and 12.
        fields = Path(f"/proc/{self.words()['engine_pid']}/stat").read_text().rpartition(")")[2].split()
        return int(fields[7]) + int(fields[9])

    def settle(self) -> None:
        """Wait until nothing is under way: neither in the block layer nor in the engine."""
        wait_until(lambda: not self._in_flight(), seconds=20, what="the end of all requests")

    def _in_flight(self) -> int:
        device = rundir.engine_device(self.name)
        assert device is not None
        reads, writes = Path("/sys/block", Path(device.path).name, "inflight").read_text().split()
        return int(reads) + int(writes) + self.words()["requests"]


@contextmanager
def live_swap(server: GaneshaServer, directory: Path) -> Iterator[LiveSwap]:
    """`fuseswap up` of 16 MiB, used before any other swap. The test must be marked `swap`."""
    name = f"page-{secrets.token_hex(4)}"
    with Proxy(server.nfs_port) as proxy:
        url = server.url(f"{directory.name}/{name}").replace(f"nfsport={server.nfs_port}", f"nfsport={proxy.port}")
        result = fuseswap("up", url, "--size", "16M", "--priority", str(PRIORITY_MAX))
        assert result.code == 0, result
        try:
            yield LiveSwap(name, proxy, directory / name)
            result = fuseswap("down", name)
            assert result.code == 0, result
        finally:
            Leftovers.of(rundir.directory(name)).free()
            fuseswap("down", "--force", name)


def page_on(swap: LiveSwap, journey: Journey) -> bytes:
    """What the server's file holds where a page was written: its first 16 bytes."""
    descriptor = os.open(swap.file, os.O_RDONLY)
    try:
        return os.pread(descriptor, PAGE_SIZE, journey.offset)[:16]
    finally:
        os.close(descriptor)
