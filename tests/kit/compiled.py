"""What a test starts is what was compiled: setup.py says of what."""

import ast
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def not_compiled(root: Path) -> str:
    """Why the modules below `root` are not those that users run, in one line; empty if they are."""
    for source in (root / name for name in _listed(root / "setup.py")):
        compiled = source.with_suffix(EXTENSION_SUFFIXES[0])
        if not compiled.exists():
            return f"{source} is not compiled: run `make setup`"
        if compiled.stat().st_mtime < source.stat().st_mtime:
            return f"{source} is newer than what was compiled of it: run `make setup`"
    return ""


def _listed(setup: Path) -> list[str]:
    for node in ast.parse(setup.read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name("COMPILED")], value=value):
                names: list[str] = ast.literal_eval(value)
                return names
    raise ValueError(f"{setup} has no list COMPILED")
