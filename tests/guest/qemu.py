"""One boot of the guest under QEMU without KVM, and what came of it."""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from attrs import frozen

from tests.guest.scenario import FW_CFG_NAME, Scenario, to_json

HOST: Final = "10.0.2.2"
"""This machine's loopback, as the guest sees it (QEMU's user networking)."""

KERNEL_COMMAND_LINE: Final = (
    "console=ttyS0 panic=1 loglevel=7"
    # Under emulation these cost most, and none of them concerns memory: page tables switched at each system call,
    # and a clock (HPET) that is a device, because the kernel doubts that two emulated CPUs agree on the time.
    " mitigations=off tsc=reliable clocksource=tsc"
)

LOOK_SECONDS: Final = 2
SILENT_LOOKS_MAX: Final = 300
"""A guest that says nothing for so many looks is dead: it speaks every ten seconds while a hog runs. Looks are counted
and not time, because whoever stops QEMU to have the machine for himself stops this too."""

Ending = Literal["finished", "failed", "hung", "silent"]


@frozen
class Boot:
    """The files that a guest boots from."""

    kernel: Path
    initramfs: Path
    root: Path
    scratch: Path
    memory_mib: int = 256
    cpus: int = 2


@frozen
class Run:
    """What a guest left behind."""

    ending: Ending
    """finished: every page right. failed: it said that one was not, or ended early. hung: nothing moved. silent: no
    word for SILENT_LOOKS_MAX."""
    events: tuple[dict[str, Any], ...]
    console: str
    """Of the guest, after what QEMU itself had to say."""
    seconds: float

    def of(self, kind: str) -> Iterator[dict[str, Any]]:
        """The events of a kind."""
        return (event for event in self.events if event["event"] == kind)


def boot(files: Boot, scenario: Scenario, directory: Path, *, delay_ms: int = 0) -> Run:
    """Boot, and wait for the end as long as the guest speaks. `directory` gets the console and the events.

    Packets to and from the guest leave only once in `delay_ms`: a server far away.
    """
    (directory / "scenario").write_text(to_json(scenario))
    delay = ("-object", f"filter-buffer,id=delay,netdev=net,interval={delay_ms * 1000}")
    console, events, complaints = directory / "console", directory / "events", directory / "qemu.log"
    start = time.monotonic()
    with complaints.open("wb") as log:
        process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-M", "q35"),
                *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(files.cpus)),
                *("-m", str(files.memory_mib), "-nodefaults", "-display", "none", "-no-reboot"),
                *("-kernel", files.kernel, "-initrd", files.initramfs),
                *("-append", KERNEL_COMMAND_LINE),
                *("-serial", f"file:{console}", "-serial", f"file:{events}"),
                *("-drive", f"file={files.root},format=raw,if=virtio,readonly=on"),
                *("-drive", f"file={files.scratch},format=raw,if=virtio,snapshot=on"),
                *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"),
                *(delay if delay_ms else ()),
                *("-fw_cfg", f"name={FW_CFG_NAME},file={directory / 'scenario'}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            silent = not _ends(process, events)
        finally:
            process.kill()
            process.wait()
    text = _text(events)
    found = tuple(_events(text))
    return Run(
        _ending(silent, text, found),
        found,
        _text(complaints) + _text(console),
        time.monotonic() - start,
    )


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _ends(process: "subprocess.Popen[bytes]", events: Path) -> bool:
    """Whether QEMU ends before the guest has been silent for too long."""
    size_bytes, looks = 0, 0
    while looks < SILENT_LOOKS_MAX:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_SECONDS)
            return True
        before, size_bytes = size_bytes, events.stat().st_size if events.exists() else 0
        looks = looks + 1 if size_bytes == before else 0
    return False


def _events(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        # A guest that is killed may leave half a line.
        if line.startswith("{") and line.endswith("}"):
            yield json.loads(line)


def _ending(silent: bool, text: str, events: tuple[dict[str, Any], ...]) -> Ending:
    if any(event["event"] == "hang" for event in events):
        return "hung"
    if silent:
        return "silent"
    return "finished" if "@@RC 0" in text else "failed"
