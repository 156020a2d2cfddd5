"""swap_activate: every check, the order of all of them, and the report that lists them."""

import json
from collections.abc import Callable
from errno import EBUSY, EDEADLK, EINVAL, EIO, EISDIR, ENOENT, ENXIO, EPERM, EROFS
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from fuseswap.swap.activation import (
    ACTIVATION_CHECKS,
    DataRange,
    FileFacts,
    swap_activate,
)
from fuseswap.swap.errors import ContractError
from fuseswap.swap.extents import EXTENT_CHECKS, Mapping, SwapExtent
from fuseswap.swap.header import Mark, SwapHeader, format_header, put_mark
from fuseswap.swap.report import REPORT_RANGES_MAX, Outcome, check_report
from fuseswap.swap.target import ActivationRequest
from fuseswap.swap.units import PAGE_SIZE
from tests.swap.test_header import HEADERS, MARKS, PAGES, raw_header

PAGES_MAX = 100
SIZE_BYTES = PAGES_MAX * PAGE_SIZE
HEADER = SwapHeader(last_page=PAGES_MAX - 1, label=b"swap")
PAGE = format_header(HEADER)
THIS = ActivationRequest(machine_id="this", boot_id="now")
OTHER = Mark("other", "then", "host")

GOOD = FileFacts(
    mode=0o100600,
    size_bytes=SIZE_BYTES,
    allocated_bytes=SIZE_BYTES,
    header_page=PAGE,
    read_bytes_max=1 << 20,
    write_bytes_max=1 << 20,
)

Spoil = Callable[[FileFacts], FileFacts]


def spoil_page(spoil: Callable[[bytes], bytes]) -> Spoil:
    return lambda facts: evolve(facts, header_page=spoil(facts.header_page or bytes(PAGE_SIZE)))


def patch(offset: int, data: bytes) -> Spoil:
    return spoil_page(lambda page: page[:offset] + data + page[offset + len(data) :])


def local(mapping: Mapping) -> Spoil:
    """A file that the kernel swaps to by block numbers."""
    return lambda facts: evolve(facts, has_swap_rw=False, mappings=(mapping,))


def device(facts: FileFacts, bad_pages: tuple[int, ...] = (), last_page: int = PAGES_MAX - 1) -> FileFacts:
    """A block device with a header."""
    page = format_header(SwapHeader(last_page, bad_pages))
    mappings = (Mapping(0, facts.size_bytes, 0),)
    return evolve(facts, mode=0o060600, header_page=page, has_swap_rw=False, mappings=mappings)


# In the order of ACTIVATION_CHECKS: how to make just this check fail, and what it says.
SPOILT: dict[str, tuple[Spoil, int]] = {
    "directory": (lambda facts: evolve(facts, mode=0o040700), EISDIR),
    "socket": (lambda facts: evolve(facts, mode=0o140700), ENXIO),
    "read-only": (lambda facts: evolve(facts, read_only=True), EROFS),
    "immutable": (lambda facts: evolve(facts, immutable=True), EPERM),
    "in-use": (lambda facts: evolve(facts, in_use=True), EBUSY),
    "unlinked": (lambda facts: evolve(facts, nlink=0), ENOENT),
    "active": (lambda facts: evolve(facts, active=True), EBUSY),
    "regular": (lambda facts: evolve(facts, mode=0o010600), EINVAL),
    "block-size": (lambda facts: evolve(facts, block_bytes=16384), EINVAL),
    "read": (lambda facts: evolve(facts, header_page=None), EIO),
    "signature": (patch(4086, b"SWAP-SPACE"), EINVAL),
    "other-endian-bad-pages": (
        spoil_page(lambda page: raw_header(1, 9, 638, page[-10:], ">")[1024:].rjust(PAGE_SIZE, b"\0")),
        EINVAL,
    ),
    "version": (patch(1024, bytes([2, 0, 0, 0])), EINVAL),
    "last-page": (patch(1028, bytes(4)), EINVAL),
    "shorter": (lambda facts: evolve(facts, size_bytes=facts.size_bytes - 1), EINVAL),
    "bad-pages": (patch(1032, bytes([1, 0, 0, 0])), EINVAL),
    "bad-pages-max": (patch(1032, bytes([0, 9, 0, 0])), EINVAL),
    "swap-rw": (lambda facts: evolve(facts, has_swap_rw=False), EINVAL),
    "allocated": (lambda facts: evolve(facts, allocated_bytes=facts.size_bytes - 512), EINVAL),
    "holes": (lambda facts: evolve(facts, data_ranges=(DataRange(0, 4096), DataRange(8192, 1 << 30))), EINVAL),
    "inline": (local(Mapping(0, SIZE_BYTES, 4096, inline=True)), EINVAL),
    "unallocated": (local(Mapping(0, SIZE_BYTES, None)), EINVAL),
    "shared": (local(Mapping(0, SIZE_BYTES, 4096, shared=True)), EINVAL),
    "usable-page": (local(Mapping(0, 3072, 1024)), EINVAL),
    "bad-page": (lambda facts: device(facts, bad_pages=(1, 0)), EINVAL),
    "empty": (local(Mapping(0, PAGE_SIZE, 4096)), EINVAL),
    "whole-pages": (
        lambda facts: evolve(facts, size_bytes=facts.size_bytes + 1, allocated_bytes=facts.allocated_bytes + 1),
        EINVAL,
    ),
    "transfer-size": (lambda facts: evolve(facts, read_bytes_max=4095), EINVAL),
    "boot-block": (patch(1023, b"x"), EINVAL),
    "mark": (spoil_page(lambda page: put_mark(page, OTHER)), EBUSY),
    "recursion": (lambda facts: evolve(facts, stands_on="it lies on the fuseswap mount /mnt"), EDEADLK),
}


