"""The heart is pure, and says of each refusal where it comes from. Read from the source, not by running it."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import fuseswap.swap

DIRECTORY = Path(fuseswap.swap.__file__).parent
SOURCES = sorted(DIRECTORY.glob("*.py"))
MODULES = [path for path in SOURCES if path.stem != "__init__"]

ALLOWED_IMPORTS = {
    "abc", "attrs", "bisect", "collections", "dataclasses", "enum", "errno", "functools", "heapq", "itertools",
    "json", "math", "operator", "signal", "stat", "string", "struct", "types", "typing", "uuid", "zlib",
}  # fmt: skip
"""Of `signal` only its numbers are used, of `stat` only its predicates; neither module does anything at import."""

FORBIDDEN_NAMES = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}

# The kernel function, RFC section or table that a refusal comes from.
ORIGIN = re.compile(r"[a-z]\w*_\w+|RFC \d+|[A-Z]+_[A-Z]+")
ERRNO = re.compile(r"\bE[A-Z]{2,}\b|ValueError|MalformedRequest")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def module_of(path: Path) -> ModuleType:
    return import_module(f"fuseswap.swap.{path.stem}")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_waiting_and_no_io(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Await | ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith), where
        assert not isinstance(node, ast.Global | ast.Nonlocal), f"{where}: state belongs to an object"
        if isinstance(node, ast.Name):
            assert node.id not in FORBIDDEN_NAMES, f"{where}: {node.id}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_imports(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Import(names=names):
                imported = [name.name for name in names]
            case ast.ImportFrom(module=module, level=level):
                assert level == 0, f"{path.name}:{node.lineno}: relative import"
                imported = [module or ""]
            case _:
                continue
        for name in imported:
            inside = name == "fuseswap.swap" or name.startswith("fuseswap.swap.")
            assert inside or name.partition(".")[0] in ALLOWED_IMPORTS, f"{path.name}:{node.lineno}: {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_public_things_are_described(path: Path) -> None:
    tree = tree_of(path)
    assert ast.get_docstring(tree), path.name
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        if node.name in public_names(tree):
            assert ast.get_docstring(node), f"{path.name}:{node.lineno}: {node.name}"


def public_names(tree: ast.Module) -> set[str]:
    """Names at the top of a module, and methods of public classes."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            names.add(node.name)
            if isinstance(node, ast.ClassDef):
                names |= {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_function_that_refuses_says_with_what_and_why(path: Path) -> None:
    """A public function that raises ContractError names the errno and the kernel function or table behind it."""
    for node in tree_of(path).body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        if refuses(node):
            text = ast.get_docstring(node) or ""
            assert "ContractError" in text, f"{path.name}: {node.name} does not say that it refuses"
            assert ERRNO.search(text), f"{path.name}: {node.name} names no errno"
            assert ORIGIN.search(text), f"{path.name}: {node.name} names no source"


def refuses(function: ast.FunctionDef) -> bool:
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and node.exc is not None:
            source = ast.unparse(node.exc)
            if ".refusal(" in source or source.startswith("ContractError("):
                return True
    return False


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_values_are_frozen(path: Path) -> None:
    """Attrs classes are frozen unless their docstring says what changes them."""
    for name, thing in inspect.getmembers(module_of(path), inspect.isclass):
        if thing.__module__ == f"fuseswap.swap.{path.stem}" and hasattr(thing, "__attrs_attrs__"):
            frozen = thing.__setattr__ is not object.__setattr__ and "__attrs_own_setattr__" not in vars(thing)
            assert frozen or re.search(r"mutable|changes|state", inspect.getdoc(thing) or ""), name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_module_is_two(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500
