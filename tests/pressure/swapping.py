"""`fuseswap up` for tests that put it under pressure, and its end also when everything is dead."""

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import frozen

from fuseswap.host import rundir
from fuseswap.host.ganesha import GaneshaServer
from fuseswap.host.swap import PRIORITY_MAX, SwapArea, swap_area, swaps
from tests.cli.command import Result, finish, fuseswap, start
from tests.cli.swapped import is_clean, server_process
from tests.kit.rescue import Leftovers


@frozen
class Swap:
    """Swap that was brought up, used before any other."""

    name: str
    url: str

    @property
    def mountpoint(self) -> str:
        """Of the engine's private file."""
        return str(rundir.engine_mountpoint(self.name))

    def words(self) -> dict[str, int]:
        snapshot = rundir.read_counters(self.name)
        assert snapshot is not None
        return snapshot.words

    def pid(self, title: str) -> int:
        """Of its engine, supervisor or filesystem process (`processes.ENGINE`, ...)."""
        return server_process(self.name, title)

    def area(self) -> SwapArea | None:
        device = rundir.engine_device(self.name)
        return swap_area(device.path) if device is not None else None

    def status(self) -> dict[str, Any]:
        result = fuseswap("status", "--json")
        assert result.code == 0, result
        (report,) = (report for report in json.loads(result.output)["swap"] if report["name"] == self.name)
        return dict(report)

    def status_text(self) -> str:
        """Of this swap alone: a paragraph of `fuseswap status -v`."""
        result = fuseswap("status", "-v")
        assert result.code == 0, result
        (text,) = (text for text in result.output.split("\n\n") if text.startswith(f"{self.name}: "))
        return text

    def down(self, *options: str) -> Result:
        return fuseswap("down", *options, self.name, seconds=90)

    def is_gone(self) -> bool:
        """Whether nothing of it is left: swap, loop device, mounts, directory, processes."""
        return is_clean(self.name)


@contextmanager
def swap_up(server: GaneshaServer, size_bytes: int, *, within: Sequence[str] = ()) -> Iterator[Swap]:
    """`fuseswap up`, below a wrapper such as `MemoryCgroup.command(())`.

    A test that wants to see the end takes it down itself; what is left is freed, even from the dead.
    """
    name = f"press-{secrets.token_hex(4)}"
    swap = Swap(name, server.url(name))
    taken = [area.path for area in swaps() if area.priority == PRIORITY_MAX]
    assert not taken, f"{taken} would take half of the pages: left by something that did not hold the swap lock?"
    try:
        command = ("up", swap.url, "--size", str(size_bytes), "--priority", str(PRIORITY_MAX))
        result = finish(start(*command, wrapper=within))
        assert (result.code, result.errors) == (0, ""), result
        yield swap
    finally:
        Leftovers.of(rundir.directory(name)).free()
        if rundir.directory(name).exists():
            swap.down("--force")
        (server.export_dir / name).unlink(missing_ok=True)
