"""`status`: what is active, from the counters and the kernel's tables alone.

No server is asked and nothing on a mount is touched: it answers also when everything else hangs.
"""

import json
import time
from typing import Any

from fuseswap.cli.failure import Exit
from fuseswap.cli.interrupts import Interrupts
from fuseswap.cli.output import say
from fuseswap.cli.size import format_size
from fuseswap.host import processes, rundir
from fuseswap.host.loop import LoopDevice, loop_devices
from fuseswap.host.mounts import Mount, mount_at, mounts
from fuseswap.host.swap import SwapArea, swaps
from fuseswap.swap.target import NfsTarget

_SAMPLE_SECONDS = 0.25
_LOG_LINES = 10
_HARDENING = {
    "memory_locked": "memory locked",
    "io_flusher": "allocates without I/O",
    "oom_protected": "safe from the OOM killer",
    "realtime": "real-time",
}

Report = dict[str, Any]


def status(arguments: Any, _interrupts: Interrupts) -> Exit:
    """`fuseswap status [--json] [-v]`."""
    reports = describe_all()
    if arguments.json:
        say(json.dumps({"swap": reports}, indent=2))
    elif not reports:
        say("nothing is active")
    else:
        say("\n\n".join(_text(report, arguments.verbose) for report in reports))
    return Exit.DONE


def describe_all() -> list[Report]:
    """One report for each name; rates are those of a short moment."""
    names = rundir.names()
    before = {name: rundir.read_counters(name) for name in names}
    if any(before.values()):
        time.sleep(_SAMPLE_SECONDS)
    table, devices, areas = mounts(), loop_devices(), swaps()
    return [_describe(name, before[name], table, devices, areas) for name in names]


def _describe(
    name: str,
    before: rundir.Snapshot | None,
    table: tuple[Mount, ...],
    devices: tuple[LoopDevice, ...],
    areas: tuple[SwapArea, ...],
) -> Report:
    device = rundir.engine_device(name, devices)
    area = next((area for area in areas if device is not None and area.path == device.path), None)
    now = rundir.read_counters(name)
    mounted = mount_at(str(rundir.filesystem_mountpoint(name)), table)
    report: Report = {
        "name": name,
        "state": "incomplete",
        "source": now.activation.source if now is not None else None,
        "mountpoint": mounted.mountpoint if mounted is not None else None,
        "filesystem_running": bool(processes.filesystems(mounted)) if mounted is not None else None,
        "device": device.path if device is not None else None,
        "priority": area.priority if area is not None else None,
        "size_bytes": area.size_bytes if area is not None else None,
        "used_bytes": area.used_bytes if area is not None else None,
    }
    if now is not None:
        report |= _engine(now, before)
        report["state"] = _state(area is not None, report)
    return report


def _state(swapping: bool, report: Report) -> str:
    if not report["engine"]["running"]:
        return "engine dead"
    if not swapping:
        return "incomplete"
    return "active" if report["server"] is None or report["server"]["connected"] else "waiting"


def _engine(now: rundir.Snapshot, before: rundir.Snapshot | None) -> Report:
    words = now.words
    earlier = before.words if before is not None else words
    seconds = (now.taken_ns - before.taken_ns) / 1e9 if before is not None else _SAMPLE_SECONDS
    return {
        "engine": {
            "pid": words["engine_pid"],
            "running": processes.runs(processes.find_engine(words)),
            "supervisor_pid": words["supervisor_pid"],
            "supervisor_running": processes.runs(processes.find_supervisor(words)),
            "started_ns": words["started_ns"],
            "hardening": {name: bool(words[name]) for name in _HARDENING},
        },
        "server": _server(now),
        "rates": {
            "read_bytes_per_s": (words["read_bytes"] - earlier["read_bytes"]) / seconds,
            "write_bytes_per_s": (words["write_bytes"] - earlier["write_bytes"]) / seconds,
        },
        "counters": words,
        "log": [
            {"time_ns": record.time_ns, "level": record.level.name.lower(), "text": record.text} for record in now.log
        ],
    }


