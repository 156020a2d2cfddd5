"""Sizes as util-linux reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseswap.cli.size import format_size, parse_file_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("0", 0),
        ("1K", 1024),
        ("1KiB", 1024),
        ("1kB", 1000),
        ("512M", 512 << 20),
        ("1G", 1 << 30),
        ("1g", 1 << 30),
        ("1GiB", 1 << 30),
        ("1GB", 10**9),
        ("1.5G", 3 << 29),
        ("2T", 2 << 40),
        ("100B", 100),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "1X", "1 G", "0x10", "1.5", "1,5G", "1e9", "nan", "9999999E"])
def test_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "why"), [("0", "too small"), ("36K", "too small"), ("10000", "multiple"), ("1GB", "multiple")]
)
def test_not_a_swap_file(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_file_size(text)


@given(st.integers(10, 1 << 40))
def test_whole_pages_are_a_swap_file(pages: int) -> None:
    assert parse_file_size(str(pages * 4096)) == pages * 4096


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1 << 30, "1 GiB"), (3 << 29, "1.5 GiB"), (5 << 60, "5120 PiB")],
)
def test_format(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1 << 50))
def test_format_is_read_back_to_one_decimal(size: int) -> None:
    text = format_size(size).replace(" bytes", "").replace(" ", "")
    assert abs(parse_size(text) - size) <= max(1, size * 0.06)
