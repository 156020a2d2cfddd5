"""Tests are of what was compiled, or do not begin."""

import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from tests.kit.compiled import not_compiled


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with one module that is compiled."""
    (tmp_path / "setup.py").write_text('raise Exception\nCOMPILED = [\n    "module.py",\n]\n')
    (tmp_path / "module.py").touch()
    (tmp_path / f"module{EXTENSION_SUFFIXES[0]}").touch()
    return tmp_path


def test_this_project() -> None:
    assert not_compiled(Path(__file__).parents[2]) == ""


def test_compiled(root: Path) -> None:
    assert not_compiled(root) == ""


def test_never_compiled(root: Path) -> None:
    (root / f"module{EXTENSION_SUFFIXES[0]}").unlink()
    assert not_compiled(root) == f"{root}/module.py is not compiled: run `make setup`"


def test_changed_since(root: Path) -> None:
    os.utime(root / f"module{EXTENSION_SUFFIXES[0]}", (1, 1))
    assert not_compiled(root) == f"{root}/module.py is newer than what was compiled of it: run `make setup`"
