"""The mount table, parsed from text and read from the kernel."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseswap.host.bounded import HostError
from fuseswap.host.mounts import Mount, absolute, mount_at, mount_of, mounts, parse_mountinfo, path_below, unmount

NAMES = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)
WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1)
NUMBERS = st.integers(0, 1 << 20)
MOUNTS = st.builds(
    Mount,
    mount_id=NUMBERS,
    parent_id=NUMBERS,
    major=NUMBERS,
    minor=NUMBERS,
    root=NAMES,
    mountpoint=NAMES,
    options=WORDS,
    type=WORDS,
    source=NAMES,
    super_options=WORDS,
)


def mangle(text: str) -> str:
    """What the kernel's seq_escape and mangle do: blanks, backslash and # become octal."""
    return "".join(f"\\{ord(char):03o}" if char in " \t\n\\#" else char for char in text)


def render(mount: Mount, tags: str) -> str:
    return (
        f"{mount.mount_id} {mount.parent_id} {mount.major}:{mount.minor} {mangle(mount.root)} "
        f"{mangle(mount.mountpoint)} {mount.options}{tags} - {mount.type} {mangle(mount.source)} "
        f"{mount.super_options}\n"
    )


@given(st.lists(st.tuples(MOUNTS, st.sampled_from(["", " shared:1", " shared:12 master:3", " unbindable"]))))
def test_parse_is_the_inverse_of_the_kernel(table: list[tuple[Mount, str]]) -> None:
    text = "".join(render(mount, tags) for mount, tags in table)
    assert parse_mountinfo(text) == tuple(mount for mount, _ in table)


@given(st.text())
def test_garbage_is_a_value_error_or_a_table(text: str) -> None:
    with suppress(ValueError):
        parse_mountinfo(text)


def at(mountpoint: str, mount_id: int = 1) -> Mount:
    return Mount(mount_id, 0, 0, 7, "/", mountpoint, "rw", "fuse.x", "x", "rw")


def test_the_longest_then_the_latest_mount_holds_a_path() -> None:
    table = (at("/"), at("/a"), at("/a/b", 2), at("/a/b", 3), at("/ab"))
    assert mount_of("/a/b/c", table) is table[3]
    assert mount_of("/a/bc", table) is table[1]
    assert mount_of("/x", table) is table[0]
    assert mount_of("/a/b", ()) is None
    assert mount_at("/a/b", table) is table[3]
    assert mount_at("/a/b/c", table) is None
    assert path_below("/a/b/c/d", table[3]) == "c/d"


def test_a_real_mount_with_an_odd_name(tmp_path: Path) -> None:
    odd = tmp_path / "blank \t#\\ \nend"
    odd.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "odd source", odd], check=True)
    try:
        mount = mount_at(str(odd))
        assert mount is not None
        assert (mount.type, mount.source) == ("tmpfs", "odd source")
        assert os.makedev(mount.major, mount.minor) == odd.stat().st_dev
        with (odd / "busy").open("w"), pytest.raises(HostError, match="busy"):
            unmount(str(odd))
        unmount(str(odd))
        assert mount_at(str(odd)) is None
        with pytest.raises(HostError, match="cannot be unmounted"):
            unmount(str(odd))
    finally:
        subprocess.run(["umount", "-l", odd], check=False, stderr=subprocess.DEVNULL)


def test_dots_are_the_parent_of_what_a_link_leads_to(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "sub").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(real / "sub")
    (real / "last").symlink_to("elsewhere")
    assert absolute(f"{link}/../m") == absolute(f"{link}/../x/../m/.") == f"{real}/m"
    assert absolute(f"{link}/..") == absolute(f"{link}/../") == str(real)
    assert absolute(f"{link}/../last") == f"{real}/last", "the last name is not looked up: its mount may hang"
    assert absolute(f"{link}//m/.") == f"{link}/m"
    assert absolute("m") == str(Path.cwd() / "m")
    assert absolute("../m") == str(Path.cwd().parent / "m")


def test_the_root_is_mounted() -> None:
    assert mount_of("/proc/self", mounts()) is not None
