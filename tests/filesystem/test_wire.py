"""What of a user's work goes over the wire, and what does not."""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from fuseswap.host.ganesha import GaneshaServer
from tests.filesystem.conftest import Mount
from tests.kit.proxy import WRITE, Cut, Proxy, Record, Send
from tests.kit.rpc import FILE_SYNC, UNSTABLE, stable_how
from tests.kit.wait import wait_until

GETATTR = 1
COMMIT = 21
MIB = 1 << 20

Said = Counter[object]


@pytest.fixture
def wire(nfs_server: GaneshaServer, nfs_dir: Path, mount: Mount) -> Iterator[tuple[Path, Said]]:
    """A mount, and how often each procedure was called; WRITE as (WRITE, stable_how)."""
    said: Said = Counter()

    def watch(record: Record, _: random.Random) -> Iterable[Send | Cut]:
        said[(WRITE, stable_how(record.data)) if record.procedure == WRITE else record.procedure] += 1
        return [Send(record.framed())]

    with Proxy(nfs_server.nfs_port) as proxy:
        proxy.on_call = watch
        url = nfs_server.url(nfs_dir.name).replace(f"nfsport={nfs_server.nfs_port}", f"nfsport={proxy.port}")
        yield mount(url).point, said


def of_writing(said: Said) -> dict[object, int]:
    return {call: count for call, count in said.items() if call == COMMIT or isinstance(call, tuple)}


@pytest.mark.parametrize("end", [os.close, os.fsync])
def test_a_small_file_is_one_stable_write(wire: tuple[Path, Said], end: Callable[[int], None]) -> None:
    point, said = wire
    file = os.open(point / "file", os.O_CREAT | os.O_WRONLY)
    for _ in range(10):
        os.write(file, b"x" * 1000)
    end(file)

    assert of_writing(said) == {(WRITE, FILE_SYNC): 1}


def test_what_was_sent_unstable_is_committed(wire: tuple[Path, Said]) -> None:
    point, said = wire
    with (point / "file").open("wb", buffering=0) as file:
        file.write(bytes(2 * MIB + 1000))
        os.fsync(file.fileno())
        assert of_writing(said) == {(WRITE, UNSTABLE): 3, COMMIT: 1}
        file.write(bytes(1000))

    assert of_writing(said) == {(WRITE, UNSTABLE): 3, COMMIT: 1, (WRITE, FILE_SYNC): 1}


def test_a_large_file_is_committed_while_it_is_written(wire: tuple[Path, Said]) -> None:
    point, said = wire
    with (point / "file").open("wb", buffering=0) as file:

        def committed_twice() -> bool:
            # A COMMIT that takes long stands for all that is written meanwhile.
            file.write(bytes(MIB))
            return said[COMMIT] >= 2

        wait_until(committed_twice, seconds=20, what="two COMMITs")
    assert of_writing(said).keys() == {(WRITE, UNSTABLE), COMMIT}


def test_a_write_tells_the_attributes_too(wire: tuple[Path, Said]) -> None:
    point, said = wire
    with (point / "file").open("wb", buffering=0) as file:
        asked = said[GETATTR]
        file.write(b"x" * 1000)
        assert os.fstat(file.fileno()).st_size == 1000
        assert (said[GETATTR], said[(WRITE, UNSTABLE)]) == (asked, 1)
