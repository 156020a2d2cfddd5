"""Every example, run as its reader runs it."""

import ast
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.kit.rescue import fuse_mounts, loop_devices

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LOCK_SECONDS = 600
"""Examples that swap take the lock themselves, and wait for whoever holds it."""


def run(name: str, *arguments: str | Path, wrapper: tuple[str, ...] = (), seconds: float = 60) -> str:
    """What it prints. It must succeed and say nothing on standard error."""
    command = [*wrapper, sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except BaseException:
            process.terminate()  # so that it takes away what it has made
            raise
    assert (process.returncode, errors) == (0, ""), output
    return output


def assert_drawn(picture: Path, *texts: str) -> None:
    """It is XML, its shapes lie inside of it, and it says what it must."""
    root = ElementTree.fromstring(picture.read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for shape in root.iter("{http://www.w3.org/2000/svg}rect"):
        left, top = float(shape.get("x", 0)), float(shape.get("y", 0))
        assert 0 <= left <= left + float(shape.attrib["width"]) <= width
        assert 0 <= top <= top + float(shape.attrib["height"]) <= height
    written = "".join(root.itertext())
    for text in texts:
        assert text in written


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_head_says_what_it_shows_and_leaves_out(path: Path) -> None:
    head = ast.get_docstring(ast.parse(path.read_text())) or ""
    for beginning in ("Shows: ", "Leaves out: ", "Needs "):
        assert re.search(rf"^{beginning}", head, re.MULTILINE), beginning
    assert f"examples/{path.name}" in head
    assert os.access(path, os.X_OK)
    assert f"[{path.name}]({path.name})" in (ROOT / "examples/README.md").read_text()


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        *(("extents.py", argument) for argument in ("x", "-1", "5-3", "1-99999999999", "1-2-3")),
        ("batching.py", "/nonexistent/picture.svg"),
    ],
)
def test_a_bad_argument_is_one_line_and_no_traceback(name: str, argument: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / name), "--", argument]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode in (1, 2)
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("usage:", " "))]
    assert len(lines) == 1
    assert "Traceback" not in result.stderr


def test_extents() -> None:
    lesson = run("extents.py")
    assert "slots 0 to 9 lie in pages 100 to 109 of the disk" in lesson
    assert "refused after 6 probes: swapfile has holes (EINVAL)" in lesson
    assert "Adding 36k swap ... extents:2 across:416k" in lesson
    own = run("extents.py", "--block", "1024", "101-140")
    assert "Adding 32k swap ... extents:1 across:32k" in own


def test_holes(tmp_path: Path) -> None:
    output = run("holes.py")
    assert "swap_activate: EINVAL, 'swap activate: swapfile has holes'" in output
    assert "swapon gives EINVAL" in output
    assert "swap_activate: granted, 255 slots" in output


def test_batching(tmp_path: Path) -> None:
    output = run("batching.py", tmp_path / "batching.svg")
    calls = [int(number) for number in re.findall(r"(\d+) calls", output)]
    assert calls[0] == 96
    assert calls[1] < 96 / 4
    assert_drawn(tmp_path / "batching.svg", "Without merging", "With merging", "slot 4", "ms")
    # The same pages always make the same picture, and it is the one in the tutorial.
    assert (tmp_path / "batching.svg").read_text() == (ROOT / "docs/tutorial/pictures/batching.svg").read_text()


def test_reserve() -> None:
    output = run("reserve.py")
    assert "stays in /dev/fuse" in output
    assert "0 pages used, at most 16 were; 2 reads had to wait" in output


def test_stable() -> None:
    output = run("stable.py")
    assert re.search(r"written FILE_SYNC +read back: the same", output)
    assert re.search(r"written UNSTABLE +read back: LOST", output)


@pytest.mark.parametrize("name", ["extents.py", "batching.py", "reserve.py", "stable.py", "holes.py"])
def test_without_root(name: str) -> None:
    """Nobody's right is needed; of holes.py only the kernel's opinion is missing."""
    nobody: tuple[str, ...] = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")
    if subprocess.run([*nobody, sys.executable, "-c", "import fuseswap"], capture_output=True).returncode:
        # The interpreter lies in root's home: then at least no right is there.
        nobody = ("setpriv", "--inh-caps=-all", "--bounding-set=-all", "--securebits=+noroot")
    run(name, wrapper=nobody)


def test_two_roads() -> None:
    ordinary, active, _, again = run("two_roads.py").split("\n\n")
    both = f"{ordinary}\n{active}"
    assert re.findall(r"write, by a descriptor opened before +(\w+)", both) == ["ok", "ETXTBSY"]
    assert re.findall(r"rename it +(\w+)", both) == ["ok", "EPERM"]
    assert re.search(r"write, by the old descriptor +ok", again)


@pytest.mark.machine
@pytest.mark.timeout(LOCK_SECONDS + 60)
def test_journey(tmp_path: Path) -> None:
    output = run("journey.py", tmp_path / "journey.svg", seconds=LOCK_SECONDS)
    assert "NFS WRITE, FILE_SYNC" in output
    assert "NFS READ" in output
    texts = ("process and kernel", "fuseswap's engine", "NFS server and network", "NFS READ", "us")
    assert_drawn(tmp_path / "journey.svg", *texts)
    assert_drawn(ROOT / "docs/tutorial/pictures/journey.svg", *texts)


@pytest.mark.machine
@pytest.mark.timeout(LOCK_SECONDS + 60)
def test_deadlock() -> None:
    output = run("deadlock.py", seconds=LOCK_SECONDS)
    assert "nothing has moved" in output
    assert output.count("state D") == 2
    assert "2 of them still stand there" in output
    assert "the connection is aborted" in output
    assert not [mount for mount in fuse_mounts() if "/fuseswap-deadlock-" in mount.point]
    assert not [backing for backing in loop_devices().values() if "/fuseswap-deadlock-" in backing]


@pytest.mark.torture
@pytest.mark.timeout(LOCK_SECONDS + 60)
def test_deadlock_with_pages_of_others() -> None:
    """Pages that are not the example's own are not lost with it."""
    program = "import deadlock, sys; deadlock.swapped_by = lambda cgroup: 0; sys.exit(deadlock.main())"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT / "examples")},
        capture_output=True,
        text=True,
        timeout=LOCK_SECONDS,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "nobody has lost a page" in result.stdout