def refusal(facts: FileFacts, request: ActivationRequest | None = THIS) -> ContractError:
    with pytest.raises(ContractError) as caught:
        swap_activate(facts, request)
    return caught.value


def test_granted() -> None:
    verdict = swap_activate(GOOD, THIS)

    assert verdict.extents == (SwapExtent(0, PAGES_MAX, 0),)
    assert verdict.pages == verdict.span == PAGES_MAX - 1
    assert verdict.header == HEADER
    assert verdict.stolen_from is None
    assert verdict.fs_ops


def test_a_file_that_the_kernel_swaps_to_alone() -> None:
    """No swap_rw, blocks known: iomap's layout, and nothing of what only fuseswap demands."""
    facts = evolve(
        GOOD,
        size_bytes=SIZE_BYTES + 100,
        allocated_bytes=0,
        header_page=put_mark(PAGE, OTHER),
        has_swap_rw=False,
        read_bytes_max=0,
        mappings=(Mapping(0, 10 * PAGE_SIZE, 50 * PAGE_SIZE), Mapping(10 * PAGE_SIZE, 1 << 30, 90 * PAGE_SIZE)),
    )

    verdict = swap_activate(facts, THIS)

    assert not verdict.fs_ops
    assert verdict.extents == (SwapExtent(0, 10, 50), SwapExtent(10, 90, 90))
    assert (verdict.pages, verdict.span) == (99, 129)
    outcomes = {result.check.step: result.outcome for result in check_report(facts, THIS).checks}
    assert {step for step, outcome in outcomes.items() if outcome is not Outcome.PASSED} == not_made_of(facts)


def test_a_block_device() -> None:
    """One extent, whatever lies below it; bad pages are no slots, and the span counts them."""
    verdict = swap_activate(device(GOOD, bad_pages=(3, 99)))

    assert not verdict.fs_ops
    assert verdict.extents == (SwapExtent(0, PAGES_MAX, 0),)
    assert (verdict.pages, verdict.span) == (PAGES_MAX - 3, PAGES_MAX - 1)
    for bad_pages in ((0,), (PAGES_MAX,), (1, PAGES_MAX)):
        assert refusal(device(GOOD, bad_pages)).step == "bad-page"
    assert refusal(device(GOOD, tuple(range(1, 10)), last_page=9)).step == "empty"
    # A server's device file is another machine's.
    assert refusal(evolve(device(GOOD), mappings=None)).step == "regular"


def test_what_stands_on_fuseswap_is_refused_whoever_does_the_io() -> None:
    """As the last: what the kernel says comes first."""
    local_file = local(Mapping(0, SIZE_BYTES, 4096))(GOOD)
    for facts in (GOOD, local_file, device(GOOD)):
        error = refusal(evolve(facts, stands_on="it lies there"))
        assert (error.step, error.errno, error.own, error.text) == (
            "recursion",
            EDEADLK,
            True,
            "as swap it could wait for itself: it lies there",
        )
        assert error.errno_name == "EDEADLK"


