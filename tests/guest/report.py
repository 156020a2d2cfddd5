"""A run as text."""

import re
from collections.abc import Iterator
from typing import Any

from tests.guest.qemu import Run

CONSOLE_LINES = 12
HARDENING = ("memory_locked", "io_flusher", "oom_protected", "realtime")


def describe(run: Run) -> str:
    """Some lines for people."""
    return "\n".join(_lines(run))


def allocation_failures(run: Run) -> int:
    """Times that the guest's kernel said so."""
    return len(re.findall(r"page allocation failure", run.console))


def oom_kills(run: Run) -> int:
    """Processes that the guest's kernel killed for want of memory."""
    return len(re.findall(r"Out of memory: Killed", run.console))


def _lines(run: Run) -> Iterator[str]:
    for event in run.of("boot"):
        total = event["memory"]["MemTotal_kib"] // 1024
        yield f"guest: Linux {event['kernel']}, {total} MiB usable, {event['cpus']} CPUs"
    for event in run.of("command"):
        if event["code"]:
            yield f"{' '.join(event['command'])}: exit code {event['code']}: {event['text'].strip()}"
    for event in run.of("up"):
        words = event["engine"]["words"]
        yield (
            "engine: "
            + ", ".join(f"{name} {words[name]}" for name in HARDENING)
            + (
                f", policy {event['engine']['policy']}, oom_score_adj {event['engine']['oom_score_adj']}"
                f", RSS {event['engine']['rss_kib'] / 1024:.1f} MiB, reserve {words['reserve_pages'] * 4} KiB"
                f", watermark_boost_factor {event['boost_factor']}"
                f"; {event['memory']['MemAvailable_kib'] // 1024} MiB available"
            )
        )
    for event in run.of("result"):
        yield from _stage(event)
    for event in run.of("hang"):
        yield f"HANG: {event['why']}; {event['vmstat']}; --keep DIR keeps the console, which has every task's stack"
    for event in run.of("down"):
        yield f"down: exit code {event['code']}, watermark_boost_factor {event['boost_factor']}"
    if run.ending in ("failed", "silent"):
        yield from ("the console's last lines:", *run.console.splitlines()[-CONSOLE_LINES:])
    yield (
        f"{run.ending} in {run.seconds:.0f} s; page allocation failures: {allocation_failures(run)}"
        f", OOM kills: {oom_kills(run)}"
    )


def _stage(event: dict[str, Any]) -> Iterator[str]:
    before, after = event["before"], event["after"]
    vmstat = {name: after["vmstat"][name] - before["vmstat"][name] for name in after["vmstat"]}
    faults = {name: after["engine"][name] - before["engine"][name] for name in ("minor_faults", "major_faults")}
    words = after["engine"]["words"]
    yield (
        f"{event['name']}: {event['seconds']} s, wrong pages {event['wrong_pages']}"
        f", exit codes {event['exit_codes']}, pages out {vmstat['pswpout']}, in {vmstat['pswpin']}"
    )
    for number, reports in enumerate(event["reports"]):
        speeds = (
            f"{report['phase']} {report['pages'] * 4096 / 1e6 / max(report['seconds'], 1e-9):.1f} MB/s"
            for report in reports
        )
        yield f"  hog {number}: {', '.join(speeds)}"
    yield (
        f"  engine: {faults['minor_faults']} minor and {faults['major_faults']} major faults"
        f", RSS {after['engine']['rss_kib'] / 1024:.1f} MiB"
        f", peak {after['engine']['peak_kib'] / 1024:.1f}, locked {after['engine']['locked_kib'] / 1024:.1f}"
        f", swapped {after['engine']['swapped_kib']} KiB; errors {words['read_errors']}+{words['write_errors']}"
        f", reconnects {words['reconnects']}, timeouts {words['timeouts']}, reserve full {words['reserve_full']}"
    )
    stalls = vmstat["allocstall_normal"] + vmstat["allocstall_dma32"]
    yield f"  guest: {stalls} direct reclaims, {vmstat['pgmajfault']} major faults, {vmstat['oom_kill']} OOM kills"
