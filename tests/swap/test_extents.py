"""Extent arithmetic: vectors taken from the kernel's log, and brute-force models."""

from collections.abc import Callable, Sequence

import pytest
from attrs import frozen
from hypothesis import example, given
from hypothesis import strategies as st

from fuseswap.swap.errors import ContractError
from fuseswap.swap.extents import (
    Layout,
    Mapping,
    SwapExtent,
    add_swap_extent,
    fs_ops_extents,
    generic_extents,
    iomap_extents,
)
from fuseswap.swap.units import PAGE_SIZE


@frozen
class Vector:
    blocks: Sequence[int]
    extents: Sequence[tuple[int, int, int]]
    span: int
    pages: int
    last_page: int = 9
    size_pages: float = 10
    block_bytes: int = PAGE_SIZE


def runs(*pairs: tuple[int, int]) -> list[int]:
    """Both ends of a pair included."""
    return [block for first, last in pairs for block in range(first, last + 1)]


# block = page: real bmap answers through the kernel's own walk, its log compared (6.18).
PAGE_VECTORS = {
    1: Vector(runs((100, 109)), [(0, 10, 100)], 9, 9),
    2: Vector(runs((100, 104), (200, 204)), [(0, 5, 100), (5, 5, 200)], 104, 9),
    3: Vector([4000, *runs((100, 108))], [(0, 1, 4000), (1, 9, 100)], 9, 9),
    4: Vector(runs((200, 204), (100, 104)), [(0, 5, 200), (5, 5, 100)], 105, 9),
    5: Vector(list(range(200, 190, -1)), [(i, 1, 200 - i) for i in range(10)], 9, 9),
    6: Vector(list(range(50, 70, 2)), [(i, 1, 50 + 2 * i) for i in range(10)], 17, 9),
    9: Vector(runs((100, 104), (900, 904)), [(0, 5, 100)], 4, 4, last_page=4),
    10: Vector([*runs((100, 104)), 0, 0, 0, 0, 0], [(0, 5, 100)], 4, 4, last_page=4),
    11: Vector(runs((100, 108)), [(0, 9, 100)], 8, 8, last_page=8, size_pages=9.5),
    12: Vector([7, 9], [(0, 1, 7), (1, 1, 9)], 1, 1, last_page=1, size_pages=2),
    13: Vector([100, 101, 101, 103], [(0, 2, 100), (2, 1, 101), (3, 1, 103)], 3, 3, last_page=3, size_pages=4),
}
# 1 KiB blocks, from the text of the algorithm.
BLOCK_VECTORS = {
    15: Vector(runs((101, 140)), [(0, 9, 26)], 8, 8, block_bytes=1024),
    16: Vector(runs((100, 119), (200, 219)), [(0, 5, 25), (5, 5, 50)], 29, 9, block_bytes=1024),
    17: Vector(runs((100, 105), (204, 237)), [(0, 1, 25), (1, 8, 51)], 8, 8, block_bytes=1024),
}


def bmap_of(blocks: Sequence[int], probes: list[int] | None = None) -> Callable[[int], int]:
    def bmap(logical: int) -> int:
        if probes is not None:
            probes.append(logical)
        return blocks[logical]

    return bmap


def plain(extents: Sequence[SwapExtent]) -> list[tuple[int, int, int]]:
    return [(extent.start_page, extent.page_count, extent.start_block) for extent in extents]


@pytest.mark.parametrize("number", [*PAGE_VECTORS, *BLOCK_VECTORS])
def test_vectors(number: int) -> None:
    vector = (PAGE_VECTORS | BLOCK_VECTORS)[number]

    layout = generic_extents(
        int(vector.size_pages * PAGE_SIZE), vector.block_bytes, vector.last_page + 1, bmap_of(vector.blocks)
    )

    assert plain(layout.extents) == vector.extents
    assert (layout.span, layout.pages, layout.extent_count) == (
        vector.span,
        vector.pages,
        len(vector.extents),
    )


@pytest.mark.parametrize(
    ("blocks", "block_bytes", "probes"),
    [
        pytest.param([*runs((100, 104)), 0, *runs((106, 109))], PAGE_SIZE, 6, id="7"),
        pytest.param(runs((0, 9)), PAGE_SIZE, 1, id="8"),
        pytest.param([*runs((100, 120)), 0, *runs((122, 139))], 1024, 22, id="18"),
    ],
)
def test_vectors_with_holes(blocks: list[int], block_bytes: int, probes: int) -> None:
    asked: list[int] = []

    with pytest.raises(ContractError, match="swapfile has holes") as caught:
        generic_extents(10 * PAGE_SIZE, block_bytes, 10, bmap_of(blocks, asked))

    assert caught.value.errno_name == "EINVAL"
    assert caught.value.kernel_text
    assert len(asked) == probes


