"""What the demo shows while it runs: bars on a terminal, a line per phase elsewhere."""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fuseswap.cli.output import say
from fuseswap.host.hog import Report
from fuseswap.swap.units import PAGE_SIZE

_TITLES = {
    "fill": "fill, pages go out",
    "sequential": "read all in order",
    "random": "read at random",
}


class Screen:
    """A context manager; `show` is told of every report of the hog."""

    def __init__(self) -> None:
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        if sys.stderr.isatty():
            self._bars = Progress(
                TextColumn("{task.description:20}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} pages"),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, report: Report, words: dict[str, int]) -> None:
        """The hog's progress, and what the engine has done by now."""
        title = _TITLES.get(report.phase, report.phase)
        note = (
            f"{report.mb_per_s:.0f} MB/s, {report.wrong_pages} wrong, engine: {words['write_bytes'] // PAGE_SIZE} out,"
            f" {words['read_bytes'] // PAGE_SIZE} in"
        )
        if self._bars is not None:
            if report.phase not in self._tasks:
                self._tasks[report.phase] = self._bars.add_task(title, total=report.pages_total, note="")
            self._bars.update(self._tasks[report.phase], completed=report.pages, note=note)
        elif report.ended:
            say(f"demo: {title}: {report.pages} pages in {report.seconds:.1f} s, {note}")
