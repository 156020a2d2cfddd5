"""The command, run as a user runs it, and never waited for in vain."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from attrs import frozen

from fuseswap.host.bounded import abandon

FUSESWAP = (sys.executable, "-m", "fuseswap")


@frozen
class Result:
    """How a command ended."""

    code: int
    output: str
    errors: str

    @property
    def line(self) -> str:
        """The one line on standard error that every failure has, without its beginning."""
        assert self.errors.startswith("fuseswap: "), self
        assert self.errors.count("\n") == 1, self
        assert self.errors.endswith("\n"), self
        assert "Traceback" not in self.errors
        return self.errors.removeprefix("fuseswap: ").rstrip("\n")


def start(
    *arguments: str | os.PathLike[str], wrapper: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start `fuseswap ARGUMENTS`, perhaps below a wrapper like unshare."""
    return subprocess.Popen(
        [*wrapper, *FUSESWAP, *(os.fspath(argument) for argument in arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )


def finish(process: "subprocess.Popen[str]", *, seconds: float = 60) -> Result:
    """Wait for a started command; one that hangs is abandoned, and the test fails."""
    try:
        output, errors = process.communicate(timeout=seconds)
    except BaseException:
        abandon(process)
        raise
    return Result(process.returncode, output, errors)


def fuseswap(*arguments: str | os.PathLike[str], wrapper: Sequence[str] = (), seconds: float = 60) -> Result:
    """Run `fuseswap ARGUMENTS` to its end."""
    return finish(start(*arguments, wrapper=wrapper), seconds=seconds)