def test_vector_14_never_probes() -> None:
    """last_page 10 in a file of 10 pages: the header is refused before anything is mapped."""
    from tests.swap.test_header import raw_header, refusal

    step = refusal(raw_header(last_page=10), 10 * PAGE_SIZE)
    assert step == ("shorter", "Swap area shorter than signature indicates")


def test_vector_19_header_alone() -> None:
    layout = generic_extents(8 * 1024, 1024, 2, bmap_of(runs((101, 108))))

    assert plain(layout.extents) == [(0, 1, 26)]
    assert layout.pages == 0


@given(st.integers(2, 2**32 - 1))
def test_fs_ops_is_one_extent(pages_max: int) -> None:
    assert fs_ops_extents(pages_max) == Layout((SwapExtent(0, pages_max, 0),), pages_max - 1, pages_max - 1, 1)


# --- generic_swapfile_activate against a model ---


@st.composite
def block_maps(draw: st.DrawFn) -> tuple[list[int], int]:
    """Physical blocks in a few runs, mostly aligned as file systems do it, and the block size."""
    block_bytes = draw(st.sampled_from([512, 1024, 2048, 4096]))
    blocks: list[int] = []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, 200))
        start *= draw(st.sampled_from([1, 1, PAGE_SIZE // block_bytes]))
        blocks += range(start, start + draw(st.integers(1, 40)))
    return blocks, block_bytes


def generic_model(blocks: list[int], block_bytes: int, pages_max: int) -> Layout | None:
    """For each page in turn, the first place where it may lie; slots and their places as one plain list."""
    per_page = PAGE_SIZE // block_bytes
    places: list[int] = []
    at = 0
    while len(places) < pages_max and at + per_page <= len(blocks):
        window = blocks[at : at + per_page]
        if window[0] == 0:
            return None
        if window[0] % per_page:
            at += 1
            continue
        for offset in range(1, per_page):
            if window[offset] == 0:
                return None
            if window[offset] != window[0] + offset:
                break
        else:
            places.append(window[0] // per_page)
            at += per_page
            continue
        at += 1
    used = places[1:]
    extents = extents_of(places)
    span = 1 + max(used) - min(used) if used else 0
    return Layout(tuple(extents), max(len(places), 1) - 1, span, len(extents))


def extents_of(places: list[int]) -> list[SwapExtent]:
    starts = [i for i in range(len(places)) if i == 0 or places[i] != places[i - 1] + 1]
    ends = [*starts[1:], len(places)]
    return [SwapExtent(start, end - start, places[start]) for start, end in zip(starts, ends, strict=False)]


@given(block_maps(), st.integers(2, 30))
@example((runs((0, 39)), 1024), 10)
def test_generic_against_model(layout: tuple[list[int], int], pages_max: int) -> None:
    blocks, block_bytes = layout

    expected = generic_model(blocks, block_bytes, pages_max)

    if expected is None:
        with pytest.raises(ContractError, match="swapfile has holes"):
            generic_extents(len(blocks) * block_bytes, block_bytes, pages_max, bmap_of(blocks))
    else:
        assert expected == generic_extents(len(blocks) * block_bytes, block_bytes, pages_max, bmap_of(blocks))


@given(block_maps(), st.integers(2, 30), st.integers(1, 511))
def test_a_tail_below_a_block_is_not_looked_at(layout: tuple[list[int], int], pages_max: int, tail: int) -> None:
    blocks, block_bytes = layout
    blocks = [block + 8 for block in blocks]

    size_bytes = len(blocks) * block_bytes
    with_tail = generic_extents(size_bytes + tail, block_bytes, pages_max, bmap_of(blocks))

    assert with_tail == generic_extents(size_bytes, block_bytes, pages_max, bmap_of(blocks))


# --- add_swap_extent ---


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 30)), max_size=20))
def test_added_extents_cover_the_same_slots(pieces: list[tuple[int, int]]) -> None:
    extents: list[SwapExtent] = []
    places: list[int] = []
    added = 0
    for page_count, start_block in pieces:
        added += add_swap_extent(extents, len(places), page_count, start_block)
        places += range(start_block, start_block + page_count)

    assert extents == extents_of(places)
    assert added == len(extents)


def test_slots_must_follow() -> None:
    extents = [SwapExtent(0, 4, 100)]

    with pytest.raises(AssertionError, match="slot 5 does not follow"):
        add_swap_extent(extents, 5, 1, 104)
    assert extents == [SwapExtent(0, 4, 100)]


# --- iomap_swapfile_activate ---

KIB = 1024


