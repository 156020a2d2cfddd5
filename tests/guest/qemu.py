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

SILENCE_SECONDS: Final = 600
"""A guest that says nothing for so long is dead. It speaks every ten seconds while a hog runs."""

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
    word for SILENCE_SECONDS."""
    events: tuple[dict[str, Any], ...]
    console: str
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
    console, events = directory / "console", directory / "events"
    start = time.monotonic()
    with (directory / "qemu.log").open("wb") as log:
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
    text = events.read_text(errors="replace") if events.exists() else ""
    found = tuple(_events(text))
    return Run(
        _ending(silent, text, found),
        found,
        console.read_text(errors="replace") if console.exists() else "",
        time.monotonic() - start,
    )


def _ends(process: "subprocess.Popen[bytes]", events: Path) -> bool:
    """Whether QEMU ends before the guest has been silent for too long."""
    size_bytes, heard_at = 0, time.monotonic()
    while time.monotonic() - heard_at < SILENCE_SECONDS:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
            return True
        if events.exists() and events.stat().st_size != size_bytes:
            size_bytes, heard_at = events.stat().st_size, time.monotonic()
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
