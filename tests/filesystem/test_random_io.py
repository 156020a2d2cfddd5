"""Random reads, writes, cuts and mappings of one file against a model in memory: what fsx does."""

import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.filesystem.conftest import World

FILE_BYTES_MAX = 1 << 20
OPERATION_BYTES_MAX = 1 << 16


class Exerciser:
    """A file open twice, and the bytes that it must hold."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.random = random.Random(seed)
        self.model = bytearray()
        self.history: list[str] = []
        self.descriptors = [os.open(path, os.O_CREAT | os.O_RDWR), os.open(path, os.O_RDWR)]

    def run(self, steps: int, watch: Callable[[], None]) -> None:
        """`watch` is called now and then."""
        operations = [
            *(self.write,) * 6,
            *(self.read,) * 6,
            *(self.map_read, self.map_write) * 2,
            *(self.append, self.truncate, self.direct_write, self.direct_read, self.copy) * 1,
            *(self.stat, self.sync, self.reopen),
        ]
        for step in range(steps):
            operation = self.random.choice(operations)
            self.history = [*self.history[-20:], operation.__name__]
            operation()
            if step % 500 == 0:
                watch()
        assert self.path.read_bytes() == self.model

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)

    def note(self, *values: int) -> None:
        self.history[-1] += str(values)

    def check(self, found: bytes, start: int) -> None:
        expected = self.model[start : start + len(found)]
        if found != expected:
            bad = next(index for index, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
            raise AssertionError(f"byte {start + bad} of {len(self.model)} differs after {self.history}")

    @property
    def descriptor(self) -> int:
        return self.random.choice(self.descriptors)

    def extent(self, end: int, unit: int = 1) -> tuple[int, int]:
        """Offset and length, in whole units, of a part that begins before `end`."""
        start = self.random.randrange(max(1, end // unit)) * unit
        # Small ones are as many as large ones, and page boundaries are met often.
        most = self.random.choice((16, 4096, OPERATION_BYTES_MAX))
        length = self.random.choice((self.random.randrange(most), 4096)) // unit * unit
        return start, min(length, FILE_BYTES_MAX - start)

    def put(self, start: int, data: bytes) -> None:
        if data:
            self.model.extend(bytes(max(0, start - len(self.model))))
            self.model[start : start + len(data)] = data

    def write(self) -> None:
        start, length = self.extent(FILE_BYTES_MAX if self.random.random() < 0.1 else len(self.model) + 1)
        self.note(start, length)
        data = self.random.randbytes(length)
        assert os.pwrite(self.descriptor, data, start) == length
        self.put(start, data)

    def append(self) -> None:
        data = self.random.randbytes(self.random.randrange(1, 5000))
        if len(self.model) + len(data) > FILE_BYTES_MAX:
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)
        self.put(len(self.model), data)

    def read(self) -> None:
        start, length = self.extent(len(self.model) + 1)
        self.note(start, length)
        found = os.pread(self.descriptor, length, start)
        assert len(found) == max(0, min(length, len(self.model) - start)), self.history
        self.check(found, start)

    def truncate(self) -> None:
        # Often near the end, and seldom to nothing: a file that is always small tests little.
        size = self.random.choice((self.random.randrange(FILE_BYTES_MAX), len(self.model) * 9 // 10))
        self.note(size)
        if self.random.random() < 0.5:
            os.truncate(self.path, size)
        else:
            os.ftruncate(self.descriptor, size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    def map_read(self) -> None:
        if self.model:
            start, length = self.extent(len(self.model))
            self.note(start, length)
            with mmap.mmap(self.descriptor, len(self.model), prot=mmap.PROT_READ) as view:
                self.check(view[start : start + length], start)

    def map_write(self) -> None:
        if self.model:
            start, length = self.extent(len(self.model))
            data = self.random.randbytes(min(length, len(self.model) - start))
            self.note(start, len(data))
            with mmap.mmap(self.descriptor, len(self.model)) as view:
                view[start : start + len(data)] = data
                view.flush()
            self.put(start, data)

    def direct_write(self) -> None:
        start, length = self.extent(len(self.model) + 1, 4096)
        self.note(start, length)
        self.direct(os.O_WRONLY, start, length, self.random.randbytes(length))

    def direct_read(self) -> None:
        start, length = self.extent(len(self.model) + 1, 4096)
        self.note(start, length)
        self.direct(os.O_RDONLY, start, length, None)

    def direct(self, flags: int, start: int, length: int, data: bytes | None) -> None:
        if not length:
            return
        descriptor = os.open(self.path, flags | os.O_DIRECT)
        try:
            with mmap.mmap(-1, length) as buffer:
                if data is None:
                    count = os.preadv(descriptor, [buffer], start)
                    self.check(buffer[:count], start)
                    assert count == max(0, min(length, len(self.model) - start)), self.history
                else:
                    buffer[:] = data
                    assert os.pwritev(descriptor, [buffer], start) == length
                    self.put(start, data)
        finally:
            os.close(descriptor)

    def copy(self) -> None:
        start, length = self.extent(len(self.model) + 1)
        target, _ = self.extent(len(self.model) + 1)
        if abs(start - target) <= length or not length:
            return
        length = min(length, FILE_BYTES_MAX - target)
        self.note(start, target, length)
        one, two = self.descriptors
        count = os.copy_file_range(one, two, length, start, target)
        self.put(target, bytes(self.model[start : start + count]))

    def stat(self) -> None:
        assert self.path.stat().st_size == os.fstat(self.descriptor).st_size == len(self.model), self.history

    def sync(self) -> None:
        os.fsync(self.descriptor)

    def reopen(self) -> None:
        index = self.random.randrange(2)
        os.close(self.descriptors[index])
        self.descriptors[index] = os.open(self.path, os.O_RDWR)


def exercise(world: World, here: Path, seed: int, steps: int) -> None:
    exerciser = Exerciser(here / "file", seed)
    try:
        exerciser.run(steps, world.mounted.watch if world.mounted is not None else lambda: None)
    finally:
        exerciser.close()


@pytest.mark.parametrize(("world", "steps"), [("nfs", 3000), ("memory", 500), ("local", 500)], indirect=["world"])
def test_random_io(world: World, here: Path, steps: int) -> None:
    exercise(world, here, 1, steps)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 104))
def test_long_random_io(world: World, here: Path, seed: int) -> None:
    exercise(world, here, seed, 10_000)
