"""What is an active swap file is decided in one place; everybody else asks it. Read from the source."""

import ast
from collections.abc import Callable
from pathlib import Path

import fuseswap

ROOT = Path(fuseswap.__file__).parent
OWNER = "filesystem/active.py"
"""The only module that gives a file a state."""
DATA = {"swap/rules.py", "swap/lifecycle.py", "cli/contract.py"}
"""The tables, and who prints them."""


def modules_with(holds: Callable[[ast.AST], bool]) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if any(holds(node) for node in ast.walk(ast.parse(path.read_text())))
    }


def test_one_place_decides_what_is_active() -> None:
    def makes_a_transition(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and ast.unparse(node.func).endswith("next_state")

    def names_a_state(node: ast.AST) -> bool:
        return isinstance(node, ast.Attribute) and ast.unparse(node.value) == "FileState" and node.attr != "ORDINARY"

    assert modules_with(makes_a_transition) == {OWNER}
    assert modules_with(names_a_state) - DATA <= {OWNER}


def test_a_state_comes_from_the_table_of_its_life() -> None:
    for node in ast.walk(ast.parse((ROOT / OWNER).read_text())):
        if isinstance(node, ast.Assign):
            targets = [target.attr for target in node.targets if isinstance(target, ast.Attribute)]
            if "state" in targets:
                value = ast.unparse(node.value)
                assert value == "state" or value.startswith("self._next("), value
