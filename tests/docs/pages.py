"""The pages of the documentation, and the commands in them.

A command is a line of a fenced block that is marked `sh`; a line after the prompt `# ` in an indented block or one
marked `console`; or a line of an indented block that begins with a program of this project.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import frozen

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = (
    ROOT / "README.md",
    ROOT / "examples/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)

_FENCE: Final = re.compile(r"```(\S*)")
_PROMPT: Final = re.compile(r" *# (\S.*)")
_OWN: Final = re.compile(r" {4,}((?:make|fuseswap|bench/|\.venv/bin/).*)")
_COMMENT: Final = re.compile(r"\s{2,}# .*$")


@frozen
class Command:
    """One line that a reader may copy."""

    page: str
    """Relative to the project's directory."""
    line: int
    text: str


def commands(page: Path) -> Iterator[Command]:
    """The commands of a page, in order."""
    fence: str | None = None
    name = str(page.relative_to(ROOT))
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if line.lstrip().startswith("```"):
            match = _FENCE.match(line.lstrip())
            fence = match[1] if fence is None and match else None
            continue
        text = _command(line, fence)
        if text:
            yield Command(name, number, _COMMENT.sub("", text).strip())


def _command(line: str, fence: str | None) -> str:
    if fence == "sh":
        return line
    if fence is None and not line.startswith("    "):
        return ""
    if fence in (None, "console") and (match := _PROMPT.fullmatch(line)):
        return match[1]
    if fence is None and (match := _OWN.fullmatch(line)):
        return match[1]
    return ""
