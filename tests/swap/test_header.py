"""The header against a model written from include/linux/swap.h field by field, and the mark."""

import struct
from errno import EINVAL
from uuid import UUID
from zlib import crc32

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuseswap.swap.errors import ContractError
from fuseswap.swap.header import (
    BAD_PAGES_MAX,
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
from fuseswap.swap.units import PAGE_SIZE

U32 = st.integers(0, 2**32 - 1)
LABELS = st.binary(max_size=16).map(lambda label: label.replace(b"\0", b"n"))
HEADERS = st.builds(
    SwapHeader,
    last_page=st.integers(1, 2**32 - 1),
    bad_pages=st.lists(U32, max_size=BAD_PAGES_MAX).map(tuple),
    uuid=st.uuids(),
    label=LABELS,
    byte_order=st.sampled_from(["little", "big"]),
)
MARK_TEXTS = st.text(st.characters(codec="utf-8"), max_size=40)
MARKS = st.builds(Mark, MARK_TEXTS, MARK_TEXTS, MARK_TEXTS)
PAGES = st.one_of(st.binary(max_size=PAGE_SIZE), HEADERS.map(format_header))


def raw_header(
    version: int = 1,
    last_page: int = 9,
    bad_pages: int = 0,
    signature: bytes = b"SWAPSPACE2",
    order: str = "<",
) -> bytes:
    page = bytearray(PAGE_SIZE)
    struct.pack_into(order + "III", page, 1024, version, last_page, bad_pages)
    page[-10:] = signature
    return bytes(page)


def refusal(page: bytes, size_bytes: int = 10 * PAGE_SIZE, regular: bool = True) -> tuple[str, str]:
    with pytest.raises(ContractError) as caught:
        parse_header(page, size_bytes, regular)
    assert caught.value.errno == EINVAL
    assert not caught.value.own
    return caught.value.step, caught.value.text if caught.value.kernel_text else ""


@given(HEADERS)
@example(SwapHeader(2**32 - 1, tuple(range(BAD_PAGES_MAX)), UUID(int=2**128 - 1), b"sixteen bytes..."))
def test_round_trip(header: SwapHeader) -> None:
    page = format_header(header)

    assert len(page) == PAGE_SIZE
    assert not any(page[:1024])
    assert parse_header(page) == header


@given(HEADERS)
def test_fields_lie_where_the_kernel_has_them(header: SwapHeader) -> None:
    page = format_header(header)

    order = "<" if header.byte_order == "little" else ">"
    assert struct.unpack_from(order + "I", page, 1024) == (1,)
    assert struct.unpack_from(order + "I", page, 1028) == (header.last_page,)
    assert struct.unpack_from(order + "I", page, 1032) == (len(header.bad_pages),)
    assert page[1036:1052] == header.uuid.bytes
    assert page[1052:1068].rstrip(b"\0") == header.label
    assert struct.unpack_from(f"{order}{len(header.bad_pages)}I", page, 1536) == header.bad_pages
    assert page[4086:] == b"SWAPSPACE2"


@given(PAGES, st.integers(0, 2**44), st.booleans())
def test_wild_bytes_are_a_header_or_a_refusal(page: bytes, size_bytes: int, regular: bool) -> None:
    try:
        header = parse_header(page, size_bytes, regular)
    except ContractError as error:
        assert error.errno == EINVAL
        assert error.remedy
    else:
        assert parse_header(format_header(header)) == header


def model(page: bytes, size_bytes: int, regular: bool) -> str:
    """read_swap_header, line by line, over a page that is signed: the step that refuses, or `ok`."""
    version, last_page, bad_pages = struct.unpack_from("<III", page, 1024)
    if int.from_bytes(version.to_bytes(4, "little"), "big") == 1:
        version, last_page, bad_pages = struct.unpack_from(">III", page, 1024)
        if bad_pages > 637:
            return "other-endian-bad-pages"
    if version != 1:
        return "version"
    if not last_page:
        return "last-page"
    maxpages = 2**40
    if maxpages > last_page:
        maxpages = last_page + 1
        if maxpages & 0xFFFFFFFF == 0:
            maxpages = 0xFFFFFFFF
    swapfilepages = size_bytes >> 12
    if swapfilepages and maxpages > swapfilepages:
        return "shorter"
    if bad_pages and regular:
        return "bad-pages"
    if bad_pages > 637:
        return "bad-pages-max"
    return "ok"


@given(
    version=st.one_of(st.just(1), st.just(0x01000000), U32),
    last_page=st.one_of(st.sampled_from([0, 1, 9, 0x09000000, 2**32 - 1]), U32),
    bad_pages=st.one_of(st.sampled_from([0, 1, 637, 638, 0x01000000]), U32),
    order=st.sampled_from("<>"),
    pages=st.one_of(st.sampled_from([0, 1, 9, 10, 11, 2**32 - 1, 2**32]), st.integers(0, 2**34)),
    regular=st.booleans(),
)
def test_order_of_refusals(version: int, last_page: int, bad_pages: int, order: str, pages: int, regular: bool) -> None:
    page = raw_header(version, last_page, bad_pages, order=order)
    size_bytes = pages * PAGE_SIZE

    expected = model(page, size_bytes, regular)

    if expected == "ok":
        parse_header(page, size_bytes, regular)
    else:
        assert refusal(page, size_bytes, regular)[0] == expected


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_kernels_texts(order: str) -> None:
    assert refusal(bytes(PAGE_SIZE)) == ("signature", "Unable to find swap-space signature")
    assert refusal(b"") == ("signature", "Unable to find swap-space signature")
    assert refusal(raw_header(signature=b"SWAP-SPACE", order=order))[0] == "signature"
    assert refusal(raw_header(2, order=order))[0] == "version"
    assert refusal(raw_header(last_page=0, order=order)) == ("last-page", "Empty swap-file")
    shorter = ("shorter", "Swap area shorter than signature indicates")
    assert refusal(raw_header(last_page=10, order=order)) == shorter
    assert refusal(raw_header(bad_pages=1, order=order)) == ("bad-pages", "")
    assert parse_header(raw_header(last_page=9, order=order), 10 * PAGE_SIZE, True).pages_max == 10


def test_version_is_printed_as_the_kernel_prints_it() -> None:
    text = "Unable to handle swap header version"

    assert refusal(raw_header(2)) == ("version", f"{text} 2")
    assert refusal(raw_header(2**32 - 1)) == ("version", f"{text} -1")
    assert refusal(raw_header(2, order=">")) == ("version", f"{text} {2 << 24}")


def test_a_tail_below_a_page_does_not_count() -> None:
    assert refusal(raw_header(last_page=9), 10 * PAGE_SIZE - 1)[0] == "shorter"
    assert parse_header(raw_header(last_page=9), 11 * PAGE_SIZE - 1, True).last_page == 9


@pytest.mark.parametrize(
    "header",
    [
        SwapHeader(2**32),
        SwapHeader(1, (2**32,)),
        SwapHeader(1, tuple(range(638))),
        SwapHeader(1, label=b"seventeen bytes.."),
        SwapHeader(1, label=b"a\0b"),
    ],
)
def test_what_no_header_can_say(header: SwapHeader) -> None:
    with pytest.raises(ValueError):
        format_header(header)


@given(HEADERS, MARKS, MARKS, st.binary(min_size=MARK_OFFSET, max_size=MARK_OFFSET))
def test_mark_round_trip(header: SwapHeader, mark: Mark, newer: Mark, boot: bytes) -> None:
    page = boot + format_header(header)[MARK_OFFSET:]

    marked = put_mark(page, mark)

    assert read_mark(page) is None
    assert read_mark(marked) == mark
    assert parse_header(marked) == header
    assert marked[:MARK_OFFSET] == boot
    assert read_mark(put_mark(marked, newer)) == newer
    assert clear_mark(marked) == page
    assert clear_mark(page) == page


@given(MARKS, st.integers(0, MARK_BYTES - 1), st.integers(1, 255))
def test_a_damaged_mark_is_none(mark: Mark, position: int, flip: int) -> None:
    page = bytearray(put_mark(format_header(SwapHeader(9)), mark))
    page[MARK_OFFSET + position] ^= flip

    assert read_mark(bytes(page)) is None
    assert clear_mark(bytes(page)) == bytes(page)


@given(st.binary(max_size=MARK_BYTES), HEADERS, MARKS)
def test_foreign_bytes_are_never_overwritten(foreign: bytes, header: SwapHeader, mark: Mark) -> None:
    area = foreign.ljust(MARK_BYTES, b"\0")
    page = bytes(MARK_OFFSET) + area + format_header(header)[MARK_OFFSET + MARK_BYTES :]

    assert read_mark(page) is None
    assert clear_mark(page) == page
    assert is_boot_block_free(page) == (area == bytes(MARK_BYTES))
    if any(area):
        with pytest.raises(ContractError) as caught:
            put_mark(page, mark)
        assert (caught.value.errno, caught.value.step, caught.value.own) == (EINVAL, "boot-block", True)
    else:
        assert read_mark(put_mark(page, mark)) == mark


@given(st.binary(max_size=PAGE_SIZE))
def test_marks_in_wild_bytes(page: bytes) -> None:
    assert read_mark(page) is None


@given(st.binary(max_size=MARK_BYTES - 12))
def test_wild_bytes_with_a_right_checksum(body: bytes) -> None:
    """A mark of another version, say: read as far as it can be, never an exception."""
    body = body.ljust(MARK_BYTES - 12, b"\0")
    area = b"fuseswap" + crc32(body).to_bytes(4, "little") + body
    page = bytes(MARK_OFFSET) + area + bytes(PAGE_SIZE - MARK_OFFSET - MARK_BYTES)

    mark = read_mark(page)

    assert mark is None or isinstance(mark.machine_id, str)


def test_a_mark_that_is_too_long() -> None:
    page = format_header(SwapHeader(9))

    assert read_mark(put_mark(page, Mark("m" * 494, "", ""))) == Mark("m" * 494, "", "")
    with pytest.raises(ValueError, match="too long"):
        put_mark(page, Mark("m" * 495, "", ""))
    with pytest.raises(ValueError, match="4095 bytes"):
        put_mark(page[:-1], Mark("m", "b"))
