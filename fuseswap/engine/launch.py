"""How the command starts an engine: supervisor, engine and private mount appear together or not at all."""

import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Final

from fuseswap.engine import hardening
from fuseswap.swap.target import Activation, activation_to_json
from fuseswap.swap.units import RUN_DIRECTORY

LAUNCH_SECONDS: Final = 40


class EngineError(Exception):
    """An engine could not be started; the text is one line."""


def launch(name: str, activation: Activation, *, reserve_bytes: int | None = None) -> Path:
    """Start `fuseswap-supervisor NAME`, which starts `fuseswap-engine NAME`; the private file once it is served.

    The engine mounts RUN_DIRECTORY/NAME/swap (mode 0700) with one file called NAME, and has read and stably
    written the header page before this returns. `reserve_bytes` None sizes the reserve by this machine's RAM.
    EngineError with nothing left behind, if the server or this machine refuses.
    """
    directory = Path(RUN_DIRECTORY) / name
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with os.fdopen(reader, "rb") as pipe:
        supervisor = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "fuseswap.engine.supervisor"),
                *(str(directory), str(reserve_bytes or 0), str(writer)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(writer,),
            cwd="/",
            env={**os.environ, **hardening.ENVIRONMENT},
            start_new_session=True,
        )
        os.close(writer)
        supervisor.communicate(activation_to_json(activation).encode())
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        if not poll.poll(LAUNCH_SECONDS * 1000):
            raise EngineError(f"the engine of {name} does not serve after {LAUNCH_SECONDS} s")
        answer = pipe.readline().decode(errors="replace").strip()
    if answer != "ready":
        raise EngineError(answer or f"the supervisor of {name} ended without a word")
    return directory / "swap" / name
