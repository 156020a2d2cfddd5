"""The table of operations as a whole: complete, consistent, and explained."""

from errno import EBUSY, EINVAL, EOPNOTSUPP, EPERM, ETXTBSY, errorcode

import pytest

from fuseswap.swap.rules import (
    ENGINE_RULES,
    NATIVE_DEVIATIONS,
    OUTCOME_SIGBUS,
    RULES,
    FileState,
    Operation,
    native_outcomes,
    outcome_name,
    verdict,
)

GUARDED = (FileState.ACTIVATING, FileState.ACTIVE, FileState.DEACTIVATING)


def test_one_row_for_each_operation_in_order() -> None:
    assert list(RULES) == list(Operation)
    assert all(RULES[operation].operation is operation for operation in Operation)
    assert len({operation.value for operation in Operation}) == len(Operation)


@pytest.mark.parametrize("operation", Operation)
def test_row(operation: Operation) -> None:
    row = RULES[operation]

    for outcome in (*row.native, *row.here):
        assert outcome == 0 or outcome in errorcode or outcome == OUTCOME_SIGBUS
    assert all(outcome >= 0 for outcome in row.here), "no row may promise a signal: verdict is for the daemon"
    assert row.why.endswith(".")
    assert row.imposed_by
    same = row.native == (verdict(operation, FileState.ORDINARY), verdict(operation, FileState.ACTIVE))
    assert same == (not row.difference), "a difference has a reason, and only a difference has one"
    if row.difference:
        assert row.difference.endswith(".")


@pytest.mark.parametrize("operation", [op for op in Operation if op is not Operation.DEACTIVATE])
def test_guarded_from_the_first_moment_to_the_last(operation: Operation) -> None:
    assert len({verdict(operation, state) for state in GUARDED}) == 1


@pytest.mark.parametrize(
    ("operation", "errno"),
    [
        (Operation.WRITE, ETXTBSY),
        (Operation.WRITE_OLD_HANDLE, ETXTBSY),
        (Operation.TRUNCATE_SMALLER, ETXTBSY),
        (Operation.TRUNCATE_SAME, ETXTBSY),
        (Operation.TRUNCATE_LARGER, ETXTBSY),
        (Operation.OPEN_TRUNCATE, ETXTBSY),
        (Operation.UNLINK, EPERM),
        (Operation.RENAME_SOURCE, EPERM),
        (Operation.RENAME_TARGET, EPERM),
        (Operation.ACTIVATE, EBUSY),
        (Operation.READ, 0),
        (Operation.CHMOD, 0),
        (Operation.FSYNC, 0),
        (Operation.LINK, 0),
    ],
)
def test_the_promises_of_an_active_file(operation: Operation, errno: int) -> None:
    assert verdict(operation, FileState.ORDINARY) == 0
    assert {verdict(operation, state) for state in GUARDED} == {errno}


def test_only_what_is_active_can_be_deactivated() -> None:
    outcomes = [verdict(Operation.DEACTIVATE, state) for state in FileState]
    assert outcomes == [EINVAL, EINVAL, 0, EINVAL]


def test_nothing_that_changes_bytes_is_allowed() -> None:
    """Whoever adds an operation that can change the file must say here that it may."""
    harmless = {row.operation for row in RULES.values() if row.outcome(FileState.ACTIVE) == 0}
    words = ("write ", "write,", "store", "into", "truncate", "fallocate", "unlink", "rename")

    suspicious = {operation for operation in harmless if any(word in operation.value for word in words)}

    assert suspicious == {
        Operation.WRITE_EMPTY,
        Operation.RENAME_DIRECTORY,
        Operation.STORE_OLD_PRIVATE_MAPPING,
    }


def test_the_documented_differences() -> None:
    """The list cannot grow unseen: neither the rows, nor the reasons that they share."""
    assert len({row.difference for row in RULES.values() if row.difference}) == 12
    assert {row.operation.name for row in RULES.values() if row.difference} == {
        "READ_UNALIGNED",
        "WRITE_UNALIGNED",
        "WRITE_EMPTY",
        "TRUNCATE_LARGER",
        "FALLOCATE",
        "FALLOCATE_KEEP_SIZE",
        "FALLOCATE_PUNCH_HOLE",
        "FALLOCATE_ZERO_RANGE",
        "FALLOCATE_COLLAPSE_RANGE",
        "FALLOCATE_INSERT_RANGE",
        "FALLOCATE_UNSHARE_RANGE",
        "RENAME_EXCHANGE",
        "SETXATTR",
        "REMOVEXATTR",
        "CHATTR",
        "MMAP_SHARED_WRITE",
        "MMAP_SHARED_READ",
        "STORE_OLD_SHARED_MAPPING",
        "COPY_RANGE_FROM",
        "FIEMAP",
        "UNMOUNT",
        "REMOUNT_READ_ONLY",
    }


def test_outcome_names() -> None:
    names = [outcome_name(outcome) for outcome in (0, ETXTBSY, OUTCOME_SIGBUS, EOPNOTSUPP)]
    assert names == ["ok", "ETXTBSY", "SIGBUS", "EOPNOTSUPP"]


def test_deviations_deviate() -> None:
    for (filesystem, operation), outcomes in NATIVE_DEVIATIONS.items():
        assert outcomes != RULES[operation].native, (filesystem, operation)
    assert native_outcomes("xfs", Operation.WRITE_EMPTY) == (0, 0)
    assert native_outcomes("ext4", Operation.WRITE_EMPTY) == (0, ETXTBSY)


def test_engine_rules() -> None:
    assert len({row.request for row in ENGINE_RULES}) == len(ENGINE_RULES)
    for row in ENGINE_RULES:
        assert row.outcome == 0 or row.outcome in errorcode
        assert row.why.endswith(".")
