import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseswap.host import hog
from fuseswap.host.bounded import Hung
from fuseswap.host.cgroup import MemoryCgroup
from fuseswap.host.hog import Hog, Report, WrongPage
from fuseswap.swap.units import PAGE_SIZE
from tests.kit.plain_swap import plain_swap

MIB = 1 << 20


class Recorder(list[Report]):
    def __call__(self, report: Report) -> None:
        self.append(report)


def small_hog(pages: int = 64, generations: int = 2) -> tuple[Hog, Recorder]:
    recorder = Recorder()
    return Hog(pages * PAGE_SIZE, seed=7, generations=generations, report=recorder), recorder


def page_slice(page_index: int) -> slice:
    return slice(page_index * PAGE_SIZE, (page_index + 1) * PAGE_SIZE)


def last_wrong(hog: Hog, recorder: Recorder, generation: int) -> tuple[WrongPage, ...]:
    hog.verify(generation)
    assert recorder[-1].wrong_pages == len(recorder[-1].first_wrong)
    return recorder[-1].first_wrong


def test_memory_as_it_was_written_is_right() -> None:
    hog, recorder = small_hog()
    for generation in (1, 2):
        hog.fill(generation)
        hog.verify(generation)
        hog.touch(generation, 100)

    assert hog.wrong_pages == 0
    assert [(report.phase, report.generation, report.pages) for report in recorder if report.ended] == [
        *(("fill", 1, 64), ("sequential", 1, 64), ("random", 1, 100)),
        *(("fill", 2, 64), ("sequential", 2, 64), ("random", 2, 100)),
    ]


def test_a_page_swapped_with_another_is_found_and_named() -> None:
    hog, recorder = small_hog()
    hog.fill(1)
    hog.memory[page_slice(3)], hog.memory[page_slice(9)] = (
        hog.memory[page_slice(9)],
        hog.memory[page_slice(3)],
    )

    assert last_wrong(hog, recorder, 1) == (
        WrongPage(3 * PAGE_SIZE, "page 9 of generation 1"),
        WrongPage(9 * PAGE_SIZE, "page 3 of generation 1"),
    )


def test_a_stale_page_is_found_and_named() -> None:
    hog, recorder = small_hog()
    hog.fill(1)
    old = hog.memory[page_slice(5)]
    hog.fill(2)
    hog.memory[page_slice(5)] = old

    assert last_wrong(hog, recorder, 2) == (WrongPage(5 * PAGE_SIZE, "page 5 of generation 1"),)


def test_a_torn_page_is_found_and_both_halves_are_named() -> None:
    hog, recorder = small_hog()
    hog.fill(1)
    old = hog.memory[page_slice(5)]
    hog.fill(2)
    hog.memory[5 * PAGE_SIZE + 512 : 6 * PAGE_SIZE] = old[512:]

    (wrong,) = last_wrong(hog, recorder, 2)
    assert wrong.holds == "torn: page 5 of generation 1, page 5 of generation 2"


def test_a_page_never_written_holds_zeros() -> None:
    hog, recorder = small_hog()
    hog.fill(1)
    hog.memory[page_slice(0)] = bytes(PAGE_SIZE)

    assert last_wrong(hog, recorder, 1) == (WrongPage(0, "zeros"),)


@given(offset=st.integers(min_value=0, max_value=64 * PAGE_SIZE - 1), bit=st.integers(min_value=0, max_value=7))
def test_one_bit_makes_a_page_wrong(offset: int, bit: int) -> None:
    hog, recorder = small_hog()
    hog.fill(1)
    hog.memory[offset] ^= 1 << bit

    (wrong,) = last_wrong(hog, recorder, 1)
    assert wrong.offset_bytes == offset - offset % PAGE_SIZE
    assert "unknown bytes" in wrong.holds


def test_no_two_pages_of_any_generation_share_a_word_at_the_same_place() -> None:
    hog, _ = small_hog(pages=100, generations=3)
    pages = [hog.expected(page_index, generation) for generation in (1, 2, 3) for page_index in range(100)]

    for at in range(0, PAGE_SIZE, 256):
        assert len({page[at : at + 8] for page in pages}) == len(pages)


def test_every_wrong_page_counts_and_the_first_are_listed() -> None:
    hog, recorder = small_hog()
    hog.fill(1)
    hog.verify(2)

    assert recorder[-1].wrong_pages == hog.wrong_pages == 64
    assert [wrong.offset_bytes // PAGE_SIZE for wrong in recorder[-1].first_wrong] == list(range(16))


def test_the_program_reports_each_phase_and_exits_0() -> None:
    with subprocess.Popen(hog.command(MIB, touches=50, generations=2), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ended = [report for report in hog.reports(process.stdout) if report.ended]

    assert process.returncode == 0
    assert [report.pages for report in ended] == [256, 256, 50] * 2
    assert all(report.wrong_pages == 0 and report.mb_per_s > 0 for report in ended)


def test_a_hog_that_says_nothing_is_hung() -> None:
    with subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        with pytest.raises(Hung, match=r"no progress for 0\.05 s"):
            list(hog.reports(process.stdout, silence_seconds_max=0.05))
        process.kill()


@pytest.mark.swap
def test_pages_that_went_out_and_came_back_are_right(disk_dir: Path) -> None:
    with plain_swap(disk_dir, 128 * MIB), MemoryCgroup(disk_dir.name, 32 * MIB) as group:
        status, ended = run_in(group, hog.command(64 * MIB, touches=1000, generations=2))

    assert status == 0
    assert [report.wrong_pages for report in ended] == [0] * 6


@pytest.mark.swap
def test_pages_lost_by_the_swap_device_are_counted_as_zeros(disk_dir: Path) -> None:
    with plain_swap(disk_dir, 128 * MIB) as swap, MemoryCgroup(disk_dir.name, 32 * MIB) as group:
        status, ended = run_in(group, hog.command(64 * MIB), after_fill=lambda: swap.lose(8 * MIB))

    assert status == 1
    assert ended[1].wrong_pages > 1000
    assert ended[1].first_wrong[0].holds == "zeros"


@pytest.mark.swap
def test_a_page_that_cannot_be_read_ends_the_hog_by_sigbus(disk_dir: Path) -> None:
    with plain_swap(disk_dir, 128 * MIB) as swap, MemoryCgroup(disk_dir.name, 32 * MIB) as group:
        status, ended = run_in(group, hog.command(64 * MIB), after_fill=lambda: swap.shrink(8 * MIB))

    assert status == -signal.SIGBUS
    assert [report.phase for report in ended] == ["fill"]


def run_in(
    group: MemoryCgroup, command: list[str], after_fill: Callable[[], None] = lambda: None
) -> tuple[int, list[Report]]:
    """Run a hog; its exit status and the reports of the phases it ended. It stands still during `after_fill`."""
    ended = []
    with subprocess.Popen(group.command(command), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for report in hog.reports(process.stdout):
            if report.ended:
                ended.append(report)
            if report.ended and report.phase == "fill":
                os.kill(process.pid, signal.SIGSTOP)
                after_fill()
                os.kill(process.pid, signal.SIGCONT)
    return process.returncode, ended
