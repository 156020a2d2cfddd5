"""Each rule of the plug, taken away by hand, must turn a quick check red: so the checks are worth their name."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import fuseswap
from fuseswap.swap.plug import Plug
from tests.swap import test_plug
from tests.swap.plug_model import Walk

DIRECTORY = Path(fuseswap.__file__).parent / "swap"
SOURCE = (DIRECTORY / "plug.py").read_text()
REQUESTS_SOURCE = (DIRECTORY / "requests.py").read_text()
QUICK_SEEDS = range(60)
QUICK_STEPS = 250

MUTANTS = [
    # Order
    ("write overtakes an overlapping write", "if owners is None:\n",
     "if owners is None or request.is_write:\n"),
    ("write waits for the first overlapping write only", "dict.fromkeys(owners)", "[owners[0]]"),
    ("read is never blocked", "if owners is None:\n", "if owners is None or not request.is_write:\n"),
    ("read is covered when partly covered", "None not in owners", "owners[0] is not None"),
    ("read of several pages never covered", "None not in owners", "len(owners) == 1 and owners[0]"),
    ("covered read takes the wrong place", "start = offset - owner.offset", "start = 0"),
    ("covered read is not said to be finished", "self.covered_reads += 1\n            return True",
     "self.covered_reads += 1\n            return False"),
    ("later write does not take pages over", "writes.update(dict.fromkeys(pages, request))",
     "writes.update({page: request for page in pages if page not in writes})"),
    ("later one-page write does not take its page over", "                writes[first] = request\n",
     "                writes.setdefault(first, request)\n"),
    ("finished write stays in the index", "                del writes[first]\n", "                pass\n"),
    ("finished write removes a later one's pages", "if writes[page] is request:", "if page in writes:"),
    ("followers freed by the first of their writes", "if not follower.waits_for:",
     "if follower.waits_for >= 0:"),
    ("followers are forgotten", "if not follower.waits_for:", "if follower.waits_for:"),
    ("failed write frees nobody", "        if call.is_write:\n            self._finish_write(requests[0])",
     "        if False:\n            self._finish_write(requests[0])"),
    ("a short reply frees too early", "for request in requests[:covered]:\n            self._finish_write",
     "for request in requests:\n            self._finish_write"),
    # FIFO and slots
    ("newest first", "call = queue.popleft()", "call = queue.pop()"),
    ("one slot too many", "len(in_flight) >= self._slots", "len(in_flight) > self._slots"),
    ("one slot too few", "len(in_flight) >= self._slots", "len(in_flight) >= max(self._slots - 1, 1)"),
    ("a lone request waits for company", "if not queue or len(in_flight)",
     "if not queue or (in_flight and len(queue[0].requests) == 1) or len(in_flight)"),
    ("no place kept in the queue", "insort(queue, call, key=_by_sequence)", "queue.append(call)"),
    ("grown call keeps a young place", "if sequence < call.sequence:", "if False:"),
    ("continuation at the place of its first request", "min(map(_by_sequence, requests))",
     "requests[0].sequence"),
    ("continuation at the end of the queue", "call.sequence = min(map(_by_sequence, requests))",
     "call.sequence = self._sequence + 1"),
    ("limit is not taken over", "        self._slots = slots\n\n    def statistics",
     "\n\n    def statistics"),
    ("completed call keeps its slot",
     "        del self.in_flight[call]\n        requests = call.requests\n        s",
     "        requests = call.requests\n        s"),
    # Merging
    ("never back", "if before is not None and before", "if False and before"),
    ("never front", "elif after is not None and", "elif False and"),
    ("never closes a gap", "if after is not None and before.length", "if False and before.length"),
    ("back over the limit", "before.length + length <= limit", "before.length <= limit"),
    ("front over the limit", "elif after is not None and after.length + length <= limit",
     "elif after is not None and after.length <= limit"),
    ("joined over the limit", "before.length + after.length <= limit", "after.length <= limit"),
    ("reads join writes",
     "starts = self._starts[is_write]\n        ends = self._ends[is_write]\n        before",
     "starts = self._starts[0]\n        ends = self._ends[0]\n        before"),
    ("rsize and wsize mixed up", "limit = self._limits[is_write]", "limit = self._limits[not is_write]"),
    ("front merge out of order", "after.requests.insert(0, request)", "after.requests.append(request)"),
    ("front merge keeps the offset", "            after.offset = offset\n", ""),
    ("a call that left still grows", "        self._forget(call)\n        in_flight", "        in_flight"),
    ("an absorbed call stays queued", "self._queue.remove(after)", "pass"),
    ("an absorbed call still grows", "                self._forget(after)\n", ""),
    ("joined call's end is not known", "end += after.length", "end += 0"),
    ("a grown call's old end still known", "            del ends[offset]\n", ""),
    ("a grown call's old start still known", "            del starts[end]\n", ""),
    ("forgets another call's start", "if starts.get(call.offset) is call:", "if call.offset in starts:"),
    ("oversized request in one call", "if request.alone or length > limit:", "if request.alone:"),
    # Verdicts
    ("shared error fails all", "if len(requests) > 1:\n            self.split_calls",
     "if False:\n            self.split_calls"),
    ("shared error forgets one", "for request in requests:\n                request.alone = True",
     "for request in requests[1:]:\n                request.alone = True"),
    ("shared error tried again together", "                request.alone = True\n", ""),
    ("an error is success", "requests[0].error = errno", "requests[0].error = 0"),
    ("the wrong errno", "requests[0].error = errno", "requests[0].error = EIO"),
    ("short write is success", "if end == last.offset + last.length:\n            for",
     "if True:\n            for"),
    ("short write of none goes on for ever", "if count == 0:\n            return self.failed(call, EIO)",
     "if False:\n            return []"),
    ("partly covered is covered", "requests[covered].offset + requests[covered].length <= end",
     "requests[covered].offset < end"),
    ("exactly covered is not", "requests[covered].length <= end", "requests[covered].length < end"),
    ("continuation from the beginning", "            first.done = end - first.offset\n",
     "            pass\n"),
    ("continuation skips", "first.done = end - first.offset", "first.done = end - first.offset + 8"),
    ("continuation forgets the rest", "call.requests = requests\n", "call.requests = requests[:1]\n"),
    ("continuation carries the finished",
     "self._continue(requests[covered:], end, count < call.length)\n        for",
     "self._continue(requests, end, count < call.length)\n        for"),
    ("eof inside the range is a short read", "if eof or not count:", "if not count:"),
    ("no data is a short read", "if eof or not count:", "if eof:"),
    ("eof fails the covered too", "for request in requests[covered:]:\n                request.error",
     "for request in requests:\n                request.error"),
    ("eof fails nobody", "                request.error = EIO\n", "                pass\n"),
    ("short read is not kept", "partial.memory[partial.done : end - partial.offset] = payload[into:]",
     "pass"),
    ("short read keeps the wrong bytes", "into = partial.offset + partial.done - start", "into = 0"),
    ("assembled read without its beginning", "(request.memory[:done], payload[: request.length - done])",
     "(payload[: request.length - done],)"),
    ("slices from the beginning", "payload[position : position + request.length]",
     "payload[: request.length]"),
    ("slices too long", "payload[position : position + request.length]", "payload[position:]"),
    # Accounts
    ("unfinished miscounted", "self._unfinished -= count", "self._unfinished -= 1"),
    ("blocked miscounted", "self._blocked -= 1", "self._blocked -= 0"),
    ("high-water mark of the queue stands still", "            self._queue_max = len(queue)\n",
     "            pass\n"),
    ("high-water mark in flight stands still", "            self.in_flight_max = len(in_flight)\n",
     "            pass\n"),
    ("blocked requests are not counted", "        self.blocked_ever += 1\n", ""),
    ("joins are not counted", "                self.joined += 1\n", ""),
    ("merges are not counted", "            self.merged += 1\n", ""),
    ("every reply is short", "self.short_replies += short", "self.short_replies += 1"),
    ("no reply is short", "self.short_replies += short", "pass"),
    ("split calls are not counted", "            self.split_calls += 1\n", ""),
]  # fmt: skip

CALL_MUTANTS = [
    ("payload of a part is the whole request", "if self.length == first.length:", "if True:"),
    ("payload of a part from the beginning", "start = self.offset - first.offset", "start = 0"),
    ("payload of a rest from the beginning", "        if first.done:\n", "        if False:\n"),
]

NO_SLOTS = """        if slots < 1:
            raise ValueError(f"{slots} call slots; at least 1 is needed")
