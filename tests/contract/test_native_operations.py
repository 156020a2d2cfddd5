"""The native columns of the table against this machine's kernel: every operation, really tried."""

import pytest

from fuseswap.swap.rules import Operation, native_outcomes, outcome_name
from tests.contract.conftest import NativeFilesystem
from tests.contract.operations import ordinary, outcome_of

pytestmark = pytest.mark.swap


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_the_kernel_agrees_cell_by_cell(native_filesystems: dict[str, NativeFilesystem], kind: str) -> None:
    world = native_filesystems[kind].world()

    cells = {
        operation: (outcome_of(world, operation, ordinary), outcome_of(world, operation, world.active))
        for operation in Operation
    }

    wrong = {
        operation.name: ([outcome_name(outcome) for outcome in cell], "table says", native_outcomes(kind, operation))
        for operation, cell in cells.items()
        if cell != native_outcomes(kind, operation)
    }
    assert not wrong
