"""Long random walks. A failure prints the seed; FUSESWAP_SEED=... runs the same walk again."""

import os
from random import SystemRandom

import pytest

from tests.swap.plug_model import Walk

WALK_STEPS = 400


def walk_on(steps: int) -> None:
    seed = int(os.environ.get("FUSESWAP_SEED", SystemRandom().getrandbits(32)))
    print(f"FUSESWAP_SEED={seed}")
    for number in range(steps // WALK_STEPS):
        try:
            Walk(f"{seed}/{number}").run(WALK_STEPS)
        except Exception as error:
            raise AssertionError(f"walk {number} of FUSESWAP_SEED={seed}: {error!r}") from error


def test_one_seed_is_one_walk() -> None:
    """Else a printed seed is worth nothing."""
    walks = [Walk("same") for _ in range(2)]
    for walk in walks:
        walk.run(1000)
    first, second = walks
    assert first.world.file == second.world.file
    assert first.world.plug.statistics() == second.world.plug.statistics()


def test_a_million_steps() -> None:
    walk_on(1_000_000)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_ten_million_steps() -> None:
    walk_on(10_000_000)
