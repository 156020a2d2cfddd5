"""How a command fails: one line on standard error, and an exit code."""

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    """Done, or already so."""
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    """Refused by the swap-file contract."""
    SERVER = 4
    """The server, or the way to it."""


class Failure(Exception):
    """A command ends with this one line: what is wrong and what to do."""

    def __init__(self, text: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(text)
        self.code = code
