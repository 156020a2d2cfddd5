"""Who sets the sysctls, and who puts them back. On files of the test: the real ones are every engine's."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import pytest

from fuseswap.engine import sysctls


@pytest.fixture
def boost_factor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sysctl's file as Linux has it."""
    path = tmp_path / "watermark_boost_factor"
    path.write_text("15000\n")
    monkeypatch.setattr(sysctls, "SETTINGS", (attrs.evolve(sysctls.SETTINGS[0], path=path),))
    monkeypatch.setattr(sysctls, "_SAVED", tmp_path)
    monkeypatch.setattr(sysctls, "LOCK", tmp_path / "lock")
    return path


@contextmanager
def another_process() -> Iterator[int]:
    """Its pid once the factor is 0 for it; it ends by SIGKILL."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with sysctls.steady():
            os.write(writer, b"1")
            signal.pause()
        os._exit(1)
    try:
        os.read(reader, 1)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


def test_it_is_0_meanwhile_and_then_what_it_was(boost_factor: Path, tmp_path: Path) -> None:
    with sysctls.steady() as refused:
        assert not refused
        assert int(boost_factor.read_text()) == 0
    assert int(boost_factor.read_text()) == 15000
    assert set(tmp_path.iterdir()) == {boost_factor, tmp_path / "lock"}


def test_the_last_puts_back_what_the_first_found(boost_factor: Path) -> None:
    with ExitStack() as second:
        with sysctls.steady():
            assert not second.enter_context(sysctls.steady())
        assert int(boost_factor.read_text()) == 0
    assert int(boost_factor.read_text()) == 15000


def test_who_is_left_puts_it_back_for_one_that_was_killed(boost_factor: Path) -> None:
    with ExitStack() as second:
        with another_process():
            second.enter_context(sysctls.steady())
        assert int(boost_factor.read_text()) == 0
    assert int(boost_factor.read_text()) == 15000


def test_the_next_puts_it_back_if_all_were_killed(boost_factor: Path) -> None:
    with another_process():
        pass
    assert int(boost_factor.read_text()) == 0
    with sysctls.steady():
        pass
    assert int(boost_factor.read_text()) == 15000


def test_what_somebody_else_has_set_stays(boost_factor: Path) -> None:
    with sysctls.steady():
        boost_factor.write_text("20000\n")
    assert int(boost_factor.read_text()) == 20000


def test_a_factor_of_0_stays(boost_factor: Path) -> None:
    boost_factor.write_text("0\n")
    with sysctls.steady() as refused:
        assert not refused
    assert int(boost_factor.read_text()) == 0


def test_a_kernel_that_does_not_boost_is_steady(boost_factor: Path) -> None:
    boost_factor.unlink()
    with sysctls.steady() as refused:
        assert not refused
    assert not boost_factor.exists()


@pytest.mark.parametrize(("before", "meanwhile"), [(1700, 4096), (4096, 4096), (20000, 20000)])
def test_a_larger_min_free_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boost_factor: Path, before: int, meanwhile: int
) -> None:
    path = tmp_path / "min_free_kbytes"
    path.write_text(f"{before}\n")
    setting = attrs.evolve(sysctls.SETTINGS[0], path=path, wanted=lambda is_now: max(is_now, 4096))
    monkeypatch.setattr(sysctls, "SETTINGS", (*sysctls.SETTINGS, setting))
    with sysctls.steady() as refused:
        assert not refused
        assert int(path.read_text()) == meanwhile
        assert int(boost_factor.read_text()) == 0
    assert int(path.read_text()) == before
    assert int(boost_factor.read_text()) == 15000


def test_min_free_follows_a_small_machine() -> None:
    assert sysctls.min_free_kib(256 << 20) == 16 << 10
    assert sysctls.min_free_kib(64 << 20) == 4 << 10
    assert sysctls.min_free_kib(64 << 30) == 16 << 10


def test_a_lock_that_cannot_be_had_changes_nothing(boost_factor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysctls, "LOCK", boost_factor / "no directory")
    with sysctls.steady() as refused:
        assert refused == sysctls.SETTINGS
    assert int(boost_factor.read_text()) == 15000
