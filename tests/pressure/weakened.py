"""An engine without some of its safeguards, and what that costs."""

import json
import mmap
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fuseswap.engine import hardening
from fuseswap.engine.supervisor import make_counters
from fuseswap.host import rundir
from fuseswap.host.bounded import abandon
from fuseswap.swap.counters import Counters
from fuseswap.swap.target import Activation, NfsTarget, activation_to_json
from fuseswap.swap.units import RUN_DIRECTORY
from tests.engine.running import Running
from tests.kit import rescue

START_SECONDS = 30


@contextmanager
def engine_without(
    safeguards: Sequence[str], target: NfsTarget, size_bytes: int, *, within: Sequence[str] = ()
) -> Iterator[Running]:
    """The engine alone (its supervisor would start it as it should be), with its loop device.

    `within` is a command to run it below. At the end nothing of it is left, whatever it waits for.
    """
    name = f"without-{secrets.token_hex(4)}"
    directory = Path(RUN_DIRECTORY, name)
    activation = json.loads(activation_to_json(Activation("test", size_bytes, target)))
    counters = make_counters(directory, {"name": name, "activation": activation})
    counters = Counters(_mapped(directory / "counters"))
    malloc = {} if "malloc" in safeguards else hardening.ENVIRONMENT
    reader, writer = os.pipe2(os.O_CLOEXEC)
    process = subprocess.Popen(
        [
            *(*within, sys.executable, "-m", "tests.pressure.without", ",".join(safeguards)),
            *(str(directory), "0", str(writer)),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=(writer,),
        env={**os.environ, **malloc},
        start_new_session=True,
    )
    os.close(writer)
    try:
        with os.fdopen(reader) as pipe:
            answer = pipe.readline()
        assert answer == "ready\n", answer
        here = Running(name, directory / "swap" / name, directory, counters)
        here.attach()
        yield here
    except BaseException as error:
        if process.poll() is not None and process.stderr is not None:
            error.add_note(f"the engine ended with {process.returncode}: {process.stderr.read()}")
        raise
    finally:
        rescue.Leftovers.of(directory).free()
        abandon(process)
        rundir.remove_counters(name)
        (directory / "swap").rmdir()
        directory.rmdir()


def _mapped(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)
