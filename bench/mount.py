"""The ordinary mount beside the limit and its peers, on one machine and one private nfs-ganesha, round by round.

Every sample begins with a fresh mount. What is counted is one command from its start to its end, with all it
promises: a write includes the fsync at its end. (docs/explanation/performance.md says how to read the table.)
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from attrs import frozen
from measure import once
from mount_sides import MOUNT_SIDES, MountSide
from rich.console import Console
from run import console, new_table
from sides import limit_program

from fuseswap.host.bounded import HostError, run
from fuseswap.host.ganesha import GaneshaServer

MIB: Final = 1 << 20
COMMAND_SECONDS_MAX: Final = 600.0
DIRECTORIES: Final = 100
FILE_BYTES_MEAN: Final = 4096
FILE_BYTES_MAX: Final = 64 << 10
REFERENCES: Final = ("limit", "passthrough")
"""A ratio is the speed beside the first of these that took part."""


@frozen
class Setting:
    """What all samples share."""

    size_mib: int
    """Of the file that is read or written."""
    archive: Path
    repository: Path


@frozen
class Workload:
    """`prepare(directory, setting)` runs untimed, on the disk behind the mount; `refresh` through a mount of its own.

    `command(directory, setting)` is what is timed. `limit` is the kind of bench/limit.c that does the same.
    """

    name: str
    command: Callable[[Path, Setting], list[str]]
    prepare: Callable[[Path, Setting], object] = lambda directory, setting: None
    refresh: Callable[[Path], object] | None = None
    limit: str | None = None


def fill(directory: Path, setting: Setting) -> None:
    with (directory / "file").open("wb") as file:
        for _ in range(setting.size_mib):
            file.write(os.urandom(MIB))


def unpack(directory: Path, setting: Setting) -> None:
    run(["tar", "-xf", str(setting.archive), "-C", str(directory)], seconds=COMMAND_SECONDS_MAX)


def copy_repository(directory: Path, setting: Setting) -> None:
    shutil.copytree(setting.repository, directory / "repository", symlinks=True)


def git_status(directory: Path) -> list[str]:
    return ["git", "-C", str(directory / "repository"), "status", "--porcelain"]


def write(directory: Path, block_bytes: int, bytes_all: int) -> list[str]:
    blocks = bytes_all // block_bytes
    return ["dd", "if=/dev/zero", f"of={directory}/file", f"bs={block_bytes}", f"count={blocks}", "conv=fsync"]


WORKLOADS: Final = (
    Workload(
        "write 1 MiB",
        lambda directory, setting: write(directory, MIB, setting.size_mib * MIB),
        limit="unstable",
    ),
    Workload(
        "read 1 MiB",
        lambda directory, setting: ["dd", f"if={directory}/file", "of=/dev/null", f"bs={MIB}"],
        fill,
        limit="read",
    ),
    Workload("write 4 KiB", lambda directory, setting: write(directory, 4096, setting.size_mib * MIB // 8)),
    Workload("untar", lambda directory, setting: ["tar", "-xf", str(setting.archive), "-C", str(directory)]),
    Workload("find", lambda directory, setting: ["find", str(directory), "-size", "+1000k"], unpack),
    Workload(
        "git status",
        lambda directory, setting: git_status(directory),
        copy_repository,
        # The index knows inode numbers and change times, which are the mount's own.
        lambda directory: run(git_status(directory), seconds=COMMAND_SECONDS_MAX),
    ),
)


def main() -> int:
    options = parse_arguments()
    sides = [side for side in MOUNT_SIDES if side.name in options.sides and side.installed()]
    workloads = [workload for workload in WORKLOADS if workload.name in options.workloads]
    try:
        with (
            tempfile.TemporaryDirectory(prefix="fuseswap-bench-", dir=options.directory) as directory,
            GaneshaServer(Path(directory)) as server,
        ):
            setting = make_setting(Path(directory), options)
            samples = measure(server, sides, workloads, setting, options)
    except HostError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    entries = summary(samples, setting)
    print_table(entries)
    if options.json:
        options.json.write_text(json.dumps(entries, indent=2))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    sides = ["limit", *(side.name for side in MOUNT_SIDES)]
    workloads = [workload.name for workload in WORKLOADS]
    parser.add_argument("--sides", nargs="+", choices=sides, default=sides, help="those installed, by default")
    parser.add_argument("--workloads", nargs="+", choices=workloads, default=workloads)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="of the file read and written")
    parser.add_argument("--files", type=int, default=5000, help="in the tree")
    parser.add_argument("--directory", default="/var/tmp", help="on the file system that is to be exported")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser.parse_args()


# --- what the samples work on ---


def make_setting(directory: Path, options: argparse.Namespace) -> Setting:
    setting = Setting(options.size, directory / "tree.tar", directory / "repository")
    make_archive(setting.archive, options.files)
    setting.repository.mkdir()
    git = ["git", "-C", str(setting.repository), "-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    run([*git, "init", "--quiet"])
    unpack(setting.repository, setting)
    run([*git, "add", "--all"], seconds=COMMAND_SECONDS_MAX)
    run([*git, "commit", "--quiet", "--message", "tree"], seconds=COMMAND_SECONDS_MAX)
    return setting


def make_archive(archive: Path, files: int) -> None:
    """The same tree each time: small files, most of them smaller than the mean."""
    numbers = random.Random(1)
    with tarfile.open(archive, "w") as tar:
        for number in range(files):
            size = min(FILE_BYTES_MAX, int(numbers.expovariate(1 / FILE_BYTES_MEAN)))
            member = tarfile.TarInfo(f"tree/{number % DIRECTORIES:02}/{number:05}")
            member.size, member.mtime = size, 1_700_000_000
            tar.addfile(member, BytesIO(numbers.randbytes(size)))


# --- measuring ---


def measure(
    server: GaneshaServer,
    sides: Sequence[MountSide],
    workloads: Sequence[Workload],
    setting: Setting,
    options: argparse.Namespace,
) -> dict[str, list[dict[str, float]]]:
    """Per workload and round, the seconds of each side."""
    samples: dict[str, list[dict[str, float]]] = {workload.name: [] for workload in workloads}
    program = limit_program()
    for number in range(options.rounds):
        for workload in workloads:
            console.print(f"round {number + 1} of {options.rounds}: {workload.name}", highlight=False)
            seconds: dict[str, float] = {}
            if workload.limit is not None and "limit" in options.sides:
                with directory(server, workload, setting) as name:
                    (server.export_dir / name / "file").touch()
                    url, size_bytes = server.url(f"{name}/file"), setting.size_mib * MIB
                    seconds["limit"] = once(program, url, workload.limit, MIB, size_bytes)
            for side in sides:
                with directory(server, workload, setting) as name:
                    seconds[side.name] = sample(server, name, side, workload, setting)
            samples[workload.name].append(seconds)
    return samples


@contextmanager
def directory(server: GaneshaServer, workload: Workload, setting: Setting) -> Iterator[str]:
    """The name of a new directory of the export: the server knows nothing of it yet."""
    path = Path(tempfile.mkdtemp(dir=server.export_dir))
    workload.prepare(path, setting)
    # The disk is to have nothing left of what came before.
    os.sync()
    yield path.name
    shutil.rmtree(path)


def sample(server: GaneshaServer, name: str, side: MountSide, workload: Workload, setting: Setting) -> float:
    point = server.directory / f"mount-{side.name}"
    point.mkdir(exist_ok=True)
    if workload.refresh is not None:
        with side.mounted(server, name, point):
            workload.refresh(point)
    with side.mounted(server, name, point):
        began = time.monotonic()
        run(workload.command(point, setting), seconds=COMMAND_SECONDS_MAX)
        return time.monotonic() - began


# --- summing up ---


def summary(samples: dict[str, list[dict[str, float]]], setting: Setting) -> list[dict[str, Any]]:
    """One entry per workload and side: medians over the rounds, of the ratios too."""
    entries = []
    for workload, rounds in samples.items():
        reference = next((name for name in REFERENCES if name in rounds[0]), None)
        for side in rounds[0]:
            entry: dict[str, Any] = {"workload": workload, "side": side, "rounds": len(rounds)}
            entry["seconds"] = statistics.median(seconds[side] for seconds in rounds)
            if (bytes_all := bytes_of(workload, setting)) is not None:
                entry["mb_per_s"] = bytes_all / 1e6 / entry["seconds"]
            if reference is not None:
                entry["reference"] = reference
                entry["ratio"] = statistics.median(seconds[reference] / seconds[side] for seconds in rounds)
            entries.append(entry)
    return entries


def bytes_of(workload: str, setting: Setting) -> int | None:
    sizes = {"write 1 MiB": setting.size_mib * MIB, "read 1 MiB": setting.size_mib * MIB}
    return {**sizes, "write 4 KiB": setting.size_mib * MIB // 8}.get(workload)


def print_table(entries: list[dict[str, Any]]) -> None:
    table = new_table("workload", "side", "seconds", "MB/s", "speed beside", "ratio")
    for entry in entries:
        table.add_row(
            entry["workload"],
            entry["side"],
            f"{entry['seconds']:.2f}",
            f"{entry['mb_per_s']:,.0f}" if "mb_per_s" in entry else "",
            entry.get("reference", ""),
            f"{entry['ratio']:.2f}" if "ratio" in entry else "",
        )
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)


if __name__ == "__main__":
    os.umask(0o077)
    # Ended by kill or timeout(1), it takes everything down as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    sys.exit(main())
