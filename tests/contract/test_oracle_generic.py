"""generic_swapfile_activate against the running kernel: layouts that no file system would make."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuseswap.swap.errors import ContractError
from fuseswap.swap.extents import generic_extents
from fuseswap.swap.header import SwapHeader, format_header
from fuseswap.swap.units import PAGE_SIZE
from tests.contract.bmap_server import BmapServer, MappedFile, bmap_server
from tests.contract.test_oracle_swapon import Activated, Refused, kernel_verdict
from tests.swap.test_extents import PAGE_VECTORS, bmap_of, runs

pytestmark = pytest.mark.swap


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BmapServer]:
    with bmap_server(tmp_path_factory.mktemp("generic")) as server:
        yield server


def compare(server: BmapServer, size_bytes: int, last_page: int, blocks: Sequence[int]) -> Activated | Refused:
    """Both verdicts, which must agree, and the same blocks must have been asked for in the same order."""
    path: Path = server.add(MappedFile(size_bytes, format_header(SwapHeader(last_page)), blocks))
    probes: list[int] = []

    kernel = kernel_verdict(path)

    try:
        layout = generic_extents(size_bytes, PAGE_SIZE, last_page + 1, bmap_of(blocks, probes))
    except ContractError as error:
        assert isinstance(kernel, Refused), (error, kernel)
        assert kernel.errno == error.errno
        assert error.text in kernel.text
    else:
        assert kernel == Activated(layout.pages, layout.extent_count, layout.span)
    assert server.probes == probes
    return kernel


@pytest.mark.parametrize("number", PAGE_VECTORS)
def test_vectors(server: BmapServer, number: int) -> None:
    vector = PAGE_VECTORS[number]

    kernel = compare(server, int(vector.size_pages * PAGE_SIZE), vector.last_page, vector.blocks)

    assert kernel == Activated(vector.pages, len(vector.extents), vector.span)


@pytest.mark.parametrize(
    ("blocks", "probes"), [([*runs((100, 104)), 0, *runs((106, 109))], 6), (runs((0, 9)), 1)], ids=["7", "8"]
)
def test_vectors_with_holes(server: BmapServer, blocks: list[int], probes: int) -> None:
    kernel = compare(server, 10 * PAGE_SIZE, 9, blocks)

    assert isinstance(kernel, Refused)
    assert len(server.probes) == probes


def test_vector_14(server: BmapServer) -> None:
    path = server.add(MappedFile(10 * PAGE_SIZE, format_header(SwapHeader(10)), runs((100, 109))))

    kernel = kernel_verdict(path)

    assert isinstance(kernel, Refused)
    assert kernel.text == "Swap area shorter than signature indicates"
    assert server.probes == []


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[int], int, int]:
    blocks: list[int] = []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.one_of(st.integers(1, 60), st.integers(0, 2**31 - 64)))
        step = draw(st.sampled_from([1, 1, 1, 0, 2, -1]))
        blocks += [max(0, start + i * step) for i in range(draw(st.integers(1, 12)))]
    if len(blocks) < 2:
        blocks.append(draw(st.integers(1, 100)))
    return blocks, draw(st.integers(1, len(blocks) - 1)), draw(st.integers(0, PAGE_SIZE - 1))


@given(layout=layouts())
@example(([5, 5], 1, 0))
@example(([1, 2**31, 3], 2, 0))
def test_any_layout(server: BmapServer, layout: tuple[list[int], int, int]) -> None:
    blocks, last_page, tail = layout

    compare(server, len(blocks) * PAGE_SIZE + tail, last_page, blocks)
