"""The grammar of the command, apart from what it does: `--help` and usage errors import nothing heavy."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from fuseswap import __version__
from fuseswap.cli.failure import Exit, Failure
from fuseswap.cli.size import parse_file_size, parse_size
from fuseswap.host.rundir import is_name

_EXIT_CODES = "Exit codes: 0 done, or already so; 1 failed; 2 usage; 3 refused by the contract; 4 the server."

_Add = Callable[[str, str, str], argparse.ArgumentParser]


class Parser(argparse.ArgumentParser):
    """Usage errors are one line, and an exception like all others."""

    def error(self, message: str) -> NoReturn:
        """Failure with the message and where to read on."""
        raise Failure(f"{message}; see {self.prog} --help", Exit.USAGE)


def build_parser() -> Parser:
    """Every command with its arguments; `command` names the module and function that runs it."""
    parser = Parser(
        prog="fuseswap", description="Swap over NFS from user space.", epilog=_EXIT_CODES, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"fuseswap {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")

    def add(name: str, command: str, text: str) -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}."
        added = commands.add_parser(name, help=text, description=description, epilog=_EXIT_CODES, allow_abbrev=False)
        added.set_defaults(command=command)
        return added

    _add_swap(add)
    _add_files(add)
    _add_reports(add)
    return parser


def _add_swap(add: _Add) -> None:
    up = add("up", "updown:up", "swap to a file on an NFS server: create if missing, mount, turn on")
    up.add_argument("url", metavar="URL", help="nfs://HOST/EXPORT/PATH/FILE")
    up.add_argument("--size", type=_file_size, help="size of a file that is made (default: 4G)")
    _add_activation(up)

    down = add("down", "updown:down", "undo up, also when half of it is gone")
    which = down.add_mutually_exclusive_group(required=True)
    which.add_argument("name", metavar="NAME|URL", nargs="?", help="what `status` calls it, or its URL")
    which.add_argument("--all", action="store_true", help="everything that is up")
    _add_force(down)

    on = add("on", "updown:on", "swap to a file on a mounted source")
    on.add_argument("file", metavar="FILE")
    _add_activation(on)

    off = add("off", "updown:off", "undo on")
    off.add_argument("file", metavar="FILE")
    _add_force(off)


def _add_activation(command: argparse.ArgumentParser) -> None:
    command.add_argument("--priority", type=_priority, metavar="N", help="0 to 32767, higher is used first (swapon(8))")
    command.add_argument("--name", type=_name, help="what to call it here (default: the file's name)")
    command.add_argument("--steal", action="store_true", help="although another machine's mark is in the file")


def _add_force(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--force", action="store_true", help="also when the server is gone: the pages swapped to it are lost"
    )


def _add_files(add: _Add) -> None:
    mount = add("mount", "files:mount", "mount a source")
    mount.add_argument("source", metavar="SOURCE", help="nfs://HOST/EXPORT/PATH, file:///DIR or mem:SIZE")
    mount.add_argument("directory", metavar="DIR", help="an empty directory")
    mount.add_argument("-o", metavar="OPTIONS", dest="options", action="append", default=[], help="as mount(8)")
    mount.add_argument("-f", "--foreground", action="store_true", help="stay, and log to standard error")

    umount = add("umount", "files:umount", "unmount it (umount(8) does it too)")
    umount.add_argument("directory", metavar="DIR")

    create = add("create", "files:create", "make a swap file: no holes, with its header")
    create.add_argument("file", metavar="FILE|URL")
    create.add_argument("--size", type=_file_size, required=True, help="like 512M, 4G or 4GiB")

    check = add("check", "files:check", "say what swap_activate and swapon would say of a file")
    check.add_argument("file", metavar="FILE|URL")
    check.add_argument("--json", action="store_true", help="print one JSON object")


def _add_reports(add: _Add) -> None:
    status = add("status", "status:status", "show what is active, how fast it is and how it stands")
    status.add_argument("--json", action="store_true", help="print one JSON object")
    status.add_argument("-v", "--verbose", action="store_true", help="with the end of each engine's log")

    contract = add("contract", "contract:contract", "print what swap demands of a file, what it allows, and why")
    form = contract.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--markdown", action="store_true", help="print docs/reference/contract.md")

    trace = add("trace", "trace:trace", "show each page's way to the server and back, stage by stage")
    trace.add_argument("name", metavar="NAME", type=_name, help="what `status` calls it")
    trace.add_argument("--seconds", type=_seconds, metavar="N", help="end after so long (default: at Ctrl-C)")
    trace.add_argument("--json", action="store_true", help="print one JSON object for each request, a line each")

    demo = add("demo", "demo:demo", "really swap to a private NFS server on this machine, with proof")
    demo.add_argument("--size", type=_size, default=600 << 20, help="memory that is pushed out (default: 600M)")
    demo.add_argument("--limit", type=_size, default=128 << 20, help="memory that the process may keep (default: 128M)")
    demo.add_argument("--json", action="store_true", help="print one JSON object")

    bench = add("bench", "bench:bench", "measure the swap device on a private NFS server")
    bench.add_argument("--seconds", type=_seconds, default=3, metavar="N", help="per pattern (default: 3)")
    bench.add_argument("--json", action="store_true", help="print one JSON object")


def _size(text: str) -> int:
    return _checked(parse_size, text)


def _file_size(text: str) -> int:
    return _checked(parse_file_size, text)


def _checked(parse: Callable[[str], int], text: str) -> int:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _priority(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 32767):
        raise argparse.ArgumentTypeError(f"{text!r} is not a priority from 0 to 32767")
    return int(text)


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 3600):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 1 to 3600")
    return int(text)


def _name(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: up to 64 letters, digits and . _ + -")
    return text
