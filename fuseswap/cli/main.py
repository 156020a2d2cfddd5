"""The command's entry: parse, run, and turn every failure into one line and an exit code."""

import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from fuseswap.cli.failure import Exit, Failure
from fuseswap.cli.interrupts import Interrupted, Interrupts, interruptible
from fuseswap.cli.output import discard, warn
from fuseswap.cli.parser import build_parser
from fuseswap.cli.steps import NotUndone
from fuseswap.host.bounded import HostError
from fuseswap.swap.errors import ContractError

Command = Callable[[Any, Interrupts], Exit]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fuseswap ARGV...`; the exit code. SystemExit only for --help and --version."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        arguments = build_parser().parse_args(argv)
        with interruptible() as interrupts:
            code = _command(arguments.command)(arguments, interrupts)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # What is left in the buffer must not complain at exit.
        discard(sys.stdout)
        return 128 + signal.SIGPIPE
    except (Exception, Interrupted) as error:
        text, code = explain(error)
        warn(text)
        return code


def explain(error: BaseException) -> tuple[str, Exit]:
    """The line and the exit code for what a command raised. Anything unforeseen goes on as it is."""
    if isinstance(error, Failure):
        return str(error), error.code
    if isinstance(error, NotUndone):
        cause = error.__cause__ or error
        text, code = explain(cause)
        return f"{text} (the {error.step.what} and what it stands on remain)", code
    if isinstance(error, Interrupted):
        return f"interrupted by {error}", Exit.FAILED
    if isinstance(error, ContractError):
        return str(error), Exit.REFUSED
    if isinstance(error, HostError):
        return str(error), Exit.FAILED
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error), Exit.FAILED
    return _explain_rooms(error)


def _explain_rooms(error: BaseException) -> tuple[str, Exit]:
    # Imported late: these rooms are heavy, and only what ran can have raised.
    from fuseswap.backends.protocol import SourceError
    from fuseswap.engine.launch import EngineError

    if isinstance(error, SourceError):
        return str(error), Exit.USAGE if error.usage else Exit.SERVER
    if isinstance(error, EngineError):
        return str(error), Exit.SERVER
    raise error


def _command(name: str) -> Command:
    module, _, function = name.partition(":")
    command: Command = getattr(import_module(f"fuseswap.cli.{module}"), function)
    return command
