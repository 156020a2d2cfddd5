"""The benchmark of the ordinary mount runs."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKLOADS = ("write 1 MiB", "read 1 MiB", "write 4 KiB", "untar", "find", "git status")


def test_each_workload_is_measured_beside_the_limit_and_a_peer(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench/mount.py"), "--rounds", "1", "--size", "8", "--files", "50"]
    done = subprocess.run(
        [*command, "--sides", "limit", "fuseswap", "passthrough", "--json", str(tmp_path / "figures")],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr

    entries = json.loads((tmp_path / "figures").read_text())
    assert all(entry["seconds"] > 0 and entry["ratio"] > 0 for entry in entries)
    assert [entry["workload"] for entry in entries if entry["side"] == "fuseswap"] == list(WORKLOADS)
    assert [entry["workload"] for entry in entries if entry["side"] == "limit"] == ["write 1 MiB", "read 1 MiB"]