def test_every_check_is_spoilt_here() -> None:
    assert [check.step for check in ACTIVATION_CHECKS] == list(SPOILT)
    assert len(set(SPOILT)) == len(ACTIVATION_CHECKS)


@pytest.mark.parametrize("step", SPOILT)
def test_each_check_alone(step: str) -> None:
    spoil, errno = SPOILT[step]

    error = refusal(spoil(GOOD))

    # A regular file never gets as far as the limit of a list that it must not have at all.
    assert error.step == ("bad-pages" if step == "bad-pages-max" else step)
    assert error.errno == errno
    assert error.text and error.remedy
    assert "\n" not in str(error) and "{" not in str(error)


def test_the_kernels_own_words() -> None:
    texts = {step: error for step in SPOILT if (error := refusal(SPOILT[step][0](GOOD))).kernel_text}

    assert {step: error.text for step, error in texts.items()} == {
        "signature": "Unable to find swap-space signature",
        "version": "Unable to handle swap header version 2",
        "last-page": "Empty swap-file",
        "shorter": "Swap area shorter than signature indicates",
        "allocated": "swap activate: swapfile has holes",
        "holes": "swapfile has holes",
        "inline": "is inline",
        "unallocated": "has unallocated extents",
        "shared": "has shared extents",
        "usable-page": "Cannot find a single usable page in file.",
        "empty": "Empty swap-file",
    }


def test_what_is_ours_comes_last() -> None:
    own = [check.own for check in ACTIVATION_CHECKS]

    assert own == sorted(own)
    assert {check.step for check in ACTIVATION_CHECKS if check.own} == {
        "whole-pages",
        "transfer-size",
        "boot-block",
        "mark",
        "recursion",
    }


# These exclude one another in one file: the type, and the values of one field.
LOCAL = {check.step for check in EXTENT_CHECKS}
ONLY_FS_OPS = {"swap-rw", "allocated", "holes", *(check.step for check in ACTIVATION_CHECKS if check.own)}
ONLY_FS_OPS -= {"recursion"}


def not_made_of(facts: FileFacts) -> set[str]:
    """The checks that are not made of a file of this kind."""
    if facts.has_swap_rw:
        return LOCAL | {"in-use", "block-size"}
    if facts.mappings is None:
        return (ONLY_FS_OPS | LOCAL | {"in-use", "block-size"}) - {"swap-rw"}
    of_a_device, of_a_file = {"in-use", "bad-page"}, {"inline", "unallocated", "shared", "usable-page"}
    return ONLY_FS_OPS | (of_a_file if facts.is_device else of_a_device)


EXCLUSIVE = [
    LOCAL,
    {"directory", "socket", "regular"},
    {"read-only", "regular"},  # a device or a fifo can be written on a read-only file system
    {"version", "other-endian-bad-pages", "bad-pages", "bad-pages-max", "last-page"},
    {"boot-block", "mark"},
    {"shorter", "whole-pages"},
]


@given(st.sets(st.sampled_from([step for step in SPOILT if step not in ("bad-pages-max", "bad-page")])))
def test_the_first_of_several_faults_refuses(steps: set[str]) -> None:
    for exclusive in EXCLUSIVE:
        for step in list(steps & exclusive)[1:]:
            steps.discard(step)
    if steps & LOCAL:
        steps -= ONLY_FS_OPS
    ordered = [step for step in SPOILT if step in steps]
    facts = GOOD
    for step in sorted(ordered, key=lambda step: step == "read"):
        facts = SPOILT[step][0](facts)

    if not ordered:
        swap_activate(facts, THIS)
    else:
        assert refusal(facts).step == ordered[0]


def test_version_before_last_page_before_bad_pages() -> None:
    page = raw_header(2, 0, 1)
    assert refusal(evolve(GOOD, header_page=page)).step == "version"
    page = raw_header(1, 0, 1)
    assert refusal(evolve(GOOD, header_page=page)).step == "last-page"
    page = raw_header(1, PAGES_MAX, 1)
    assert refusal(evolve(GOOD, header_page=page)).step == "shorter"


