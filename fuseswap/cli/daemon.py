"""The filesystem's process: in the background as `mount` starts it, or in the foreground with -f."""

import json
import logging
import logging.handlers
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from fuseswap.cli.failure import Exit
from fuseswap.cli.main import explain
from fuseswap.engine.libc import set_title
from fuseswap.filesystem.main import run
from fuseswap.filesystem.options import parse_mount_options
from fuseswap.host.mounts import Mount, mount_at
from fuseswap.host.processes import FILESYSTEM, announce_filesystem

_SYSLOG = "/dev/log"
"""journald listens there too."""


def main(arguments: list[str]) -> int:
    """`python -m fuseswap.cli.daemon READY_FD SOURCE MOUNTPOINT OPTIONS`, in the background.

    Writes one JSON object to READY_FD: {} once it serves, or {"error": line, "code": exit code}.
    """
    ready = int(arguments[0])
    source, mountpoint, options = arguments[1:]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _log_to_syslog()
    answered = False

    def answer(report: dict[str, object]) -> None:
        nonlocal answered
        if not answered:
            answered = True
            with os.fdopen(ready, "wb") as pipe:
                pipe.write(json.dumps(report).encode() + b"\n")

    try:
        serve(source, mountpoint, options, lambda: answer({}))
    except Exception as error:
        try:
            text, code = explain(error)
        except Exception:
            logging.getLogger("fuseswap").exception("the filesystem of %s ended", mountpoint)
            text, code = f"{source}: {type(error).__name__}: {error}", Exit.FAILED
        answer({"error": text, "code": code})
        return 1
    return 0


def serve(source: str, mountpoint: str, options: str, ready: Callable[[], None]) -> None:
    """Mount and serve until unmounted; `ready` is called once it serves. SourceError, OSError."""
    parsed = parse_mount_options(options)
    set_title(FILESYSTEM, f"{FILESYSTEM} {mountpoint}")
    own: Mount | None = None

    def serving() -> None:
        nonlocal own
        own = mount_at(mountpoint)
        if own is not None:
            announce_filesystem(own)
        ready()

    def is_on_top() -> bool:
        now = mount_at(mountpoint)
        return own is None or (now is not None and now.device == own.device)

    run(source, mountpoint, parsed, ready=serving, is_on_top=is_on_top)


def _log_to_syslog() -> None:
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    if Path(_SYSLOG).exists():
        handler = logging.handlers.SysLogHandler(_SYSLOG, facility="daemon")
        handler.ident = f"{FILESYSTEM}[{os.getpid()}]: "
        root.addHandler(handler)
    else:
        root.addHandler(logging.NullHandler())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
