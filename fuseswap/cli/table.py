"""Columns of text, as util-linux prints them."""

from collections.abc import Sequence


def columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns under their titles, two blanks apart, no trailing blanks."""
    lines = [[title.upper() for title in titles], *rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(titles))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
