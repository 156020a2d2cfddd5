"""`make guest`: global memory pressure in a guest that swaps to this machine through fuseswap."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from fuseswap.host.bounded import HostError
from tests.guest import image
from tests.guest.lab import STAGES, lab
from tests.guest.report import describe
from tests.guest.scenario import MIB, SAFEGUARDS, Stage


def main() -> int:
    """The exit code is 0 if every run finished with every page right."""
    parser = argparse.ArgumentParser(prog="make guest", description=__doc__)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--kernel", default=image.KERNEL_PACKAGE, metavar="PACKAGE", help="a Debian kernel")
    parser.add_argument(
        "--without", nargs="+", default=(), choices=SAFEGUARDS, help="safeguards to take from the engine"
    )
    parser.add_argument("--sysctl", nargs="+", default=(), metavar="NAME=VALUE", help="set in the guest")
    parser.add_argument("--hog", type=int, metavar="MIB", help="one hog of this size instead of all stages")
    parser.add_argument("--delay", type=int, default=0, metavar="MS", help="put the server far away")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep each run's console and events there")
    options = parser.parse_args()
    stages = STAGES
    if options.hog:
        stages = (Stage(f"one hog of {options.hog} MiB", (options.hog * MIB,), touches=1000),)
    endings: Counter[str] = Counter()
    with lab(options.kernel) as guests:
        for number in range(1, options.runs + 1):
            run = guests.run(
                number,
                stages=stages,
                without=tuple(options.without),
                sysctls=tuple(options.sysctl),
                delay_ms=options.delay,
            )
            endings[run.ending] += 1
            print(f"run {number} of {options.runs}\n{describe(run)}\n", flush=True)
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                for name in ("console", "events"):
                    (options.keep / f"{number}.{name}").write_bytes((guests.directory_of(number) / name).read_bytes())
    print(", ".join(f"{ending} {count}" for ending, count in endings.items()))
    return 0 if set(endings) == {"finished"} else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HostError as error:
        sys.exit(f"make guest: {error}")
