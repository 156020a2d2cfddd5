"""The benchmark measures what it says and leaves nothing."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseswap.cli import bench
from fuseswap.cli.main import main
from fuseswap.host import rundir
from fuseswap.host.bounded import HostError
from fuseswap.host.loop import detach, loop_devices
from tests.cli.swapped import is_clean


def test_patterns_are_measured(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "PATTERNS", bench.PATTERNS[2::3])
    monkeypatch.setattr(bench, "_FILE_BYTES", 32 << 20)
    assert main(("bench", "--seconds", "1", "--json")) == 0
    printed = capfd.readouterr()
    samples = json.loads(printed.out)["samples"]
    assert [sample["pattern"] for sample in samples] == [pattern.name for pattern in bench.PATTERNS]
    assert all(sample["iops"] > 0 and sample["p50_us"] > 0 for sample in samples)
    (name,) = {line.split()[0].rstrip(":") for line in printed.err.splitlines() if line.startswith("bench-")}
    assert is_clean(name)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The loop device of `mine`, whose engine is a file."""
    monkeypatch.setattr(rundir, "RUN_DIRECTORY", str(tmp_path / "run"))
    rundir.engine_mountpoint("mine").mkdir(parents=True)
    rundir.engine_file("mine").write_bytes(bytes(1 << 20))
    yield rundir.attach_engine("mine").path
    for device in loop_devices():
        if device.backing_file.startswith(f"{tmp_path}/"):
            detach(device.path)


def test_a_device_that_is_taken_away_meanwhile(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `down` in another shell, and then by somebody's losetup, as far as the kernel lets them."""
    other = tmp_path / "other"
    other.write_bytes(bytes(1 << 20))

    def give_away(_: str) -> None:
        detach(device)
        subprocess.run(["losetup", device, other], check=False, capture_output=True, timeout=20)

    monkeypatch.setattr(bench, "PATTERNS", bench.PATTERNS[3::2])
    monkeypatch.setattr(bench, "say", give_away)
    assert all(sample.iops > 0 for sample in bench.measure("mine", 1))
    assert other.read_bytes() == bytes(1 << 20)
    assert rundir.engine_file("mine").read_bytes() != bytes(1 << 20)
    assert rundir.engine_device("mine") is None, "it goes with its last user"
    with pytest.raises(HostError, match="mine: its loop device has gone"):
        bench.measure("mine", 1)
