"""Runs in the guest: turns swap on as a user would, lets the hogs loose, and watches.

Locked in memory, real-time and with its files open beforehand, because it has to tell where everything stands
when nothing else can run. Events go to the second serial port, one JSON object a line.
"""

import json
import mmap
import os
import resource
import select
import signal
import subprocess
import sys
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import define, field

from fuseswap.engine import libc, sysctls
from fuseswap.host import hog
from fuseswap.swap.counters import COUNTERS_BYTES, Counters
from fuseswap.swap.units import RUN_DIRECTORY
from tests.guest.scenario import FW_CFG_NAME, Scenario, Stage, from_json

NAME = "guest"
COMMAND_SECONDS = 400
"""For `up`, `status` or `down`, which take some seconds where the host has nothing else to do."""
VMSTAT = ("pswpout", "pswpin", "pgmajfault", "allocstall_normal", "allocstall_dma32", "oom_kill")

# What is read is the guest's root disk; what is written lies on a disk of its own. Pauses and nice leave the emulated
# CPUs to the hogs, which wait for pages most of the time: it is memory that these shall take.
PAGE_CACHE_LOAD = (
    "while :; do dd if=/dev/vda of=/dev/null bs=1M; sleep 1; done & "
    "while :; do dd if=/dev/zero of=/scratch/file bs=1M count=128 conv=notrunc; sleep 1; done"
)
FORK_STORM = "while :; do for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do /bin/busybox sleep 0.2 & done; wait; done"


class Hang(Exception):
    """Nothing moves any more."""


@define
class Machine:
    """The guest itself, through files that are opened once."""

    events: int
    vmstat: int
    trigger: int
    scenario: Scenario

    @classmethod
    def open(cls) -> "Machine":
        events = os.open("/dev/ttyS1", os.O_WRONLY | os.O_NOCTTY)
        tty.setraw(events)
        scenario = Path(f"/sys/firmware/qemu_fw_cfg/by_name/{FW_CFG_NAME}/raw").read_text()
        return cls(
            events,
            os.open("/proc/vmstat", os.O_RDONLY),
            os.open("/proc/sysrq-trigger", os.O_WRONLY),
            from_json(scenario),
        )

    def say(self, event: str, **details: Any) -> None:
        data = json.dumps({"event": event, "at": round(time.monotonic(), 2), **details}).encode() + b"\n"
        while data:
            data = data[os.write(self.events, data) :]

    def vm(self) -> dict[str, int]:
        words = dict(line.split() for line in os.pread(self.vmstat, 1 << 16, 0).splitlines())
        return {name: int(words.get(name.encode(), 0)) for name in VMSTAT}

    def sysrq(self, keys: str) -> None:
        for key in keys:
            os.write(self.trigger, key.encode())


