"""fuseswap beside the limit and its peers, on one machine and one private nfs-ganesha, round by round.

The absolute figures move by a third between rounds and machines. So the sides take turns, and a ratio is the
median of the ratios to the limit within one round. (docs/explanation/performance.md says how to read it.)
"""

import argparse
import fcntl
import json
import os
import re
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
from measure import ALL_PATTERNS, MAIN_PATTERNS, Pattern, Sample, SwapSample, swap
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from sides import NAME, SIDES, Side

from fuseswap.host.bounded import HostError
from fuseswap.host.ganesha import GaneshaServer

MIB: Final = 1 << 20
SWAP_LOCK: Final = Path("/run/lock/fuseswap-swap.lock")
ZSWAP: Final = Path("/sys/module/zswap/parameters/enabled")

TEXT_COLUMNS: Final = ("pattern", "workload", "side", "swap on", "speed beside")

console = Console(stderr=True)


def main() -> int:
    options = parse_arguments()
    sides = [side for side in SIDES if side.name in options.sides and side.installed()]
    patterns = [
        pattern
        for pattern in (ALL_PATTERNS if options.all else MAIN_PATTERNS)
        if re.search(options.patterns, pattern.name)
    ]
    results: dict[str, Any] = {}
    try:
        with (
            tempfile.TemporaryDirectory(prefix="fuseswap-bench-", dir="/var/tmp") as directory,
            GaneshaServer(Path(directory)) as server,
        ):
            if options.part in ("io", "both"):
                samples = measure_io(server, sides, patterns, options)
                results["io"] = io_summary(samples, sides)
            if options.part in ("swap", "both"):
                swap_samples = measure_swap(server, sides, options)
                results["swap"] = swap_summary(swap_samples)
    except HostError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print_tables(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [side.name for side in SIDES]
    parser.add_argument("--part", choices=("io", "swap", "both"), default="both")
    parser.add_argument("--sides", nargs="+", choices=names, default=names, help="those installed, by default")
    parser.add_argument("--patterns", default="", metavar="REGEX", help='for example "random read 4k"')
    parser.add_argument("--all", action="store_true", help="every size and depth, not the main ones only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="per pattern, side and round")
    parser.add_argument("--size", type=int, default=512, metavar="MIB", help="of each file")
    parser.add_argument("--hog", type=int, default=560, metavar="MIB")
    parser.add_argument("--limit", type=int, default=128, metavar="MIB", help="the hog's memory cgroup")
    parser.add_argument("--touches", type=int, default=20_000, help="pages that the hog reads at random")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser.parse_args()


# --- measuring ---


def measure_io(
    server: GaneshaServer, sides: Sequence[Side], patterns: Sequence[Pattern], options: argparse.Namespace
) -> dict[Pattern, list[dict[str, Sample]]]:
    """Per pattern and round, a sample of each side; all sides stay up meanwhile."""
    samples: dict[Pattern, list[dict[str, Sample]]] = {pattern: [] for pattern in patterns}
    with ExitStack() as stack:
        if any(side.swapped_on for side in sides):
            stack.enter_context(alone_with_swap())
        measures = {side.name: stack.enter_context(side.io(server, options.size * MIB)) for side in sides}
        for number in range(options.rounds):
            for pattern in patterns:
                console.print(f"round {number + 1} of {options.rounds}: {pattern.name}", highlight=False)
                samples[pattern].append({name: measure(pattern, options.seconds) for name, measure in measures.items()})
    return samples


def measure_swap(
    server: GaneshaServer, sides: Sequence[Side], options: argparse.Namespace
) -> dict[str, list[SwapSample]]:
    """Per side, a sample of each round; one side has its swap on at a time."""
    samples: dict[str, list[SwapSample]] = {}
    with alone_with_swap(), without_zswap():
        for number in range(options.rounds):
            for side in sides:
                if side.swapped_on is None:
                    continue
                console.print(f"round {number + 1} of {options.rounds}: swap on {side.name}", highlight=False)
                with side.swapped_on(server, options.hog * MIB):
                    sample = swap(NAME, options.limit * MIB, options.hog * MIB, options.touches)
                samples.setdefault(side.name, []).append(sample)
    return samples


@contextmanager
def alone_with_swap() -> Iterator[None]:
    """Swap belongs to the whole machine: one benchmark or test session at a time has it."""
    with SWAP_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def without_zswap() -> Iterator[None]:
    """zswap would keep pages in memory that are to be measured on their way."""
    before = ZSWAP.read_text() if ZSWAP.exists() else "N"
    if before.strip() == "N":
        yield
        return
    ZSWAP.write_text("N")
    try:
        yield
    finally:
        ZSWAP.write_text(before)


# --- summing up ---


def median_of(samples: Sequence[Any], field: str) -> float:
    return float(statistics.median(getattr(sample, field) for sample in samples))


def io_summary(samples: dict[Pattern, list[dict[str, Sample]]], sides: Sequence[Side]) -> list[dict[str, Any]]:
    """One entry per pattern and side: medians over the rounds, and the median ratios to the limit's."""
    entries = []
    for pattern, rounds in samples.items():
        for side in sides:
            of_side = [sample[side.name] for sample in rounds]
            entry: dict[str, Any] = {"pattern": pattern.name, **attrs.asdict(pattern), "side": side.name}
            for field in attrs.fields_dict(Sample):
                entry[field] = median_of(of_side, field)
            if "limit" in rounds[0]:
                for field in ("iops", "p50_us"):
                    entry[f"{field}_ratio"] = statistics.median(
                        getattr(sample[side.name], field) / getattr(sample["limit"], field) for sample in rounds
                    )
            entries.append(entry)
    return entries


def swap_summary(samples: dict[str, list[SwapSample]]) -> list[dict[str, Any]]:
    """One entry per side: median speeds, and the sum of wrong pages."""
    return [
        {
            "side": name,
            **{field: median_of(rounds, field) for field in attrs.fields_dict(SwapSample)},
            "wrong_pages": sum(sample.wrong_pages for sample in rounds),
            "rounds": len(rounds),
        }
        for name, rounds in samples.items()
    ]


def print_tables(results: dict[str, Any]) -> None:
    out = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    if "io" in results:
        table = new_table("pattern", "side", "iops", "ratio", "p50 us", "p50 ratio", "p99 us", "CPU s/GiB")
        for entry in results["io"]:
            table.add_row(
                entry["pattern"],
                entry["side"],
                f"{entry['iops']:,.0f}",
                f"{entry['iops_ratio']:.2f}" if "iops_ratio" in entry else "",
                f"{entry['p50_us']:,.0f}",
                f"{entry['p50_us_ratio']:.2f}" if "p50_us_ratio" in entry else "",
                f"{entry['p99_us']:,.0f}",
                f"{entry['cpu_seconds_per_gib']:.2f}",
            )
        out.print(table)
    if "swap" in results:
        table = new_table("swap on", "fill MB/s", "sequential MB/s", "random MB/s", "wrong pages")
        for entry in results["swap"]:
            phases = (entry[f"{phase}_mb_per_s"] for phase in ("fill", "sequential", "random"))
            table.add_row(entry["side"], *(f"{speed:,.1f}" for speed in phases), str(entry["wrong_pages"]))
        out.print(table)


def new_table(*columns: str) -> Table:
    table = Table(box=MARKDOWN)
    for column in columns:
        table.add_column(column, justify="left" if column in TEXT_COLUMNS else "right")
    return table


if __name__ == "__main__":
    os.umask(0o077)
    # Ended by kill or timeout(1), it takes everything down as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    sys.exit(main())
