"""The commands for files and mounts: `mount`, `umount`, `create`, `check`."""

import json
import logging
from pathlib import Path
from typing import Any

from fuseswap.cli import check as checking
from fuseswap.cli import mount as mounting
from fuseswap.cli import preflight, recursion
from fuseswap.cli.failure import Exit, Failure
from fuseswap.cli.interrupts import Interrupts
from fuseswap.cli.ordinary import this_machine
from fuseswap.cli.output import say
from fuseswap.cli.size import format_size
from fuseswap.cli.source import is_url, join_url, same_file, split_file_url
from fuseswap.host import xattr
from fuseswap.host.bounded import Hung
from fuseswap.host.machine import require_root
from fuseswap.host.mounts import Mount, absolute, is_ours, mount_at

_LOOK_SECONDS = 10.0


def mount(arguments: Any, interrupts: Interrupts) -> Exit:
    """`fuseswap mount SOURCE DIR [-o OPTIONS] [-f]`."""
    preflight.require_mounting()
    options = ",".join(arguments.options)
    present = mount_at(absolute(arguments.directory))
    if present is not None and is_ours(present) and same_file(present.source, arguments.source):
        if _is_served(present):
            say(f"{arguments.source} is already mounted on {arguments.directory}")
            return Exit.DONE
        say(f"the filesystem process of {arguments.directory} has died: mounting again")
        mounting.stop(present)
    point = mounting.require_mountpoint(arguments.directory)
    if not arguments.foreground:
        mounting.start(arguments.source, point, options)
        return Exit.DONE
    from fuseswap.cli.daemon import serve

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    interrupts.leave()
    serve(arguments.source, point, options, lambda: say(f"{arguments.source} is mounted on {point}"))
    return Exit.DONE


def _is_served(mounted: Mount) -> bool:
    try:
        return xattr.is_served(mounted, seconds=_LOOK_SECONDS)
    except Hung:
        # Its server is away, and it waits, as it should.
        return True


def umount(arguments: Any, _interrupts: Interrupts) -> Exit:
    """`fuseswap umount DIR`."""
    require_root()
    if not mounting.unmount_directory(arguments.directory):
        say(f"{arguments.directory} is not mounted")
    return Exit.DONE


def create(arguments: Any, _interrupts: Interrupts) -> Exit:
    """`fuseswap create FILE|URL --size SIZE`."""
    file, size = arguments.file, arguments.size
    if _create(file, size):
        say(f"{file}: {format_size(size)}, swap header written")
    else:
        say(f"{file} is there already, a swap file of {format_size(size)}")
    return Exit.DONE


def _create(file: str, size_bytes: int) -> bool:
    from fuseswap.cli.create import create as create_in_source
    from fuseswap.cli.create import create_local

    if is_url(file):
        directory, name = split_file_url(file)
        recursion.require_none(file)
        return create_in_source(directory, name, size_bytes, file)
    try:
        located = xattr.locate(file, seconds=_LOOK_SECONDS)
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}") from None
    if located is not None:
        # Straight to its server: a big file need not pass through the mount.
        url = join_url(located.mount.source, located.below)
        recursion.require_none(url)
        return create_in_source(*split_file_url(url), size_bytes, file)
    path = Path(absolute(file))
    if not path.name:
        raise Failure(f"{file} names no file", Exit.USAGE)
    recursion.require_none(str(path))
    return create_local(str(path.parent), path.name, size_bytes, file)


def check(arguments: Any, _interrupts: Interrupts) -> Exit:
    """`fuseswap check FILE|URL [--json]`."""
    request = this_machine()
    if is_url(arguments.file):
        report = checking.check_url(arguments.file, request)
    else:
        report = checking.check_path(arguments.file, request)
    if arguments.json:
        say(json.dumps(report, indent=2))
    else:
        for line in checking.describe(report):
            say(line)
    refusal = checking.refusal(arguments.file, report)
    if refusal is not None:
        raise refusal
    if not arguments.json:
        activation, facts = report["activation"], report["facts"]
        say(f"{arguments.file}: ok: {format_size(facts['size_bytes'])}, {activation['pages']} pages of swap")
        if not activation["fs_ops"]:
            say(f"The kernel swaps to it without fuseswap: swapon {arguments.file}")
    return Exit.DONE
