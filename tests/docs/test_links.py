"""Links lead somewhere, pages can be found, drawings are drawn."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT

_LINK = re.compile(r"\]\(([^)\s]+)\)")


def targets(page: Path) -> list[tuple[Path, str]]:
    """(file, fragment) of each link that is not to the web."""
    found = []
    for target in _LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if not target.startswith(("http://", "https://")):
            path, _, fragment = target.partition("#")
            found.append(((page.parent / path).resolve() if path else page, fragment))
    return found


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, fragment in targets(page):
        assert path.exists(), path
        if fragment:
            assert fragment in anchors(path), (path, fragment)


def test_every_page_is_in_the_index() -> None:
    index = {path for path, _ in targets(ROOT / "docs/README.md")}
    missing = [page for page in PAGES if page not in index and page != ROOT / "docs/README.md"]
    assert not missing


def test_drawings_are_used_and_are_xml() -> None:
    used = {path for page in PAGES for path, _ in targets(page) if path.suffix == ".svg"}
    drawn = set((ROOT / "docs").rglob("*.svg"))
    assert drawn == used
    for drawing in drawn:
        assert ElementTree.fromstring(drawing.read_text()).tag.endswith("svg")


def test_pages_say_nothing_of_what_a_reader_cannot_see() -> None:
    for page in PAGES:
        text = page.read_text()
        for word in ("../shared", "issue #", "TODO", "FIXME"):
            assert word not in text, (page, word)
