"""The benchmark measures what it says and leaves nothing."""

import json

import pytest

from fuseswap.cli import bench
from fuseswap.cli.main import main
from fuseswap.host import rundir


def test_patterns_are_measured(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "PATTERNS", bench.PATTERNS[2::3])
    monkeypatch.setattr(bench, "_FILE_BYTES", 32 << 20)
    assert main(("bench", "--seconds", "1", "--json")) == 0
    samples = json.loads(capfd.readouterr().out)["samples"]
    assert [sample["pattern"] for sample in samples] == [pattern.name for pattern in bench.PATTERNS]
    assert all(sample["iops"] > 0 and sample["p50_us"] > 0 for sample in samples)
    assert not [name for name in rundir.names() if name.startswith("bench-")]
