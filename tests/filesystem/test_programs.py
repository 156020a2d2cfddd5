"""Programs that people run on a file system: git, make and a compiler, sqlite, tar, rsync, cp and diff."""

import os
import select
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

pytestmark = pytest.mark.parametrize("world", ["nfs"], indirect=True)

SECONDS_MAX = 90


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Its output; it must succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS_MAX, env=_ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


_ENVIRONMENT = {
    **os.environ,
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "LC_ALL": "C",
    **{f"GIT_{role}_{part}": f"{part}@example" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")},
}

# --- a C project ---

MODULES = 12

_MAKEFILE = """
objects = main.o $(patsubst %,part-%.o,$(shell seq {count}))
program: $(objects)
	$(CC) -o $@ $^
%.o: %.c parts.h
	$(CC) -c -o $@ $<
clean:
	rm -f program *.o
"""


def make_repository(directory: Path) -> None:
    directory.mkdir()
    parts = range(1, MODULES + 1)
    (directory / "Makefile").write_text(_MAKEFILE.format(count=MODULES))
    (directory / "parts.h").write_text("".join(f"int part_{number}(void);\n" for number in parts))
    for number in parts:
        source = f'#include "parts.h"\nint part_{number}(void) {{ return {number}; }}\n'
        (directory / f"part-{number}.c").write_text(source)
    terms = " + ".join(f"part_{number}()" for number in parts)
    main = f'#include <stdio.h>\n#include "parts.h"\nint main(void) {{ printf("%d\\n", {terms}); return 0; }}\n'
    (directory / "main.c").write_text(main)
    (directory / ".gitignore").write_text("*.o\nprogram\n")
    run("git", "init", "-q", "-b", "main", directory)
    run("git", "add", ".", cwd=directory)
    run("git", "commit", "-q", "-m", "all", cwd=directory)


def test_a_project_is_cloned_built_and_changed(here: Path, tmp_path: Path) -> None:
    make_repository(tmp_path / "origin")
    clone = here / "clone"
    run("git", "clone", "-q", tmp_path / "origin", clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    run("make", "-j2", cwd=clone)
    assert run(clone / "program") == "78\n"
    assert "up to date" in run("make", cwd=clone)
    run("git", "switch", "-q", "-c", "branch", cwd=clone)
    part = clone / "part-1.c"
    part.write_text(part.read_text().replace("return 1", "return 101"))
    assert run("git", "status", "--porcelain", cwd=clone) == " M part-1.c\n"
    run("make", cwd=clone)
    assert run(clone / "program") == "178\n"
    run("git", "commit", "-q", "-a", "-m", "more", cwd=clone)
    run("git", "gc", "-q", cwd=clone)
    run("git", "switch", "-q", "main", cwd=clone)
    run("git", "merge", "-q", "--no-ff", "-m", "merged", "branch", cwd=clone)
    run("git", "fsck", "--strict", cwd=clone)
    run("make", "clean", cwd=clone)
    assert run("git", "status", "--porcelain", "--ignored", cwd=clone) == ""


# --- sqlite ---

_WRITER = """
# Transactions that end, then one that does not.
import os, sqlite3, sys
path, name, count, mode = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
base = sqlite3.connect(path, timeout=60, isolation_level=None)
base.execute("pragma journal_mode=" + mode)
for number in range(count):
    base.execute("begin immediate")
    base.execute("update counter set value = value + 1")
    base.execute("insert into entries values (?, ?, ?)", (name, number, os.urandom(500)))
    base.execute("rollback" if number % 10 == 9 else "commit")
base.execute("begin immediate")
base.execute("update counter set value = value + 1000")
base.executemany("insert into entries values ('lost', 0, ?)", [(os.urandom(5000),)] * 200)
base.execute("pragma cache_spill=1")
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_database_of_two_processes_one_of_which_dies(here: Path, mode: str) -> None:
    path = here / "base"
    with closing(sqlite3.connect(path)) as base:
        base.execute("pragma journal_mode=" + mode)
        base.execute("pragma cache_size=20")
        base.execute("create table counter (value)")
        base.execute("insert into counter values (0)")
        base.execute("create table entries (who, number, data)")
        base.execute("create index numbers on entries (who, number)")
        base.commit()
    counts = {"a": 30, "b": 30}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), name, str(count), mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name, count in counts.items()
    ]
    # Each is killed in the middle of its last transaction; who opens the database next rolls it back.
    while writers:
        outputs = [writer.stdout.fileno() for writer in writers if writer.stdout is not None]
        ready, _, _ = select.select(outputs, [], [], SECONDS_MAX)
        assert ready, "no writer came to its end"
        dead = writers[outputs.index(ready[0])]
        dead.kill()
        dead.communicate()
        writers.remove(dead)
    with closing(sqlite3.connect(path, timeout=60)) as base:
        assert base.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert base.execute("select value from counter").fetchone() == (54,)
        assert base.execute("select who, count(*) from entries group by who").fetchall() == [("a", 27), ("b", 27)]


# --- copies of a tree ---


def make_tree(tree: Path) -> None:
    """Directories, hard and symbolic links, odd names, modes and times, an empty, a sparse and a large file."""
    for number in range(20):
        directory = tree / f"directory {number % 4}" / f"below-{number}"
        directory.mkdir(parents=True)
        (directory / "file").write_bytes(os.urandom(number * 1000))
        os.link(directory / "file", directory / "hard link")
        (directory / "symbolic").symlink_to("../below-0/file")
        (directory / "dangling").symlink_to("/nowhere/\udcff")
        (directory / "file").chmod(0o600 + number)
        os.utime(directory / "file", ns=(10**18 + number, 10**18 + number * 12345))
    (tree / "\udcff\n'\"").write_text("odd")
    (tree / "empty").touch()
    (tree / "large").write_bytes(os.urandom(3_000_000))
    with (tree / "sparse").open("wb") as sparse:
        sparse.truncate(50_000_000)
        sparse.seek(10_000_000)
        sparse.write(b"island")
    os.mkfifo(tree / "fifo")
    # Old, for rsync takes times of the same second for equal.
    os.utime(tree / "fifo", ns=(10**18, 10**18))
    os.chown(tree / "empty", 1234, 5678)
    for directory in tree.rglob("*"):
        if directory.is_dir() and not directory.is_symlink():
            os.utime(directory, ns=(10**18, 10**18))


@pytest.mark.parametrize("tool", ["cp", "tar", "rsync"])
def test_a_tree_is_copied_there_and_back(here: Path, tmp_path: Path, tool: str) -> None:
    source, there, back = tmp_path / "tree", here / "tree", tmp_path / "back"
    source.mkdir()
    make_tree(source)
    for origin, copy in ((source, there), (there, back)):
        copy_tree(tool, origin, copy)
        # Of FIFOs, diff says that they are ones.
        differences = run("sh", "-c", 'diff -r --no-dereference "$@" || true', "diff", origin, copy)
        assert differences == f"File {origin}/fifo is a fifo while file {copy}/fifo is a fifo\n"
        assert summary(copy) == summary(source)
        assert (copy / "sparse").stat().st_blocks * 512 < 5_000_000
    run("rm", "-r", there)
    assert list(here.iterdir()) == []


def copy_tree(tool: str, origin: Path, copy: Path) -> None:
    if tool == "cp":
        run("cp", "-a", origin, copy)
        return
    copy.mkdir()
    if tool == "rsync":
        # nfs-ganesha does not set the times of symbolic links.
        command: list[str | Path] = ["rsync", "-aHS", "--omit-link-times", f"{origin}/", copy]
        run(*command)
        assert run(*command, "--itemize-changes", "--checksum") == ""
        return
    archive = copy.parent / "archive.tar"
    run("tar", "--format=posix", "-cSf", archive, "-C", origin, ".")
    run("tar", "-xpf", archive, "-C", copy)
    assert run("tar", "-df", archive, "-C", copy) == ""
    archive.unlink()


def summary(tree: Path) -> list[tuple[object, ...]]:
    """Names and attributes, and which names are one file."""
    found: list[tuple[object, ...]] = []
    inodes: dict[int, str] = {}
    for path in sorted(tree.rglob("*")):
        state = path.lstat()
        name = str(path.relative_to(tree))
        first = inodes.setdefault(state.st_ino, name)
        size = 0 if path.is_dir() else state.st_size
        mtime = 0 if path.is_symlink() else state.st_mtime_ns // 1000
        found.append((name, first, oct(state.st_mode), state.st_uid, state.st_gid, size, mtime))
    return found