@pytest.mark.parametrize(
    ("allocated", "granted"),
    [(SIZE_BYTES, True), (SIZE_BYTES - 1, True), (SIZE_BYTES - 511, True), (SIZE_BYTES - 512, False), (0, False)],
)
def test_allocation_counts_in_sectors(allocated: int, granted: bool) -> None:
    """nfs_calc_block_size rounds up: a server that is off by less than a sector passes natively, too."""
    facts = evolve(GOOD, allocated_bytes=allocated)

    if granted:
        swap_activate(facts)
    else:
        assert refusal(facts).step == "allocated"


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), max_size=8))
def test_holes_against_a_model(pieces: list[tuple[int, int]]) -> None:
    covered: set[int] = set()
    ranges = []
    for start, length in sorted(pieces):
        ranges.append(DataRange(start * PAGE_SIZE, (start + length) * PAGE_SIZE))
        covered |= set(range(start, start + length))
    size_pages = 16
    facts = evolve(
        GOOD,
        size_bytes=size_pages * PAGE_SIZE,
        header_page=format_header(SwapHeader(size_pages - 1)),
        data_ranges=tuple(ranges),
    )

    if set(range(size_pages)) <= covered:
        swap_activate(facts)
    else:
        assert refusal(facts).step == "holes"


def test_marks() -> None:
    own = evolve(GOOD, header_page=put_mark(PAGE, Mark("this", "an earlier boot")))
    foreign = evolve(GOOD, header_page=put_mark(PAGE, OTHER))

    assert swap_activate(own, THIS).stolen_from is None
    assert swap_activate(foreign, evolve(THIS, steal=True)).stolen_from == OTHER
    assert swap_activate(foreign, None).pages == PAGES_MAX - 1
    error = refusal(foreign)
    assert error.own and error.errno == EBUSY
    assert "host (machine-id other)" in error.text and "--steal" in error.remedy


def test_a_mark_is_shown_as_one_line_of_text() -> None:
    error = refusal(evolve(GOOD, header_page=put_mark(PAGE, Mark("a\nb", "", "\x1b]0;hôte\x07"))))
    assert error.text.endswith(r"another machine: \x1b]0;hôte\x07 (machine-id a\nb)")


def test_clones_and_containers_share_a_machine_id() -> None:
    asking = evolve(THIS, host="here")

    def marked(boot: str, host: str) -> FileFacts:
        return evolve(GOOD, header_page=put_mark(PAGE, Mark("this", boot, host)))

    # "now": a container of the same image on the same machine, which knows nothing of the other's swap.
    for boot in ("then", "now"):
        assert refusal(marked(boot, "there"), asking).step == "mark"
        assert swap_activate(marked(boot, "there"), evolve(asking, steal=True)).stolen_from is not None
        for host in ("here", ""):
            assert swap_activate(marked(boot, host), asking).stolen_from is None


def test_stealing_does_not_help_where_the_place_is_taken() -> None:
    facts = SPOILT["boot-block"][0](GOOD)

    assert refusal(facts, evolve(THIS, steal=True)).step == "boot-block"


def test_whole_pages_say_how_to_cut() -> None:
    facts = evolve(GOOD, size_bytes=SIZE_BYTES + 100, allocated_bytes=SIZE_BYTES + 512)

    assert f"truncate -s {SIZE_BYTES} FILE" in refusal(facts).remedy


# --- reports ---

FACTS = st.builds(
    FileFacts,
    mode=st.sampled_from([0o100600, 0o100000, 0o040755, 0o010600, 0o140600, 0o060600, 0o020600, 0o120777, 0]),
    size_bytes=st.one_of(st.integers(0, 2**63 - 1), st.just(SIZE_BYTES)),
    allocated_bytes=st.one_of(st.integers(0, 2**63 - 1), st.just(SIZE_BYTES)),
    header_page=st.one_of(st.none(), PAGES, st.builds(put_mark, HEADERS.map(format_header), MARKS)),
    read_bytes_max=st.integers(0, 2**32 - 1),
    write_bytes_max=st.integers(0, 2**32 - 1),
    active=st.booleans(),
    has_swap_rw=st.booleans(),
    read_only=st.booleans(),
    nlink=st.integers(0, 3),
    data_ranges=st.none()
    | st.lists(st.builds(DataRange, st.integers(0, 2**62), st.integers(0, 2**62)), max_size=5).map(tuple),
    mappings=st.none()
    | st.lists(
        st.builds(
            Mapping,
            st.integers(0, 2**62),
            st.integers(1, 2**62),
            st.none() | st.integers(0, 2**62),
            st.booleans(),
            st.booleans(),
        ),
        max_size=5,
    ).map(tuple),
)
REQUESTS = st.none() | st.builds(ActivationRequest, st.text(), st.text(), st.booleans())


