"""/proc/swaps, headers, and swap that is really turned on."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseswap.host.bounded import HostError
from fuseswap.host.loop import attach, detach, loop_device
from fuseswap.host.swap import (
    SwapArea,
    make_header,
    parse_swaps,
    shortfall,
    swap_area,
    swapoff,
    swapon,
    swaps,
)

HEADER = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
PATHS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1).filter(
    lambda text: not text.endswith(" (deleted)")
)
KIB = st.integers(0, 1 << 40).map(lambda kib: kib * 1024)
AREAS = st.builds(
    SwapArea,
    path=PATHS,
    type=st.sampled_from(["file", "partition"]),
    size_bytes=KIB,
    used_bytes=KIB,
    priority=st.integers(-200, 32767),
    deleted=st.booleans(),
)


def render(area: SwapArea) -> str:
    """swap_show in mm/swapfile.c."""
    name = area.path + (" (deleted)" if area.deleted else "")
    name = "".join(f"\\{ord(char):03o}" if char in " \t\n\\" else char for char in name)
    pad = " " * max(1, 40 - len(name))
    size, used = area.size_bytes // 1024, area.used_bytes // 1024
    return f"{name}{pad}{area.type}\t\t{size}\t\t{used}\t{'' if used > 9999999 else chr(9)}{area.priority}\n"


@given(st.lists(AREAS))
def test_parse_is_the_inverse_of_the_kernel(areas: list[SwapArea]) -> None:
    assert parse_swaps(HEADER + "".join(map(render, areas))) == tuple(areas)


@given(st.text())
def test_garbage_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_swaps("x" + text)


@pytest.mark.parametrize("pages", [10, 1 << 18, 1 << 30])
def test_header_of_mkswap(pages: int) -> None:
    header = make_header(pages * 4096)
    assert len(header) == 4096
    assert header[4086:] == b"SWAPSPACE2"
    assert int.from_bytes(header[1024:1028], "little") == 1
    assert int.from_bytes(header[1028:1032], "little") == pages - 1
    assert make_header(pages * 4096)[1036:1052] != header[1036:1052], "each area has its own UUID"


def test_header_of_too_few_pages() -> None:
    with pytest.raises(HostError, match="mkswap"):
        make_header(4096)


def area(path: str, size: int, used: int) -> SwapArea:
    return SwapArea(path, "partition", size, used, -2, False)


def test_shortfall() -> None:
    ours, other = area("/dev/loop0", 1000, 600), area("/dev/sda2", 500, 400)
    assert shortfall("/dev/loop0", (ours,), 600) == 0
    assert shortfall("/dev/loop0", (ours,), 500) == 100
    assert shortfall("/dev/loop0", (ours, other), 500) == 0
    assert shortfall("/dev/loop0", (ours, other), 450) == 50
    assert shortfall("/dev/loop9", (ours, other), 0) == 0


@pytest.mark.swap
def test_swap_on_a_loop_device(disk_dir: Path) -> None:
    size = 8 << 20
    backing = disk_dir / "swap file"
    backing.write_bytes(make_header(size) + b"\xaa" * (size - 4096))
    device = attach(str(backing))
    swapon(device.path, 5)
    active = swap_area(device.path)
    assert active is not None
    assert (active.size_bytes, active.priority, active.deleted) == (size - 4096, 5, False)
    with pytest.raises(HostError, match=r"swapon: .*busy"):
        swapon(device.path, None)
    detach(device.path)
    found = loop_device(device.path)
    assert found is not None
    assert found.autoclear, "a device in use goes with its last user"
    swapoff(device.path, lambda used, seconds: None)
    assert swap_area(device.path) is None
    swapoff(device.path, lambda used, seconds: None)


def test_swaps_of_this_machine() -> None:
    assert all(entry.size_bytes > 0 for entry in swaps())
