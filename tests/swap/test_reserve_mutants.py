"""Each rule of the reserve, taken away by hand, must turn a quick check red."""

from pathlib import Path
from typing import Any

import pytest

import fuseswap
from fuseswap.swap.reserve import Reserve
from tests.swap import test_reserve
from tests.swap.reserve_model import walk

SOURCE = (Path(fuseswap.__file__).parent / "swap/reserve.py").read_text()

MUTANTS = [
    ("offers less than a landing room", "if self._current_pages < self.landing_pages or",
     "if not self._current_pages or"),
    ("refuses the last landing room", "self._current_pages < self.landing_pages or",
     "self._current_pages <= self.landing_pages or"),
    ("offers more than was asked", "return self._current, self.landing_pages",
     "return self._current, self._current_pages"),
    ("writes overtake for ever", " or self._passed_pages >= self.pages:", ":"),
    ("writes never overtake", "self._passed_pages >= self.pages:", "self._waiting:"),
    ("overtaking is counted without a waiting read", "        if self._waiting:\n            self._passed",
     "        if True:\n            self._passed"),
    ("overtaking is not forgotten", "        self._passed_pages = 0\n        return", "        return"),
    ("a read overtakes", "if not self._waiting and self._fits(pages):", "if self._fits(pages):"),
    ("the newest waiting read first", "waiting.popleft()", "waiting.pop()"),
    ("a waiting read is served twice", "waiting.popleft()", "waiting[0]"),
    ("a waiting read is forgotten", "        waiting.append((read, pages))\n", ""),
    ("reads ignore the watermark", "free - pages >= self.watermark_pages", "free >= pages"),
    ("reads stay above the watermark by one too many", "free - pages >= self.watermark_pages",
     "free - pages > self.watermark_pages"),
    ("writes keep the watermark", "self._current_pages < self.landing_pages or",
     "self._current_pages < self.landing_pages or self.pages - self.used_pages <= self.watermark_pages or"),
    ("reads do not look for room", "return pages <= self._current_pages and", "return"),
    ("charged a page too few", "rest = self._current_pages - pages\n",
     "rest = self._current_pages - pages + (pages > 1)\n"),
    ("the charge is not counted", "        self.used_pages += pages\n", ""),
    ("the release is not counted", "        self.used_pages -= pages\n", ""),
    ("released memory is lost", "        starts[first] = pages\n        ends[end] = first\n", ""),
    ("no joining with what follows", "following: int = starts.pop(end, 0)", "following = 0"),
    ("no joining with what is before", "if first in ends:", "if False:"),
    ("joined, but the old end stays", "first = ends.pop(first)", "first = ends[first]"),
    ("joined, but the old start stays", "following: int = starts.pop(end, 0)", "following = starts.get(end, 0)"),
    ("the current extent does not grow", "if first <= self._current < end or", "if"),
    ("a better extent is not taken", " or self._current_pages < min(pages, self.landing_pages):", ":"),
    ("the largest is not looked for", "if rest < self.landing_pages and", "if not rest and"),
    ("the smallest is looked for", "max(starts, key", "min(starts, key"),
    ("high-water mark stands still", "            self.used_pages_max = self.used_pages\n",
     "            pass\n"),
    ("refusals are not counted", "            self.refused_landings += 1\n", ""),
]  # fmt: skip

ILLEGAL = [
    ("write without an offer", "if not self._offered or not 0", "if not 0"),
    ("write larger than the offer",
     "not 0 < pages <= self.landing_pages:\n            raise ValueError(f\"a write",
     "not 0 < pages:\n            raise ValueError(f\"a write"),
    ("write of nothing", "not 0 < pages <= self.landing_pages:\n            raise ValueError(f\"a write",
     "not pages <= self.landing_pages:\n            raise ValueError(f\"a write"),
    ("offer outlives a charge", "        self._charged[first] = pages\n        self._offered = False\n",
     "        self._charged[first] = pages\n"),
    ("offer outlives a release", "        del self._charged[first]\n        self._offered = False\n",
     "        del self._charged[first]\n"),
    ("read larger than any",
     "if not 0 < pages <= self.landing_pages:\n            raise ValueError(f\"a read",
     "if not 0 < pages:\n            raise ValueError(f\"a read"),
    ("released twice", "self._charged.get(first, -1)", "self._charged.get(first, pages)"),
    ("released in part", "if charged != pages:", "if charged < 0:"),
    ("largest read never fits", "if landing_pages + watermark_pages > pages:", "if landing_pages > pages:"),
    ("exact fit refused", "if landing_pages + watermark_pages > pages:",
     "if landing_pages + watermark_pages >= pages:"),
    ("empty landing room", "if landing_pages < 1 or", "if"),
    ("negative watermark", " or watermark_pages < 0:", ":"),
]  # fmt: skip

STORIES = [
    function
    for name, function in vars(test_reserve).items()
    if name.startswith("test_") and "reserve_class" in getattr(function, "__code__", walk.__code__).co_varnames
]


def mutant(name: str, old: str, new: str) -> Any:
    assert old in SOURCE, f"{name}: the reserve's text has changed, write the mutant anew"
    namespace: dict[str, Any] = {"__name__": "mutant"}
    exec(compile(SOURCE.replace(old, new), f"<{name}>", "exec"), namespace)
    return namespace["Reserve"]


def walk_all(reserve_class: Any) -> None:
    for seed in range(100):
        walk(seed, 120, reserve_class)


def tell_stories(reserve_class: Any) -> None:
    assert STORIES
    for story in STORIES:
        story(reserve_class)


def is_red(check: Any, reserve_class: Any) -> bool:
    try:
        check(reserve_class)
    except (Exception, pytest.fail.Exception):
        return True
    return False


@pytest.mark.parametrize("reserve_class", [Reserve, mutant("none", "", "")], ids=["compiled", "interpreted"])
def test_the_checks_are_green_without_a_mutation(reserve_class: Any) -> None:
    walk_all(reserve_class)
    tell_stories(reserve_class)


@pytest.mark.parametrize(("name", "old", "new"), MUTANTS, ids=[mutation[0] for mutation in MUTANTS])
def test_a_rule_taken_away_is_noticed(name: str, old: str, new: str) -> None:
    reserve_class = mutant(name, old, new)
    assert is_red(walk_all, reserve_class) or is_red(tell_stories, reserve_class), f"nobody notices: {name}"


@pytest.mark.parametrize(("name", "old", "new"), ILLEGAL, ids=[mutation[0] for mutation in ILLEGAL])
def test_a_validation_taken_away_is_noticed(name: str, old: str, new: str) -> None:
    assert is_red(tell_stories, mutant(name, old, new)), f"nobody notices: {name}"
