"""What swap_activate says of a file, check by check: for people who ask before they activate, and as JSON."""

import json
from collections.abc import Iterator
from enum import Enum
from typing import Any, Final

from attrs import asdict, frozen

from fuseswap.swap.activation import (
    ACTIVATION_CHECKS,
    CHECK_ALLOCATED,
    CHECK_BLOCK_SIZE,
    CHECK_IN_USE,
    CHECK_RECURSION,
    CHECK_SWAP_RW,
    FileFacts,
    Verdict,
    swap_activate,
)
from fuseswap.swap.errors import Check, ContractError
from fuseswap.swap.extents import CHECK_BAD_PAGE, CHECK_HOLES, EXTENT_CHECKS, MAPPING_CHECKS
from fuseswap.swap.header import Mark, SwapHeader, parse_header, read_mark
from fuseswap.swap.target import ActivationRequest

REPORT_RANGES_MAX: Final = 256
"""Data ranges and extents that a report lists, so that it fits an extended attribute (64 KiB)."""


class Outcome(Enum):
    """How a check went."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_REACHED = "not reached"
    """A check before it failed."""
    NOT_APPLICABLE = "not applicable"
    """It is not made of a file of this kind."""


@frozen
class CheckResult:
    """One check of a report."""

    check: Check
    outcome: Outcome


@frozen
class CheckReport:
    """Everything that swap_activate and swapon would say of a file."""

    facts: FileFacts
    checks: tuple[CheckResult, ...]
    header: SwapHeader | None
    """None where page 0 holds none that the kernel would read."""
    mark: Mark | None
    verdict: Verdict | None
    error: ContractError | None
    """Why there is no verdict."""

    def to_plain(self) -> dict[str, Any]:
        """The report as JSON's objects, lists, strings and numbers."""
        return {
            "verdict": "ok" if self.error is None else self.error.errno_name,
            "facts": _plain_facts(self.facts),
            "header": _plain_header(self.header) if self.header else None,
            "mark": asdict(self.mark) if self.mark else None,
            "checks": [_plain_result(result) for result in self.checks],
            "activation": _plain_verdict(self.verdict) if self.verdict else None,
            "error": plain_error(self.error) if self.error else None,
        }

    def to_json(self) -> str:
        """JSON text of `to_plain`, ASCII, less than 64 KiB."""
        return json.dumps(self.to_plain())


def check_report(facts: FileFacts, request: ActivationRequest | None = None) -> CheckReport:
    """What `swap_activate` says of a file, check by check. Never fails: a refusal is in the report."""
    verdict: Verdict | None = None
    error: ContractError | None = None
    try:
        verdict = swap_activate(facts, request)
    except ContractError as refusal:
        error = refusal
    page = facts.header_page or b""
    return CheckReport(
        facts=facts,
        checks=tuple(_results(facts, error)),
        header=_readable_header(page),
        mark=read_mark(page),
        verdict=verdict,
        error=error,
    )


def _results(facts: FileFacts, error: ContractError | None) -> Iterator[CheckResult]:
    skipped = _inapplicable(facts)
    outcome = Outcome.PASSED
    for check in ACTIVATION_CHECKS:
        if error is not None and check.step == error.step:
            yield CheckResult(check, Outcome.FAILED)
            outcome = Outcome.NOT_REACHED
        else:
            yield CheckResult(check, Outcome.NOT_APPLICABLE if check in skipped else outcome)


def _inapplicable(facts: FileFacts) -> set[Check]:
    """Checks that are not made of a file of this kind: SWP_FS_OPS or not."""
    if facts.has_swap_rw:
        return {CHECK_IN_USE, CHECK_BLOCK_SIZE, *EXTENT_CHECKS}
    skipped = {CHECK_ALLOCATED, CHECK_HOLES, *(check for check in ACTIVATION_CHECKS if check.own)} - {CHECK_RECURSION}
    if not facts.is_device:
        skipped.add(CHECK_IN_USE)
    if facts.mappings is None:
        return skipped | {CHECK_BLOCK_SIZE, *EXTENT_CHECKS}
    of_other_kind = MAPPING_CHECKS if facts.is_device else (CHECK_BAD_PAGE,)
    return skipped | {CHECK_SWAP_RW, *of_other_kind}


def _readable_header(page: bytes) -> SwapHeader | None:
    try:
        return parse_header(page)
    except ContractError:
        return None


def _plain_facts(facts: FileFacts) -> dict[str, Any]:
    plain = asdict(facts, recurse=False)
    del plain["header_page"], plain["data_ranges"], plain["mappings"]
    plain["mode"] = f"{facts.mode:o}"
    ranges = facts.data_ranges
    if ranges is not None:
        plain["data_range_count"] = len(ranges)
        plain["data_ranges"] = [[data.start, data.end] for data in ranges[:REPORT_RANGES_MAX]]
    return plain


def _plain_header(header: SwapHeader) -> dict[str, Any]:
    return {
        "version": header.version,
        "byte_order": header.byte_order,
        "last_page": header.last_page,
        "bad_pages": list(header.bad_pages),
        "uuid": str(header.uuid),
        "label": header.label.decode(errors="backslashreplace"),
    }


def _plain_result(result: CheckResult) -> dict[str, Any]:
    check = result.check
    return {
        "step": check.step,
        "outcome": result.outcome.value,
        "imposed_by": check.imposed_by,
        "why": check.why,
    }


def _plain_verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "fs_ops": verdict.fs_ops,
        "pages": verdict.pages,
        "extent_count": len(verdict.extents),
        "extents": [
            [extent.start_page, extent.page_count, extent.start_block] for extent in verdict.extents[:REPORT_RANGES_MAX]
        ],
        "span": verdict.span,
        "stolen_from": asdict(verdict.stolen_from) if verdict.stolen_from else None,
    }


def plain_error(error: ContractError) -> dict[str, Any]:
    """A refusal as JSON's objects, as in a report. Never fails."""
    return {
        "errno": error.errno,
        "errno_name": error.errno_name,
        "step": error.step,
        "text": error.text,
        "kernel_text": error.kernel_text,
        "own": error.own,
        "remedy": error.remedy,
    }
