"""A machine without memory to spare: one boot, its hogs alone and in bad company."""

import pytest

from tests.guest.lab import lab
from tests.guest.report import HARDENING, describe, oom_kills


@pytest.mark.torture
@pytest.mark.timeout(0)  # The guest's watchdog and the host's see a run that does not move.
def test_a_machine_out_of_memory_swaps_on_and_every_page_is_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with lab() as guests:
        run = guests.run(1)
    text = describe(run)
    with capsys.disabled():
        print(f"\n{text}")

    assert run.ending == "finished", f"{text}\n{run.console[-4000:]}"
    (up,) = run.of("up")
    words = up["engine"]["words"]
    assert all(words[name] for name in HARDENING), text
    assert up["boost_factor"] == 0
    results = list(run.of("result"))
    assert len(results) == 2
    for result in results:
        before, after = result["before"]["engine"], result["after"]["engine"]
        assert result["wrong_pages"] == 0
        assert after["major_faults"] == before["major_faults"]
        assert after["swapped_kib"] == 0
        assert result["after"]["vmstat"]["pswpout"] > result["before"]["vmstat"]["pswpout"]
    assert oom_kills(run) == 0
    (boot,), (down,) = run.of("boot"), run.of("down")
    assert down["boost_factor"] == boot["boost_factor"]
