"""Wild header pages by the hundred thousand: a verdict or a refusal, never anything else.

hypothesis finds the odd cases (test_header.py, test_activation.py); this is for numbers. The seed is printed
by pytest when a run fails: `pages(seed, ...)` makes the same inputs again.
"""

import json
import random
from collections.abc import Iterator

import pytest
from attrs import evolve

from fuseswap.swap.activation import FileFacts, swap_activate
from fuseswap.swap.errors import ContractError
from fuseswap.swap.extents import Mapping
from fuseswap.swap.header import (
    MARK_BYTES,
    MARK_OFFSET,
    Mark,
    SwapHeader,
    clear_mark,
    format_header,
    is_boot_block_free,
    parse_header,
    put_mark,
    read_mark,
)
from fuseswap.swap.report import check_report
from fuseswap.swap.target import ActivationRequest
from fuseswap.swap.units import PAGE_SIZE

MARK = Mark("0123456789abcdef", "boot", "host")
SEEDS = [
    bytes(PAGE_SIZE),
    format_header(SwapHeader(9)),
    format_header(SwapHeader(2**32 - 1, tuple(range(637)), label=b"label", byte_order="big")),
    put_mark(format_header(SwapHeader(9)), MARK),
    put_mark(bytes(PAGE_SIZE), Mark("m" * 494, "", "")),
]
# Where bytes mean something: a change anywhere else is seldom seen.
PLACES = [*range(MARK_OFFSET, MARK_OFFSET + 60), *range(1024, 1068), *range(1536, 1544), *range(4086, 4096)]
EDGES = (0, 1, 9, 10, 127, 128, 255)


def pages(seed: int, count: int) -> Iterator[bytes]:
    """Pages with a few bytes changed, some cut short, some of noise."""
    source = random.Random(seed)
    for _ in range(count):
        page = bytearray(source.choice(SEEDS))
        for _ in range(source.randrange(6)):
            place = source.choice(PLACES) if source.random() < 0.8 else source.randrange(PAGE_SIZE)
            page[place] = source.choice(EDGES) if source.random() < 0.7 else source.randrange(256)
        if source.random() < 0.05:
            del page[source.randrange(PAGE_SIZE) :]
        yield bytes(page)


def wild_mappings(source: random.Random) -> tuple[Mapping, ...]:
    """As FIEMAP may tell them, in order; some are holes."""
    mappings = []
    logical = 0
    for _ in range(source.randrange(4)):
        length = source.choice((512, 1024, 4096, 40960, 1 << 40))
        physical = None if source.random() < 0.1 else source.randrange(1 << 20) * 512
        mappings.append(Mapping(logical, length, physical, source.random() < 0.02, source.random() < 0.02))
        logical += length
    return tuple(mappings)


def fuzz(seed: int, count: int) -> None:
    source = random.Random(seed)
    request = ActivationRequest("0123456789abcdef", "boot")
    for page in pages(seed, count):
        size_bytes = source.choice((0, 1, 4096, 40960, 45056, 2**63 - 1))
        facts = FileFacts(0o100600, size_bytes, size_bytes, page, 4096, 4096)
        if source.random() < 0.3:
            # A device, or a file that the kernel swaps to by block numbers.
            mode = source.choice((0o100600, 0o060600))
            facts = evolve(facts, mode=mode, has_swap_rw=False, mappings=wild_mappings(source))
        try:
            swap_activate(facts, request)
        except ContractError as error:
            assert error.errno and error.remedy
        try:
            header = parse_header(page)
        except ContractError:
            pass
        else:
            assert parse_header(format_header(header)) == header
        mark = read_mark(page)
        if len(page) == PAGE_SIZE and is_boot_block_free(page):
            marked = put_mark(page, MARK)
            assert read_mark(marked) == MARK
            if mark is None:
                assert clear_mark(marked) == page
        elif len(page) == PAGE_SIZE:
            assert mark is None
            assert any(page[MARK_OFFSET : MARK_OFFSET + MARK_BYTES])
        if source.random() < 0.02:
            json.loads(check_report(facts, request).to_json())


def test_wild_pages() -> None:
    fuzz(random.randrange(2**32), 200_000)


@pytest.mark.torture
@pytest.mark.timeout(600)
def test_a_million_wild_pages() -> None:
    fuzz(random.randrange(2**32), 1_000_000)