def _server(now: rundir.Snapshot) -> Report | None:
    target = now.activation.target
    if not isinstance(target, NfsTarget):
        return None
    words = now.words
    address = target.addresses[words["address_index"] % len(target.addresses)]
    clock = time.monotonic_ns()
    connected = bool(words["connected"])
    since, reply = words["disconnected_ns"], words["reply_ns"]
    return {
        "connected": connected,
        "address": address.host,
        "port": address.port,
        "waiting_seconds": max(0, clock - since) / 1e9 if since and not connected else None,
        "reply_seconds": max(0, clock - reply) / 1e9 if reply else None,
        "reconnects": words["reconnects"],
        "retransmissions": words["retransmissions"],
    }


def _text(report: Report, verbose: bool) -> str:
    lines = [f"{report['name']}: {report['source'] or 'nothing known of its file'}"]

    def add(what: str, text: str) -> None:
        lines.append(f"  {what:10} {text}")

    add("state", _state_text(report))
    if report["device"]:
        add("device", _device_text(report))
    if "engine" in report:
        for what, text in _engine_texts(report):
            add(what, text)
    if report["mountpoint"]:
        dead = report["filesystem_running"] is False
        add("mounted on", report["mountpoint"] + ", its filesystem process is dead (swap is not touched)" * dead)
    if verbose:
        for record in report.get("log", [])[-_LOG_LINES:]:
            moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["time_ns"] / 1e9))
            add("log", f"{moment} {record['level']}: {record['text']}")
    return "\n".join(lines)


def _state_text(report: Report) -> str:
    state: str = report["state"]
    if state == "engine dead":
        return f"engine dead, pages swapped to it are lost: fuseswap down {report['name']}"
    if state == "incomplete":
        return f"incomplete: fuseswap down {report['name']}"
    if state == "waiting":
        seconds = report["server"]["waiting_seconds"]
        return "waiting for the server" + (f" since {seconds:.0f} s" if seconds is not None else "")
    return state


def _device_text(report: Report) -> str:
    if report["priority"] is None:
        return f"{report['device']}, swap is off"
    used, size = format_size(report["used_bytes"]), format_size(report["size_bytes"])
    return f"{report['device']}, priority {report['priority']}, {used} of {size} used"


def _engine_texts(report: Report) -> list[tuple[str, str]]:
    words, rates, engine, server = (report[key] for key in ("counters", "rates", "engine", "server"))
    texts = []
    if server is not None:
        reply = server["reply_seconds"]
        texts.append(
            (
                "server",
                f"{server['address']} port {server['port']},"
                + (f" last reply {reply:.1f} s ago," if reply is not None else "")
                + f" {server['reconnects']} reconnects, {server['retransmissions']} calls sent again",
            )
        )
    on, off = (
        [text for name, text in _HARDENING.items() if engine["hardening"][name] is wanted] for wanted in (True, False)
    )
    return [
        *texts,
        (
            "now",
            f"out {rates['write_bytes_per_s'] / 1e6:.1f} MB/s, in {rates['read_bytes_per_s'] / 1e6:.1f} MB/s",
        ),
        (
            "so far",
            f"out {format_size(words['write_bytes'])} in {words['write_calls']} calls,"
            f" in {format_size(words['read_bytes'])} in {words['read_calls']} calls,"
            f" errors {words['read_errors'] + words['write_errors']}",
        ),
        (
            "in flight",
            f"{words['calls_in_flight']} calls (most {words['calls_in_flight_high']} of {words['slots']}),"
            f" {words['requests']} requests (most {words['requests_high']} of {words['requests_max']})",
        ),
        (
            "reserve",
            f"{words['reserve_pages_used']} pages (most {words['reserve_pages_high']} of"
            f" {words['reserve_pages']}), full {words['reserve_full']} times",
        ),
        (
            "engine",
            f"pid {engine['pid']}, supervisor "
            + (f"pid {engine['supervisor_pid']}" if engine["supervisor_running"] else "dead"),
        ),
        ("safeguards", (", ".join(on) or "none") + (f"; refused by this machine: {', '.join(off)}" if off else "")),
    ]
