"""What `check` prints of any report there can be."""

from hypothesis import given

from fuseswap.cli.check import describe, refusal
from fuseswap.swap.activation import ACTIVATION_CHECKS, FileFacts
from fuseswap.swap.report import check_report
from fuseswap.swap.target import ActivationRequest
from tests.swap.test_activation import FACTS, REQUESTS


@given(FACTS, REQUESTS)
def test_any_report_can_be_told(facts: FileFacts, request: ActivationRequest | None) -> None:
    report = check_report(facts, request).to_plain()

    lines = describe(report)

    assert len(lines) >= len(ACTIVATION_CHECKS)
    assert all(line.isprintable() for line in lines), "whatever stands in the header"
    failure = refusal("/the/file", report)
    assert (failure is None) == (report["error"] is None)
    if failure is not None:
        assert str(failure).isprintable()
        assert str(failure).startswith("/the/file: ")
