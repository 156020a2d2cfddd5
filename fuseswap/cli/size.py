"""Sizes, in util-linux's grammar (strutils(3), "NUM[suffix]")."""

import re

from fuseswap.swap.units import PAGE_SIZE

_SIZE = re.compile(r"([0-9]+)(?:\.([0-9]+))?(?:([KMGTPE])(iB|B)?|B)?", re.IGNORECASE)
_EXPONENTS = "KMGTPE"
_BYTES_MAX = 1 << 62
_PAGES_MIN = 10
"""MIN_GOODPAGES of mkswap(8), which makes the header."""


def parse_size(text: str) -> int:
    """Bytes of `1G` = `1GiB` = 1073741824, `1GB` = 1000000000, `1.5G`, `4096`.

    ValueError says what is wrong.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"size {text!r} is not a number with K, M, G, T (powers of 1024) or KB, MB, GB, TB")
    whole, fraction, unit, suffix = match.groups()
    if unit is None:
        if fraction is not None:
            raise ValueError(f"size {text!r} is not a whole number of bytes")
        factor = 1
    else:
        base = 1000 if suffix is not None and suffix.upper() == "B" else 1024
        factor = base ** (_EXPONENTS.index(unit.upper()) + 1)
    size = int(whole) * factor
    if fraction is not None:
        size += int(fraction) * factor // 10 ** len(fraction)
    if size > _BYTES_MAX:
        raise ValueError(f"size {text!r} is beyond every file system")
    return size


def parse_file_size(text: str) -> int:
    """The bytes of a swap file that is to be made: whole pages, and as many as mkswap(8) wants.

    ValueError says what is wrong.
    """
    size = parse_size(text)
    if size % PAGE_SIZE:
        near = max(_PAGES_MIN, round(size / PAGE_SIZE)) * PAGE_SIZE
        raise ValueError(f"size {text} is not a multiple of {PAGE_SIZE} bytes: {near} would be")
    if size < _PAGES_MIN * PAGE_SIZE:
        raise ValueError(f"size {text} is too small: mkswap wants {_PAGES_MIN * PAGE_SIZE} bytes at least")
    return size


def format_size(size_bytes: float) -> str:
    """`1.5 GiB`: at most one decimal."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"]
    value = float(size_bytes)
    while abs(value) >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.1f}".removesuffix(".0") + f" {units[0]}"
