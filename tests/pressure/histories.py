"""Whether what was read and written at the same time can have happened one after the other.

For one page, written with values that are never repeated: a register. Its history is right (linearizable) if
each read and write can be given one moment between its begin and its end so that every read finds the value
written last. That covers all that a disk owes: a read returns the latest write that had ended, or one that was
under way, nobody then sees an older value again, and the last word on the disk is an allowed one.
"""

import itertools
from collections.abc import Iterable

from attrs import frozen

BEGINNING = -1
"""When what the page held before all operations was written."""


@frozen
class Access:
    """A read or a write of one page."""

    value: int
    is_write: bool
    begin_ns: int
    end_ns: int


def explain(history: Iterable[Access]) -> str:
    """What cannot be in the history, in words; "" if it is right. Values are written once each.

    P. B. Gibbons and E. Korach, Testing Shared Memories, SIAM J. Comput. 26 (1997), theorem 4.1: all accesses
    of one value form a zone from the first end to the last begin. Where that is positive the value must hold
    in all of it, so two such zones never overlap, and no value fits as a whole into the zone of another.
    """
    values: dict[int, list[Access]] = {}
    for access in history:
        values.setdefault(access.value, []).append(access)
    held: list[tuple[int, int, int]] = []
    passing: list[tuple[int, int, int]] = []
    for value, accesses in values.items():
        writes = [access for access in accesses if access.is_write]
        if len(writes) != 1:
            return f"{value} was read and written {len(writes)} times"
        if any(access.end_ns < writes[0].begin_ns for access in accesses):
            return f"{value} was read before it was written"
        end = min(access.end_ns for access in accesses)
        begin = max(access.begin_ns for access in accesses)
        if end < begin:
            held.append((end, begin, value))
        else:
            passing.append((begin, end, value))
    held.sort()
    for (_, last, value), (first, _, other) in itertools.pairwise(held):
        if first < last:
            return f"{value} was there after {other} had been, and {other} after {value}"
    for begin, end, value in passing:
        for first, last, other in held:
            if first < begin and end < last:
                return f"{value} came while {other} stayed"
    return ""