def mappings_of(*kib_runs: tuple[int, int]) -> list[Mapping]:
    """Runs of 1 KiB blocks, both ends included, one after another in the file."""
    mappings = []
    logical = 0
    for first, last in kib_runs:
        length = (last - first + 1) * KIB
        mappings.append(Mapping(logical, length, first * KIB))
        logical += length
    return mappings


def test_iomap_vectors() -> None:
    """ext4 with 1 KiB blocks, real layouts, the kernel's log compared (6.18)."""
    layout = iomap_extents(128 * KIB, 32, mappings_of((16385, 16400), (8977, 9088)))
    assert plain(layout.extents) == [(0, 3, 4097), (3, 27, 2245)]
    assert layout.span == 7420 // 4

    layout = iomap_extents(32 * KIB, 8, mappings_of((9089, 9108), (9110, 9114), (9116, 9122)))
    assert plain(layout.extents) == [(0, 4, 2273), (4, 1, 2279)]
    assert layout.span == 24 // 4

    layout = iomap_extents(2048 * KIB, 512, mappings_of((8193, 8193 + 2047)))
    assert layout.pages * 4 == 2040


def test_iomap_without_a_whole_page() -> None:
    mappings = mappings_of(*((start, start + 2) for start in range(1001, 1401, 40)))

    with pytest.raises(ContractError, match="Cannot find a single usable page in file"):
        iomap_extents(28 * KIB, 7, mappings)


@given(st.integers(0, 40), st.integers(2, 60))
def test_iomap_refuses_any_hole(pages_before: int, pages_max: int) -> None:
    """Unlike the generic walk it looks behind last_page too."""
    mappings = [Mapping(0, pages_before * PAGE_SIZE, 4096), Mapping(pages_before * PAGE_SIZE, PAGE_SIZE, None)]

    with pytest.raises(ContractError, match="has unallocated extents"):
        iomap_extents((pages_before + 1) * PAGE_SIZE, pages_max, mappings)
    if pages_before:
        # Behind the size, rounded down, nothing is looked at.
        iomap_extents(pages_before * PAGE_SIZE + 4095, pages_max, mappings)


@st.composite
def mapping_lists(draw: st.DrawFn) -> list[Mapping]:
    mappings = []
    logical = 0
    for _ in range(draw(st.integers(1, 8))):
        length = draw(st.integers(1, 24)) * 512
        mappings.append(Mapping(logical, length, draw(st.integers(0, 100)) * 512))
        logical += length
    return mappings


@given(mapping_lists(), st.integers(2, 20), st.integers(0, 40_000))
def test_iomap_against_model(mappings: list[Mapping], pages_max: int, size_bytes: int) -> None:
    """A page of the disk is used if one physically contiguous run of the file covers it, sector by sector."""
    size_bytes = min(size_bytes, mappings[-1].logical + mappings[-1].length)
    sectors = [(mapping.physical or 0) // 512 + i for mapping in mappings for i in range(mapping.length // 512)]
    sectors = sectors[: size_bytes // PAGE_SIZE * 8]
    starts = [i for i in range(len(sectors)) if i == 0 or sectors[i] != sectors[i - 1] + 1]
    ends = [*starts[1:], len(sectors)]
    places: list[int] = []
    lows: list[int] = []
    highs: list[int] = []
    for start, end in zip(starts, ends, strict=False):
        covered = set(sectors[start:end])
        disk_pages = range(sectors[start] // 8, sectors[end - 1] // 8 + 1)
        whole = [page for page in disk_pages if {page * 8 + i for i in range(8)} <= covered]
        if whole and len(places) < pages_max:
            places += whole[: pages_max - len(places)]
            # The header page is skipped by adding one, also where it is the whole run.
            lows.append(whole[0] + 1 if start == 0 else whole[0])
            highs.append(whole[-1])

    if not places:
        with pytest.raises(ContractError, match="single usable page"):
            iomap_extents(size_bytes, pages_max, mappings)
    else:
        layout = iomap_extents(size_bytes, pages_max, mappings)
        assert list(layout.extents) == extents_of(places)
        assert layout.pages == len(places) - 1
        assert layout.span == 1 + max(highs) - min(lows)


@given(mapping_lists(), st.integers(2, 20))
def test_iomap_does_not_care_how_runs_are_cut(mappings: list[Mapping], pages_max: int) -> None:
    size_bytes = mappings[-1].logical + mappings[-1].length
    cut = [
        Mapping(mapping.logical + i * 512, 512, (mapping.physical or 0) + i * 512)
        for mapping in mappings
        for i in range(mapping.length // 512)
    ]

    assert outcome(size_bytes, pages_max, cut) == outcome(size_bytes, pages_max, mappings)


def outcome(size_bytes: int, pages_max: int, mappings: list[Mapping]) -> Layout | str:
    try:
        return iomap_extents(size_bytes, pages_max, mappings)
    except ContractError as error:
        return error.step
