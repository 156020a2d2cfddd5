"""`contract`: the table that the filesystem obeys, printed from the same data."""

import errno
from typing import Any

from fuseswap.cli.failure import Exit
from fuseswap.cli.interrupts import Interrupts
from fuseswap.cli.output import say
from fuseswap.cli.table import columns
from fuseswap.swap.activation import ACTIVATION_CHECKS
from fuseswap.swap.rules import ENGINE_RULES, RULES, FileState, outcome_name


def contract(_arguments: Any, _interrupts: Interrupts) -> Exit:
    """`fuseswap contract`."""
    say("What a file must be, in the order of swapon(2):\n")
    rows = [(check.step, errno.errorcode[check.errno], check.imposed_by, check.why) for check in ACTIVATION_CHECKS]
    say(columns(("check", "errno", "imposed by", "why"), rows))
    say("\nWhat may be done to it, as an ordinary and as an active file, in the kernel and here:\n")
    say(columns(("operation", "kernel", "kernel active", "here", "here active", "imposed by"), _rules()))
    say("\nWhere the ordinary mount differs from the kernel:\n")
    for rule in RULES.values():
        if rule.difference:
            say(f"{rule.operation.value}: {rule.difference}")
    say("\nThe engine's own file:\n")
    say(
        columns(
            ("request", "outcome", "why"),
            [(rule.request, outcome_name(rule.outcome), rule.why) for rule in ENGINE_RULES],
        )
    )
    return Exit.DONE


def _rules() -> list[tuple[str, ...]]:
    return [
        (
            rule.operation.value,
            outcome_name(rule.native[0]),
            outcome_name(rule.native[1]),
            outcome_name(rule.outcome(FileState.ORDINARY)),
            outcome_name(rule.outcome(FileState.ACTIVE)),
            rule.imposed_by,
        )
        for rule in RULES.values()
    ]
