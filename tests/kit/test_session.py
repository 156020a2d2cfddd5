"""A session that is ended from outside leaves nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit import rescue

ROOT = Path(__file__).parents[2]

_SWAPS = """
import signal

from tests.kit.plain_swap import run


def test_swaps(disk_dir):
    file = disk_dir / "swap"
    file.write_bytes(bytes(8 << 20))
    file.chmod(0o600)
    run("mkswap", str(file))
    device = run("losetup", "--find", "--show", str(file)).strip()
    run("swapon", device)
    with open({fifo!r}, "w") as stream:
        print(device, file=stream)
    signal.pause()
"""


@pytest.mark.swap
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["by itself", "with a worker"])
def test_sigterm_takes_swap_off(workers: tuple[str, ...], tmp_path: Path) -> None:
    fifo, test = tmp_path / "fifo", tmp_path / "test_inner.py"
    os.mkfifo(fifo)
    test.write_text(_SWAPS.format(fifo=str(fifo)))
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", *workers, str(test)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            device = fifo.read_text().strip()
            assert device in rescue.swap_areas()
        finally:
            process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, output
    assert device not in rescue.swap_areas() + list(rescue.loop_devices())
