"""What a command prints: results and notes on standard output, errors and warnings on standard error."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


def say(text: str) -> None:
    """A result, or what the command is waiting for. Seen at once, also through a pipe.

    Where nobody reads any more the command goes on: what it builds or takes down must not stand half done.
    """
    _print(text, sys.stdout)


def stream(text: str) -> None:
    """Some of a result without an end. BrokenPipeError where nobody reads any more."""
    print(text, flush=True)


def warn(text: str) -> None:
    """One line on standard error, whatever the text."""
    line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
    _print(f"fuseswap: {line}", sys.stderr)


def discard(file: TextIO) -> None:
    """Let what is written to the file, and what waits in its buffer, go nowhere."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, file.fileno())
    os.close(descriptor)


def _print(text: str, file: TextIO) -> None:
    try:
        print(text, file=file, flush=True)
    except BrokenPipeError:
        discard(file)


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
