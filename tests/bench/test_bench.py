"""The benchmark runs, and its limit makes the same promise as a page of swap."""

import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from fuseswap.host.ganesha import GaneshaServer
from tests.kit.proxy import READ, WRITE, Cut, Proxy, Record, Send
from tests.kit.rpc import FILE_SYNC, stable_how

ROOT = Path(__file__).parents[2]
SIZE_BYTES = 4 << 20


def bench(*arguments: str) -> dict[str, list[dict[str, object]]]:
    command = [sys.executable, str(ROOT / "bench/run.py"), "--rounds", "1", "--seconds", "0.2"]
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command += ["--json", file.name, *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        result: dict[str, list[dict[str, object]]] = json.load(file)
    for entries in result.values():
        assert all(str(entry["side"]) in done.stdout for entry in entries)
    return result


def test_the_limit_is_measured_and_is_its_own_unit() -> None:
    result = bench("--part", "io", "--sides", "limit", "--size", "8", "--patterns", "^random read 4k depth")

    assert [entry["pattern"] for entry in result["io"]] == ["random read 4k depth 16", "random read 4k depth 1"]
    assert all(entry["iops_ratio"] == 1 for entry in result["io"])


def test_the_limit_sends_each_block_once_and_file_sync(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    bench("--part", "io", "--sides", "limit", "--patterns", "nothing")  # compiles it
    (nfs_dir / "file").write_bytes(bytes(SIZE_BYTES))
    procedures: Counter[int] = Counter()
    stable: set[int] = set()

    def watch(record: Record, _: random.Random) -> Iterable[Send | Cut]:
        procedures[record.procedure] += 1
        if record.procedure == WRITE:
            stable.add(stable_how(record.data))
        return [Send(record.framed())]

    with Proxy(nfs_server.nfs_port) as proxy:
        proxy.on_call = watch
        url = nfs_server.url(f"{nfs_dir.name}/file")
        url = url.replace(f"nfsport={nfs_server.nfs_port}", f"nfsport={proxy.port}")
        reads = limit(url, "read")
        writes = limit(url, "write")

    assert (procedures[READ], procedures[WRITE]) == (reads, writes)
    assert stable == {FILE_SYNC}


@pytest.mark.machine
def test_fuseswap_is_measured_beside_it_and_swaps_without_a_wrong_page() -> None:
    result = bench(
        *("--sides", "limit", "fuseswap", "--size", "64", "--patterns", "^random read 4k depth 16"),
        *("--hog", "64", "--limit", "32", "--touches", "100"),
    )

    assert [entry["side"] for entry in result["io"]] == ["limit", "fuseswap"]
    (swap,) = result["swap"]
    assert swap["side"] == "fuseswap"
    assert swap["wrong_pages"] == 0
    assert all(swap[f"{phase}_mb_per_s"] for phase in ("fill", "sequential", "random"))


def limit(url: str, kind: str) -> int:
    numbers = ("4096", "4", "0.1", str(SIZE_BYTES))
    command = [str(ROOT / "bench/limit"), url, kind, "random", *numbers]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    operations: int = json.loads(done.stdout)["operations"]
    return operations