@define
class Hog:
    """A running hog and what it has reported."""

    process: "subprocess.Popen[bytes]"
    rest: bytes = b""
    ended: list[dict[str, Any]] = field(factory=list)
    latest: bytes = b""

    def read(self) -> bool:
        """Take its words; False at their end."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.latest = line
            if b'"ended": true' in line:
                self.ended.append(json.loads(line))
        return bool(data)


def main() -> int:
    """The exit code is 0 if every page was right."""
    machine = Machine.open()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    machine.say("boot", kernel=os.uname().release, memory=_memory(), cpus=os.cpu_count(), boost_factor=_boost_factor())
    for setting in machine.scenario.sysctls:
        name, _, value = setting.partition("=")
        Path("/proc/sys", name.replace(".", "/")).write_text(value)
    _up(machine)
    counters = _counters()
    machine.say("up", memory=_memory(), engine=_engine(counters), boost_factor=_boost_factor())
    libc.lock_memory(libc.MCL_CURRENT | libc.MCL_FUTURE)
    # Children are ordinary processes again.
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(2))
    wrong = 0
    for stage in machine.scenario.stages:
        try:
            wrong += _run(machine, stage, counters)
        except Hang as hang:
            machine.say("hang", why=str(hang), words=counters.snapshot(), vmstat=machine.vm())
            machine.sysrq("wtm")
            machine.say("dumped")
            machine.sysrq("b")
    machine.say("log", lines=[record.text for record in counters.log_since(0)])
    down = _say_command(machine, _fuseswap("down", NAME))
    machine.say("down", code=down, memory=_memory(), boost_factor=_boost_factor())
    return 1 if wrong or down else 0


def _fuseswap(*arguments: str) -> list[str]:
    return ["choom", "--adjust", "0", "--", sys.executable, "-m", "fuseswap", *arguments]


def _up(machine: Machine) -> None:
    environment = dict(os.environ)
    if machine.scenario.without:
        environment["FUSESWAP_WITHOUT"] = " ".join(machine.scenario.without)
        environment["PYTHONPATH"] += ":/guest/tests/guest/without"
    for command in (_fuseswap("up", machine.scenario.url, "--name", NAME), _fuseswap("status")):
        if _say_command(machine, command, environment):
            raise SystemExit(2)


def _say_command(machine: Machine, command: list[str], environment: dict[str, str] | None = None) -> int:
    """Run a command of fuseswap and say what came of it; its exit code."""
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )
    machine.say("command", command=command[4:], code=done.returncode, text=done.stdout + done.stderr)
    return done.returncode


def _counters() -> Counters:
    with Path(RUN_DIRECTORY, NAME, "counters").open("rb") as file:
        return Counters(mmap.mmap(file.fileno(), COUNTERS_BYTES, access=mmap.ACCESS_READ))


def _engine(counters: Counters) -> dict[str, Any]:
    """What the engine says of itself, and what the kernel says of it."""
    words = counters.snapshot()
    pid = words["engine_pid"]
    status = _fields(Path(f"/proc/{pid}/status").read_text())
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return {
        "words": words,
        "policy": os.sched_getscheduler(pid),
        "oom_score_adj": int(Path(f"/proc/{pid}/oom_score_adj").read_text()),
        "minor_faults": int(stat[7]),
        "major_faults": int(stat[9]),
        "rss_kib": status["VmRSS"],
        "peak_kib": status["VmHWM"],
        "locked_kib": status["VmLck"],
        "swapped_kib": status["VmSwap"],
    }


def _memory() -> dict[str, int]:
    fields = _fields(Path("/proc/meminfo").read_text())
    return {f"{name}_kib": fields[name] for name in ("MemTotal", "MemFree", "MemAvailable")}


def _boost_factor() -> int:
    return sysctls.SETTINGS[0].value()


def _fields(text: str) -> dict[str, int]:
    lines = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[1:] and words[1].isdigit()}


def _run(machine: Machine, stage: Stage, counters: Counters) -> int:
    """Run a stage; how many pages were wrong, where a hog that died counts as one. Hang if nothing moves."""
    machine.say("stage", name=stage.name)
    before = {"vmstat": machine.vm(), "engine": _engine(counters)}
    start = time.monotonic()
    with _beside(stage.beside):
        hogs = [
            Hog(
                subprocess.Popen(
                    hog.command(size, seed=number, touches=stage.touches),
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                )
            )
            for number, size in enumerate(stage.hogs)
        ]
        _watch(machine, hogs)
    wrong: int = sum(report["wrong_pages"] for one in hogs for report in one.ended)
    dead = [one.process.returncode for one in hogs if one.process.returncode]
    machine.say(
        "result",
        name=stage.name,
        seconds=round(time.monotonic() - start, 1),
        wrong_pages=wrong,
        exit_codes=[one.process.returncode for one in hogs],
        reports=[one.ended for one in hogs],
        before=before,
        after={"vmstat": machine.vm(), "engine": _engine(counters)},
    )
    return wrong + len(dead)


def _watch(machine: Machine, hogs: list[Hog]) -> None:
    poll = select.poll()
    running = {one.process.stdout.fileno(): one for one in hogs if one.process.stdout}
    for descriptor in running:
        poll.register(descriptor, select.POLLIN)
    # Looks are counted, not seconds: while the host gives the guest no time, the guest does not look either.
    still, said_at, seen = 0, 0.0, machine.vm()
    while running:
        ready = poll.poll(1000)
        for descriptor, _ in ready:
            if not running[descriptor].read():
                poll.unregister(descriptor)
                running.pop(descriptor).process.wait()
        now, vm = time.monotonic(), machine.vm()
        if ready or any(vm[name] != seen[name] for name in ("pswpin", "pswpout")):
            still, seen = 0, vm
        else:
            still += 1
        if still > machine.scenario.looks_max:
            raise Hang(f"no page and no word, {still} looks in a row")
        if now - said_at > 10:
            said_at = now
            machine.say("progress", vmstat=vm, hogs=[one.latest.decode() for one in hogs])
        if ready:
            # A few looks a second are enough; each report must not cost one.
            time.sleep(0.2)


@contextmanager
def _beside(wanted: bool) -> Iterator[None]:
    loads = [
        subprocess.Popen(
            ["nice", "-n", "19", "choom", "--adjust", "500", "--", "sh", "-c", script],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for script in ((PAGE_CACHE_LOAD, FORK_STORM) if wanted else ())
    ]
    try:
        yield
    finally:
        for load in loads:
            os.killpg(load.pid, signal.SIGKILL)
            load.wait()


if __name__ == "__main__":
    sys.exit(main())