@given(FACTS, REQUESTS)
def test_a_report_agrees_with_the_verdict(facts: FileFacts, request: ActivationRequest | None) -> None:
    report = check_report(facts, request)

    plain = json.loads(report.to_json())
    outcomes = [result.outcome for result in report.checks]
    assert [result.check for result in report.checks] == list(ACTIVATION_CHECKS)
    if report.error is None:
        assert report.verdict == swap_activate(facts, request)
        assert Outcome.FAILED not in outcomes
        assert {result.check.step for result in report.checks if result.outcome is not Outcome.PASSED} == (
            not_made_of(facts)
        )
        assert plain["verdict"] == "ok"
    else:
        error = refusal(facts, request)
        failed = outcomes.index(Outcome.FAILED)
        assert report.verdict is None
        assert ACTIVATION_CHECKS[failed].step == error.step == report.error.step
        before = {result.check.step for result in report.checks[:failed] if result.outcome is not Outcome.PASSED}
        assert before <= not_made_of(facts)
        assert set(outcomes[failed + 1 :]) <= {Outcome.NOT_REACHED, Outcome.NOT_APPLICABLE}
        assert plain["verdict"] == error.errno_name
        assert plain["error"]["text"] == error.text


@given(FACTS, st.builds(ActivationRequest, st.text(), st.text(), st.booleans()))
def test_only_the_mark_depends_on_who_asks(facts: FileFacts, request: ActivationRequest) -> None:
    error = check_report(facts, request).error

    if error is None or error.step != "mark":
        other = check_report(facts, None).error
        assert (other and other.step) == (error and error.step)


def test_a_report_fits_an_extended_attribute() -> None:
    """The largest there can be: many bad pages, ranges, extents, and a long mark that JSON escapes."""
    page = format_header(SwapHeader(2**32 - 1, (2**32 - 1,) * 637, label=b"\xff" * 16))
    ranges = tuple(DataRange(2**63 - 2 * i, 2**63) for i in range(5 * REPORT_RANGES_MAX))
    facts = evolve(
        GOOD,
        mode=0o060600,
        header_page=put_mark(page, Mark("\x01" * 400, "", "")),
        data_ranges=ranges,
    )

    report = check_report(facts, THIS)

    assert len(report.to_json()) < 65536
    assert report.to_json().isascii()
    plain: dict[str, Any] = report.to_plain()
    assert plain["facts"]["data_range_count"] == len(ranges)
    assert len(plain["facts"]["data_ranges"]) == REPORT_RANGES_MAX
    assert len(plain["header"]["bad_pages"]) == 637


def test_report_of_a_good_file() -> None:
    plain = check_report(GOOD, THIS).to_plain()

    assert plain["verdict"] == "ok"
    assert plain["error"] is None
    assert plain["activation"] == {
        "fs_ops": True,
        "pages": PAGES_MAX - 1,
        "extent_count": 1,
        "extents": [[0, PAGES_MAX, 0]],
        "span": PAGES_MAX - 1,
        "stolen_from": None,
    }
    assert plain["header"]["label"] == "swap"
    assert plain["facts"]["mode"] == "100600"
    for check in plain["checks"]:
        assert check["outcome"] == ("not applicable" if check["step"] in not_made_of(GOOD) else "passed")


def test_report_of_a_fragmented_file() -> None:
    mappings = tuple(Mapping(i * PAGE_SIZE, PAGE_SIZE, 2 * i * PAGE_SIZE) for i in range(3000))
    header = format_header(SwapHeader(2999))
    facts = evolve(GOOD, size_bytes=3000 * PAGE_SIZE, header_page=header, has_swap_rw=False, mappings=mappings)

    plain = check_report(facts).to_plain()

    assert plain["activation"]["extent_count"] == 3000
    assert len(plain["activation"]["extents"]) == REPORT_RANGES_MAX
