"""The escapes of /proc tables."""

import os
import re
from pathlib import Path

_ESCAPE = re.compile(rb"\\([0-7]{3})")


def unescape(text: str) -> str:
    r"""Undo mangle_path (fs/seq_file.c): \040 for a space, \011, \012, \134, and \043 in mountinfo."""
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), os.fsencode(text)))


def read_table(path: str | Path) -> str:
    """A table of /proc as text; bytes of names that are no text survive (os.fsencode gives them back)."""
    return os.fsdecode(Path(path).read_bytes())
