import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from tests.pressure.histories import BEGINNING, Access, explain


def write(value: int, begin: int, end: int) -> Access:
    return Access(value, True, begin, end)


def read(value: int, begin: int, end: int) -> Access:
    return Access(value, False, begin, end)


def test_what_a_disk_may_and_may_not_do() -> None:
    old, new = write(0, BEGINNING, BEGINNING), write(1, 10, 20)
    assert explain([old, new, read(0, 5, 15), read(1, 12, 14), read(1, 30, 31)]) == ""
    assert explain([old, new, read(0, 21, 22)]) != "", "a stale read"
    assert explain([old, new, read(1, 11, 12), read(0, 13, 14)]) != "", "new, then old again"
    assert explain([old, new, read(1, 5, 9)]) != "", "before it was written"
    assert explain([old, read(7, 1, 2)]) != "", "out of nowhere"
    assert explain([old, new, write(2, 30, 40), read(1, 50, 51)]) != "", "a lost write"
    assert explain([old, new, write(2, 15, 25), read(1, 50, 51)]) == ""
    assert explain([old, new, write(2, 15, 25), read(1, 50, 51), read(2, 52, 53)]) != ""


def is_right(history: Sequence[Access]) -> bool:
    """By trying every order."""
    for order in itertools.permutations(history):
        if any(later.end_ns < earlier.begin_ns for earlier, later in itertools.combinations(order, 2)):
            continue
        value = -1
        for access in order:
            if access.is_write:
                value = access.value
            elif access.value != value:
                break
        else:
            return True
    return False


accesses = st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(1, 6)).map(
    lambda drawn: read(drawn[0], 2 * drawn[1], 2 * (drawn[1] + drawn[2]) - 1)
)
begins = st.tuples(st.integers(0, 12), st.integers(1, 6))


@given(reads=st.lists(accesses, max_size=4), first=begins, second=begins)
def test_it_agrees_with_trying_every_order(
    reads: list[Access], first: tuple[int, int], second: tuple[int, int]
) -> None:
    history = [write(0, BEGINNING, BEGINNING)]
    history += [write(value, 2 * at, 2 * (at + length) - 1) for value, (at, length) in ((1, first), (2, second))]
    history += reads
    assert (explain(history) == "") == is_right(history)
