"""System calls as another user: a process for each, to which calls are handed over.

`with User(1000, 1000) as user: user(os.mkdir, path)` returns or raises what the call does there.
"""

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class User:
    """A process with these ids and the umask 022."""

    def __init__(self, uid: int, gid: int, *groups: int) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups

    def __enter__(self) -> Self:
        ids = [str(id) for id in (self.uid, self.gid, *self.groups)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.filesystem.users", *ids],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=10)

    def __call__(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What `call`, a function of a module, returns there; the OSError that it raises there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((call, arguments, options), self._process.stdin)
        self._process.stdin.flush()
        answer, error = pickle.load(self._process.stdout)
        if error is not None:
            raise error
        return answer

    def errno(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> int:
        """The errno that `call` ends with; 0 if it succeeds."""
        try:
            self(call, *arguments, **options)
        except OSError as error:
            return error.errno or -1
        return 0


def _serve(uid: int, gid: int, *groups: int) -> None:
    # What is called must be known before the ids change: then this repository may be out of reach.
    importlib.import_module("tests.filesystem.calls")
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    os.umask(0o022)
    answers = sys.stdout.buffer
    while True:
        try:
            call, arguments, options = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: tuple[Any, Exception | None] = (call(*arguments, **options), None)
        except Exception as error:
            answer = (None, error)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve(*map(int, sys.argv[1:]))
