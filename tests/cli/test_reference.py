"""The reference tells of every command, option and exit code that there is."""

import argparse
from pathlib import Path

import pytest

from fuseswap.cli.failure import Exit
from fuseswap.cli.parser import build_parser

ROOT = Path(__file__).parents[2]
REFERENCE = (ROOT / "docs/reference/cli.md").read_text()


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(action.choices)


def synopsis(command: str) -> str:
    (line,) = (line for line in REFERENCE.splitlines() if line.startswith(f"    fuseswap {command}"))
    return line


@pytest.mark.parametrize("name", commands())
def test_every_option_stands_in_the_synopsis(name: str) -> None:
    for action in commands()[name]._actions:
        if action.dest != "help":
            shown = action.option_strings or [str(action.metavar).partition("|")[0]]
            assert any(f"{option}" in synopsis(name) for option in shown), action


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_and_a_section(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args([name, "--help"])
    assert caught.value.code == 0
    assert "Exit codes: 0 done" in capsys.readouterr().out
    assert any(name in line for line in REFERENCE.splitlines() if line.startswith("## "))


def test_exit_codes() -> None:
    assert [code.value for code in Exit] == [0, 1, 2, 3, 4]
    for code in Exit:
        assert f"| {code.value} | " in REFERENCE


def test_links_of_the_readme_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text()
    for part in readme.split("](")[1:]:
        target = part.partition(")")[0]
        assert target.startswith("http") or (ROOT / target).exists(), target
