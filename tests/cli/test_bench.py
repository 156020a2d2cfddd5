"""The benchmark measures what it says and leaves nothing."""

import json

import pytest

from fuseswap.cli import bench
from fuseswap.cli.main import main
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
