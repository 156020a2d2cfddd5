"""What a command prints: results and notes on standard output, errors and warnings on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def say(text: str) -> None:
    """A result, or what the command is waiting for. Seen at once, also through a pipe."""
    print(text, flush=True)


def warn(text: str) -> None:
    """One line on standard error, whatever the text."""
    line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
    print(f"fuseswap: {line}", file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere; the function yielded is told of further bytes."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda count: bar.advance(task, count)
