"""One page and its neighbours without pressure, counted on the wire between the engine and its server."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from attrs import frozen

from fuseswap.host.ganesha import GaneshaServer
from fuseswap.swap.units import PAGE_SIZE
from tests.contract.pages import LiveSwap, live_swap, pages
from tests.engine.nfs_codec import FILE_SYNC, READ, WRITE, Arguments, decode_call
from tests.kit.proxy import Cut, Record, Send, forward

pytestmark = pytest.mark.swap

NEIGHBOURS = 32
COMMIT = 21
"""NFSPROC3_COMMIT (RFC 1813 section 3.3.21)."""
READ_AHEAD = 1 << int(Path("/proc/sys/vm/page-cluster").read_text())
"""Pages that the kernel asks for at most when one is touched (swapin_readahead in mm/swap_state.c)."""


@frozen
class Wire:
    """Sees each call that the engine makes."""

    swap: LiveSwap

    def calls(self, action: Callable[[], object]) -> list[Arguments]:
        """The calls during an action and until nothing is under way any more."""
        seen: list[Arguments] = []

        def watch(record: Record, _: random.Random) -> Iterable[Send | Cut]:
            # The filesystem process calls too, but never for a page.
            assert record.procedure != COMMIT
            if record.procedure in (READ, WRITE):
                seen.append(decode_call(record.data))
            return [Send(record.framed())]

        self.swap.proxy.on_call = watch
        action()
        self.swap.settle()
        self.swap.proxy.on_call = forward
        return seen


def shape(calls: list[Arguments]) -> list[tuple[int, int, int]]:
    """Procedure, bytes, and for a WRITE stable_how (RFC 1813 section 3.3.7)."""
    return [(call.procedure, call.count, call.stable) for call in calls]


def test_one_page(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    with live_swap(nfs_server, nfs_dir) as swap, pages(1) as page:
        wire = Wire(swap)
        (write,) = calls = wire.calls(page.out)
        assert shape(calls) == [(WRITE, PAGE_SIZE, FILE_SYNC)]
        assert write.data[:16] == page.begin(0)

        page.leave_cache()
        calls = wire.calls(lambda: page.are_right() or pytest.fail("a wrong page"))
        assert [(call.procedure, call.offset, call.count) for call in calls] == [(READ, write.offset, PAGE_SIZE)]

        assert wire.calls(page.out) == [], "clean, and on swap already"

        page.dirty()
        (again,) = calls = wire.calls(page.out)
        assert shape(calls) == [(WRITE, PAGE_SIZE, FILE_SYNC)]
        assert again.data[:16] == page.begin(0) != write.data[:16]


def test_neighbours_travel_together(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    with live_swap(nfs_server, nfs_dir) as swap, pages(NEIGHBOURS) as some:
        wire = Wire(swap)
        calls = wire.calls(some.out)
        assert shape(calls) == [(WRITE, NEIGHBOURS * PAGE_SIZE, FILE_SYNC)]

        some.leave_cache()
        calls = wire.calls(lambda: some.are_right() or pytest.fail("a wrong page"))
        assert {call.procedure for call in calls} == {READ}
        assert sum(call.count for call in calls) == NEIGHBOURS * PAGE_SIZE, "each page once"
        assert max(call.count for call in calls) == READ_AHEAD * PAGE_SIZE
        assert len(calls) < NEIGHBOURS / 2
