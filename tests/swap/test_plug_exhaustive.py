"""All small cases of the plug: every order of a few requests on 3 pages, 2 slots, and each outcome of each call.

An explicit-state search: from each state every action is tried, and a state that was met before is not searched
again. A state is reached by replaying its actions on a new world, which checks each step. What counts as the
same state is what the plug can tell apart: it never looks at a byte of a page and never at a finished request,
so neither contents nor finished requests belong to it.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from fuseswap.swap.requests import Call
from tests.swap.plug_model import PAGE, World, check_queue

PAGES = 3
HALF = PAGE // 2
SPANS = [(page, count) for count in range(1, PAGES + 1) for page in range(PAGES - count + 1)]
REQUESTS = [(is_write, page, count) for is_write in (False, True) for page, count in SPANS]

Action = tuple[Any, ...]


def outcomes(call: Call) -> Iterator[Action]:
    """Every kind of answer but the good one."""
    if call.offset % PAGE == 0:
        yield "reply", HALF, False
    if call.length > PAGE:
        yield "reply", PAGE, False
    if call.is_write:
        yield "fail", call.length
    else:
        yield "fail", 0
        yield "reply", 0, True
        if call.length > PAGE:
            yield "reply", PAGE, True


def actions(world: World, requests_max: int, faults_left: int) -> Iterator[Action]:
    if world.orders < requests_max:
        for request in REQUESTS:
            yield ("submit", *request)
    if any(job.ready for job in world.jobs.values()) and len(world.flying) < world.slots:
        yield ("pump",)  # the engine answers nothing between a batch and its calls
        return
    for index, call in enumerate(world.flying):
        yield "answer", index, "reply", call.length, False
        if faults_left:
            for outcome in outcomes(call):
                yield "fault", index, *outcome


def act(world: World, action: Action) -> None:
    match action:
        case ("submit", is_write, page, count):
            world.submit(is_write, page, count)
        case ("pump",):
            world.pump()
        case ("answer" | "fault", index, "reply", count, eof):
            world.reply(world.flying[index], count, eof)
            world.pump()
        case ("fault", index, "fail", applied):
            world.fail(world.flying[index], applied)
            world.pump()


def canonical(world: World) -> tuple[Any, ...]:
    plug: Any = world.plug
    rank = {order: index for index, order in enumerate(world.jobs)}

    def call_key(call: Call) -> tuple[Any, ...]:
        return call.is_write, call.offset, call.length, tuple([rank[request.unique] for request in call.requests])

    queue = list(plug._queue)
    jobs = [
        (
            job.request.offset, job.request.length, job.request.is_write, job.state.value, job.request.done,
            job.request.alone, tuple([rank[follower.unique] for follower in job.request.followers or ()]),
        )
        for job in world.jobs.values()
    ]  # fmt: skip
    indexes = [sorted(index) for index in (*plug._starts, *plug._ends)]
    return (
        world.orders,
        tuple(jobs),
        tuple(map(call_key, queue)),
        tuple(map(tuple, indexes)),
        tuple(map(call_key, world.flying)),
    )


def search(requests_max: int, faults_max: int, limit_pages: int = PAGES) -> int:
    """Try everything. The number of transitions."""
    seen = set()
    paths: list[tuple[tuple[Action, ...], int]] = [((), faults_max)]
    transitions = 0
    while paths:
        path, faults_left = paths.pop()
        world = World(PAGES, 2, limit_pages, limit_pages)
        try:
            for action in path:
                act(world, action)
            check_queue(world.plug)
        except Exception as error:
            raise AssertionError(f"{error!r} after {path}") from error
        transitions += 1
        state = canonical(world), faults_left
        if state in seen:
            continue
        seen.add(state)
        following = list(actions(world, requests_max, faults_left))
        assert following or not world.jobs, f"stuck after {path}"
        paths += [((*path, action), faults_left - (action[0] == "fault")) for action in following]
    return transitions


ALL = 1000
"""Any number of faults: every kind of answer to every call."""


@pytest.mark.parametrize(
    ("requests_max", "faults_max", "limit_pages"), [(2, ALL, 1), (2, ALL, 2), (2, ALL, 3), (3, 1, 3), (4, 0, 3)]
)
def test_every_case(requests_max: int, faults_max: int, limit_pages: int) -> None:
    assert search(requests_max, faults_max, limit_pages) > 10_000


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("requests_max", "faults_max", "limit_pages"), [(3, ALL, 2), (3, ALL, 3), (4, 1, 3), (4, 0, 2)]
)
def test_every_larger_case(requests_max: int, faults_max: int, limit_pages: int) -> None:
    assert search(requests_max, faults_max, limit_pages) > 100_000
