"""Draws what `bench/run.py --json r.json` measured: bench/plot.py r.json r.png

Left, each pattern's throughput as a ratio to the limit of the same round; right, the swap workload in MB/s.
Needs matplotlib, which nothing else here does; `make bench` installs it.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS: Final = {"limit": "#9a9a9a", "fuseswap": "#1f5fa8", "qsd": "#d08a2e"}
NAMES: Final = {"qsd": "qemu-storage-daemon (writes not stable)"}
NOT_DRAWN: Final = ("limit", "road")
"""One is the unit; the other has no server, and would leave no room for those that have."""
PHASES: Final = ("fill", "sequential", "random")


def main(source: str, target: str) -> int:
    results = json.loads(Path(source).read_text())
    patterns = list(dict.fromkeys(entry["pattern"] for entry in results["io"]))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 0.55 * len(patterns) + 1.8), width_ratios=(3, 2), layout="constrained"
    )
    draw_ratios(left, results["io"], patterns)
    draw_swap(right, results["swap"])
    figure.savefig(target, dpi=110)
    return 0


def draw_ratios(axes: Any, entries: list[dict[str, Any]], patterns: list[str]) -> None:
    sides = [side for side in dict.fromkeys(entry["side"] for entry in entries) if side not in NOT_DRAWN]
    height = 0.8 / len(sides)
    for number, side in enumerate(sides):
        of_side = {entry["pattern"]: entry["iops_ratio"] for entry in entries if entry["side"] == side}
        places = [index + number * height for index in range(len(patterns))]
        values = [of_side[pattern] for pattern in patterns]
        bars = axes.barh(places, values, height, color=COLOURS[side], label=NAMES.get(side, side))
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.axvline(1, color=COLOURS["limit"], linewidth=1, zorder=0)
    axes.set_yticks([index + height * (len(sides) - 1) / 2 for index in range(len(patterns))], patterns)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title("operations a second, as a ratio to the limit (libnfs in C, no FUSE)", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


def draw_swap(axes: Any, entries: list[dict[str, Any]]) -> None:
    width = 0.8 / len(entries)
    for number, entry in enumerate(entries):
        places = [index + number * width for index in range(len(PHASES))]
        values = [entry[f"{phase}_mb_per_s"] for phase in PHASES]
        bars = axes.bar(places, values, width, color=COLOURS[entry["side"]], label=entry["side"])
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    axes.set_xticks([index + width * (len(entries) - 1) / 2 for index in range(len(PHASES))], PHASES)
    axes.set_title("swap: MB/s of a process four times its memory limit", fontsize=10)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
