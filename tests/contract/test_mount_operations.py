"""The table of operations against a real fuseswap mount on a real NFS server, cell by cell.

With the native columns (test_native_operations.py) this is the comparison of fuseswap with the kernel: where a
cell of the mount is not the kernel's, the row must say why.
"""

from pathlib import Path

from fuseswap.host.ganesha import GaneshaServer
from fuseswap.swap.rules import RULES, FileState, Operation, outcome_name
from tests.contract.mounting import fuseswap_world, mounted
from tests.contract.operations import ordinary, outcome_of


def test_the_mount_obeys_the_table(nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path) -> None:
    source = nfs_server.url(nfs_dir.name)
    with mounted(source, mount_point):
        world = fuseswap_world(source, mount_point)

        cells = {
            operation: (outcome_of(world, operation, ordinary), outcome_of(world, operation, world.active))
            for operation in Operation
        }

    wrong = {
        operation.name: ([outcome_name(outcome) for outcome in cell], "table says", expected)
        for operation, cell in cells.items()
        if cell != (expected := table_of(operation))
    }
    assert not wrong


def table_of(operation: Operation) -> tuple[int, int]:
    rule = RULES[operation]
    return rule.outcome(FileState.ORDINARY), rule.outcome(FileState.ACTIVE)
