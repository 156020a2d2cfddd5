"""`contract`: one set of data, in every form, and the page made of it."""

import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from fuseswap.cli import contract
from fuseswap.swap.activation import ACTIVATION_CHECKS
from fuseswap.swap.patches import PATCHES, Patch
from fuseswap.swap.rules import ENGINE_RULES, RULES
from tests.cli.command import FUSESWAP, fuseswap

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/contract.md"


def test_the_page_is_up_to_date() -> None:
    """If it is not: fuseswap contract --markdown > docs/reference/contract.md"""
    assert fuseswap("contract", "--markdown").output == PAGE.read_text()


def test_the_page_has_every_row() -> None:
    page = PAGE.read_text()
    for check in ACTIVATION_CHECKS:
        assert f"| `{check.step}` |" in page
        assert check.why in page
    for rule in RULES.values():
        assert rule.operation.value.replace("|", "\\|") in page
        assert rule.why in page
        assert rule.difference in page
    for row in ENGINE_RULES:
        assert row.request in page
    for patch in PATCHES:
        assert f"| {patch.number} | {patch.subject} |" in page
        assert all(f"`{test}`" in page for test in patch.tests)


def test_tables_have_as_many_cells_as_titles() -> None:
    for section in contract.contract_sections():
        assert {len(row) for row in section.body.rows} == {len(section.body.titles)}, section.title
    for line in PAGE.read_text().splitlines():
        if line.startswith("|"):
            assert line.endswith(" |"), line


def test_json_has_the_same_rows() -> None:
    result = fuseswap("contract", "--json")
    assert (result.code, result.errors) == (0, "")

    plain = json.loads(result.output)

    assert [check["step"] for check in plain["checks"]] == [check.step for check in ACTIVATION_CHECKS]
    assert [row["operation"] for row in plain["operations"]] == [operation.name for operation in RULES]
    write = next(row for row in plain["operations"] if row["operation"] == "WRITE")
    assert write["here"] == dict.fromkeys(("activating", "active", "deactivating"), "ETXTBSY") | {"ordinary": "ok"}
    assert write["native"] == {"ordinary": "ok", "active": "ETXTBSY"}
    assert len(plain["engine"]) == len(ENGINE_RULES)
    assert [patch["number"] for patch in plain["patches"]] == list(range(1, 24))
    assert {"from": "ordinary", "event": "activate", "to": "activating"} in plain["transitions"]


def test_columns_in_a_pipe_and_tables_on_a_terminal() -> None:
    piped = fuseswap("contract")
    assert (piped.code, piped.errors) == (0, "")
    assert "\x1b" not in piped.output
    assert "OPERATION " in piped.output

    on_terminal = run_on_terminal("contract")
    assert "open with O_TRUNC" in on_terminal
    assert "─" in on_terminal
    assert "{count}" in on_terminal, "templates are not markup"


def test_a_narrow_terminal_breaks_no_word() -> None:
    """Sentences get lines of their own in the place of columns of a few words."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", run_on_terminal("contract", columns=80))
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    words = set(text.split())
    for check in ACTIVATION_CHECKS:
        assert {check.step, *check.imposed_by.split()} <= words
    for rule in RULES.values():
        assert {*rule.operation.value.split(), *rule.imposed_by.split()} <= words
    for patch in PATCHES:
        assert f"{patch.number:<3}  {patch.subject}" in lines
    assert "    why: A socket cannot be opened." in lines


def run_on_terminal(*arguments: str, columns: int = 200) -> str:
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen([*FUSESWAP, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        output = b""
        while True:
            try:
                part = os.read(master, 1 << 16)
            except OSError:  # EIO: the other end has gone
                break
            output += part
        os.close(master)
    assert process.returncode == 0
    return output.decode()


def test_the_whole_series_in_order() -> None:
    assert [patch.number for patch in PATCHES] == list(range(1, 24))
    for patch in PATCHES:
        assert patch.subject
        assert patch.change.endswith(".")
        assert patch.here.endswith(".")


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: str(patch.number))
def test_each_patch_has_tests_that_exist(patch: Patch) -> None:
    assert patch.tests
    for test in patch.tests:
        path, _, name = test.partition("::")
        source = (ROOT / path).read_text().splitlines()
        forms = (f"def {name}(", f"{name} = ", f"class {name}(")
        assert any(line.startswith(forms) for line in source), f"{test} does not exist"


def test_only_the_nfsv4_half_is_not_shown() -> None:
    assert {patch.number for patch in PATCHES if patch.untested} == {21}
