"""Writes, syncs, reads back and renames until its input ends; one line of output for each round.

`python load.py DIRECTORY`. A process of its own, because whoever forks while it holds dirty files of a dead
server waits: the child closes its copies, and close waits as it does for every NFS client.
"""

import os
import select
import sys
from pathlib import Path


def main(directory: Path) -> None:
    number = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        path = directory / f"file-{number % 5}"
        content = os.urandom(700_000)
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with path.open("rb") as file:
            assert file.read() == content
        path.rename(path.with_suffix(".done"))
        assert path.with_suffix(".done").stat().st_size == len(content)
        number += 1
        print(number, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