"""

ILLEGAL = [
    ("misaligned", "if (offset | length) % PAGE_SIZE or", "if length % PAGE_SIZE or"),
    ("negative", "or offset < 0 or", "or"),
    ("empty", "or length <= 0", ""),
    ("submitted twice", "if request.sequence or len", "if len"),
    ("memory of another size", " or len(request.memory) != length", ""),
    ("unknown write", "if call not in self.in_flight or not call.is_write", "if not call.is_write"),
    ("read as a write", "if call not in self.in_flight or not call.is_write or",
     "if call not in self.in_flight or"),
    ("too much written", "0 <= count <= call.length", "0 <= count"),
    ("less than nothing", "0 <= count <= call.length", "count <= call.length"),
    ("unknown read", "if call not in self.in_flight or call.is_write", "if call.is_write"),
    ("write as a read", "if call not in self.in_flight or call.is_write or",
     "if call not in self.in_flight or"),
    ("too much fetched", " or count > call.length", ""),
    ("unknown failure", "if call not in self.in_flight or errno <= 0", "if errno <= 0"),
    ("failure without errno", " or errno <= 0", ""),
    ("no slots", NO_SLOTS + "        if min", "        if min"),
    ("limit of no slots", NO_SLOTS + "        self._slots = slots\n\n", "        self._slots = slots\n\n"),
    ("calls below a page", "< PAGE_SIZE:\n            raise", "< 0:\n            raise"),
    ("part of a page in a limit", "read_bytes_max & -PAGE_SIZE", "read_bytes_max"),
]  # fmt: skip


def stories() -> Iterator[Callable[..., None]]:
    """The tests of test_plug.py, each parametrized one once for each value."""
    for name, function in vars(test_plug).items():
        marks = getattr(function, "pytestmark", [])
        if name.startswith("test_") and not marks:
            yield function
        elif name.startswith("test_"):
            argument, values = marks[0].args
            yield from (partial(function, **{argument: value}) for value in values)


STORIES = list(stories())


def mutant(name: str, source: str, old: str, new: str) -> dict[str, Any]:
    assert old in source, f"{name}: the text has changed, write the mutant anew"
    namespace: dict[str, Any] = {"__name__": "mutant"}
    exec(compile(source.replace(old, new), f"<{name}>", "exec"), namespace)
    return namespace


def walk(plug_class: Any) -> None:
    for seed in QUICK_SEEDS:
        Walk(seed, plug_class).run(QUICK_STEPS)


def tell_stories(plug_class: Any) -> None:
    for story in STORIES:
        story(plug_class)


def is_red(check: Any, plug_class: Any) -> bool:
    try:
        check(plug_class)
    except (Exception, pytest.fail.Exception):
        return True
    return False


@pytest.mark.parametrize("plug_class", [Plug, mutant("none", SOURCE, "", "")["Plug"]], ids=["compiled", "interpreted"])
def test_the_checks_are_green_without_a_mutation(plug_class: Any) -> None:
    walk(plug_class)
    tell_stories(plug_class)


@pytest.mark.parametrize(("name", "old", "new"), MUTANTS, ids=[mutation[0] for mutation in MUTANTS])
def test_a_rule_taken_away_is_noticed(name: str, old: str, new: str) -> None:
    plug_class = mutant(name, SOURCE, old, new)["Plug"]
    assert is_red(walk, plug_class) or is_red(tell_stories, plug_class), f"nobody notices: {name}"


@pytest.mark.parametrize(("name", "old", "new"), ILLEGAL, ids=[mutation[0] for mutation in ILLEGAL])
def test_a_validation_taken_away_is_noticed(name: str, old: str, new: str) -> None:
    assert is_red(tell_stories, mutant(name, SOURCE, old, new)["Plug"]), f"nobody notices: {name}"


@pytest.mark.parametrize(("name", "old", "new"), CALL_MUTANTS, ids=[mutation[0] for mutation in CALL_MUTANTS])
def test_a_wrong_payload_is_noticed(name: str, old: str, new: str) -> None:
    namespace = mutant("none", SOURCE, "", "")
    namespace["Call"] = mutant(name, REQUESTS_SOURCE, old, new)["Call"]
    assert is_red(walk, namespace["Plug"]), f"nobody notices: {name}"
