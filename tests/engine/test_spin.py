"""Spinning must pay: what is lost by it is bounded by what it has saved."""

from hypothesis import given
from hypothesis import strategies as st

from fuseswap.engine.spin import CREDIT_MAX, REQUESTS_MAX, SPIN_COST, SPIN_NS, Spin

WAITS = st.lists(st.tuples(st.integers(0, 3 * SPIN_NS), st.integers(0, 2 * REQUESTS_MAX)))


@given(waits=WAITS)
def test_a_spin_in_vain_is_paid_for_by_short_waits(waits: list[tuple[int, int]]) -> None:
    spin = Spin()
    short = in_vain = 0
    for ns, requests in waits:
        limit = spin.limit_ns(requests)
        assert limit in (0, SPIN_NS)
        if ns < limit:
            spin.waited(ns)
        elif limit:
            spin.in_vain()
            in_vain += 1
            spin.waited(ns)
        else:
            spin.waited(ns)
        short += ns < SPIN_NS
        assert in_vain * SPIN_COST < short + SPIN_COST


def test_an_engine_at_rest_does_not_spin() -> None:
    assert Spin().limit_ns(0) == 0


def test_a_far_server_is_not_spun_for() -> None:
    spin = Spin()
    for _ in range(100):
        spin.waited(1)
    spins = 0
    for _ in range(100):
        if spin.limit_ns(1):
            spin.in_vain()
            spins += 1
        spin.waited(2 * SPIN_NS)
    assert spins == CREDIT_MAX // SPIN_COST


def test_a_near_server_is_spun_for() -> None:
    spin = Spin()
    spin.waited(SPIN_NS // 2)
    assert spin.limit_ns(1) == SPIN_NS
    assert spin.limit_ns(REQUESTS_MAX + 1) == 0
