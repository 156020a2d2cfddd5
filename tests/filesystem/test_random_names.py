"""Random calls on names, made on a mount and on the disk's own file system side by side: both must answer alike."""

# The system calls themselves are meant:

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.filesystem.calls import (
    changes_mode,
    links,
    links_symbolically,
    lists,
    looks,
    make,
    named,
    opens,
    reads,
    writes,
)
from tests.filesystem.conftest import World
from tests.filesystem.users import User

pytestmark = pytest.mark.parametrize("world", ["nfs", "memory", "local"], indirect=True)

Plan = tuple[Callable[..., Any], tuple[Any, ...]]
"""A call, and its arguments; a str among them is a path below the tree."""

NAMES = ("a", "b", "c")
DIRECTORIES = ("", "a/", "b/", "a/c/")
TARGETS = (b"a", b"b", b"./a", b"c/a", b"nowhere")


@pytest.fixture
def twin() -> Iterator[Path]:
    """A directory on the disk."""
    with tempfile.TemporaryDirectory(prefix="fuseswap-test-", dir="/var/tmp") as name:
        directory = Path(name)
        directory.chmod(0o777)
        yield directory


def a_path(rng: random.Random) -> str:
    return rng.choice(DIRECTORIES) + rng.choice(NAMES)


def a_mode(rng: random.Random) -> int:
    # Neither setuid nor setgid: nfs-ganesha takes them from directories, too, when these change their group.
    return rng.choice((0o777, 0o777, 0o755, 0o700, 0o666, 0o600, 0o550, 0o1777, 0))


def a_plan(rng: random.Random) -> Plan:
    plans: list[Callable[[], Plan]] = [
        *(lambda: (os.mkdir, (a_path(rng), a_mode(rng))),) * 3,
        *(lambda: (opens, (a_path(rng), os.O_CREAT | os.O_RDWR | os.O_NONBLOCK, a_mode(rng))),) * 3,
        lambda: (opens, (a_path(rng), os.O_CREAT | os.O_EXCL, a_mode(rng))),
        lambda: (opens, (a_path(rng), rng.choice((os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC)) | os.O_NONBLOCK)),
        lambda: (writes, (a_path(rng), rng.randbytes(rng.randrange(1, 9000)), os.O_WRONLY | os.O_NONBLOCK)),
        lambda: (make, (a_path(rng), "fifo", a_mode(rng))),
        lambda: (links_symbolically, (a_path(rng), rng.choice(TARGETS))),
        *(lambda: (links, (a_path(rng), a_path(rng))),) * 2,
        *(lambda: (os.rename, (a_path(rng), a_path(rng))),) * 5,
        *(lambda: (os.unlink, (a_path(rng),)),) * 3,
        *(lambda: (os.rmdir, (a_path(rng),)),) * 2,
        lambda: (changes_mode, (a_path(rng), a_mode(rng))),
        lambda: (os.lchown, (a_path(rng), rng.choice((64001, 64002, 0)), rng.choice((64001, 64010, 64002)))),
        lambda: (os.truncate, (a_path(rng), rng.randrange(20_000))),
        *(lambda: (looks, (a_path(rng),)),) * 2,
        *(lambda: (lists, (a_path(rng),)),) * 2,
        lambda: (reads, (a_path(rng),)),
    ]
    return rng.choice(plans)()


def a_result(call: Callable[..., Any], arguments: tuple[Any, ...], root: Path, user: User | None) -> Any:
    given = [root / argument if isinstance(argument, str) and call is not make else argument for argument in arguments]
    if call is make:
        given[0] = root / arguments[0]
    try:
        return user(call, *given) if user is not None else call(*given)
    except OSError as error:
        return named(error.errno or -1)


def tree_of(root: Path) -> dict[str, Any]:
    return {str(path.relative_to(root)): looks(path) for path in sorted(root.rglob("*"))}


def compare_trees(here: Path, twin: Path, history: list[str]) -> None:
    ours, theirs = tree_of(here), tree_of(twin)
    differ = [(name, ours.get(name), theirs.get(name)) for name in ours | theirs if ours.get(name) != theirs.get(name)]
    assert differ == [], "\n".join([*history, f"here and there: {differ}"])


def compare(world: World, here: Path, twin: Path, users: list[User | None], seed: int, steps: int) -> None:
    rng = random.Random(seed)
    history: list[str] = []
    for step in range(steps):
        call, arguments = a_plan(rng)
        user = rng.choice(users)
        history = [*history[-15:], f"{user.uid if user else 0}: {call.__name__}{arguments}"[:100]]
        ours, theirs = (a_result(call, arguments, root, user) for root in (here, twin))
        assert ours == theirs, "\n".join([*history, f"{ours!r:.300} here, {theirs!r:.300} there"])
        if step % 50 == 0:
            compare_trees(here, twin, history)
            if world.mounted is not None:
                world.mounted.watch()
    compare_trees(here, twin, history)


def test_random_names(world: World, here: Path, twin: Path, alice: User, bob: User) -> None:
    compare(world, here, twin, [None, alice, alice, bob], 1, 600)


@pytest.mark.torture
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 103))
def test_many_random_names(world: World, here: Path, twin: Path, alice: User, bob: User, seed: int) -> None:
    compare(world, here, twin, [None, alice, alice, bob], seed, 10_000)
