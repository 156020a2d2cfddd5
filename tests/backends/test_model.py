"""All backends against each other: the same operations must give the same answers.

Hypothesis makes the sequences; a refusal is an answer too, and its errno must agree.
"""

import contextlib
import errno
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule, run_state_machine_as_test

from fuseswap.backends.memory import MemoryBackend
from fuseswap.backends.protocol import Attributes, Backend, Caller, FileType, Handle, SetAttributes
from fuseswap.backends.source import open_source
from fuseswap.host.ganesha import GaneshaServer
from tests.backends.portal import Portal

ROOT = Caller(0, 0)
USER = Caller(4001, 4002, (4003, 4004))
OTHER = Caller(4005, 4004)

_numbers = itertools.count()
_names = st.sampled_from([b"a", b"b", b"c", b"\xff.", b"n" * 255, b"n" * 256])
_callers = st.sampled_from([ROOT, ROOT, USER, OTHER])
_modes = st.sampled_from([0o755, 0o700, 0o644, 0o600, 0o777, 0o1777, 0o050, 0o006, 0])
_offsets = st.one_of(st.integers(0, 40_000), st.sampled_from([65_535, 65_536, 131_072, 1 << 20]))
_contents = st.one_of(st.binary(max_size=64), st.builds(bytes, st.integers(0, 100_000)))

Pair = dict[str, Handle]
"""One file by its handle on each backend."""


class Agreement(RuleBasedStateMachine):
    """Names and contents; set `server` and `portals` before it runs."""

    portals: dict[str, Portal]
    server: GaneshaServer

    directories = Bundle("directories")
    regular = Bundle("regular")
    special = Bundle("special")
    anything = st.one_of(directories, regular, special)

    @initialize(target=directories)
    def root(self) -> Pair:
        """A fresh directory on each backend: the state machine's own world."""
        name = b"world-%d" % next(_numbers)
        world = {}
        for kind, portal in self.portals.items():
            backend = portal.backend
            world[kind], _ = portal.call(backend.mkdir, backend.root, name, 0o777, ROOT)
            portal.call(backend.setattr, world[kind], SetAttributes(mode=0o777), ROOT)
        return world

    @rule(target=regular, parent=directories, name=_names, mode=_modes, exclusive=st.booleans(), caller=_callers)
    def create(self, parent: Pair, name: bytes, mode: int, exclusive: bool, caller: Caller) -> Any:
        if not exclusive and self.is_special(parent, name):
            return multiple()  # the kernel has looked the name up; nfs-ganesha would follow a symbolic link
        # What exists is opened for writing by some servers, so another's file may be refused.
        return self.new("create", parent, name, mode, exclusive, caller if exclusive else ROOT)

    @rule(target=directories, parent=directories, name=_names, mode=_modes, caller=_callers)
    def mkdir(self, parent: Pair, name: bytes, mode: int, caller: Caller) -> Any:
        return self.new("mkdir", parent, name, mode, caller)

    @rule(target=special, parent=directories, name=_names, caller=_callers)
    def symlink(self, parent: Pair, name: bytes, caller: Caller) -> Any:
        return self.new("symlink", parent, name, b"target", caller)

    @rule(target=special, parent=directories, name=_names, caller=_callers)
    def fifo(self, parent: Pair, name: bytes, caller: Caller) -> Any:
        return self.new("mknod", parent, name, FileType.FIFO, 0o644, (0, 0), caller)

    @rule(parent=directories, name=_names, caller=_callers)
    def lookup(self, parent: Pair, name: bytes, caller: Caller) -> None:
        self.both("lookup", parent, name, caller)

    @rule(file=st.one_of(regular, special), parent=directories, name=_names)
    def link(self, file: Pair, parent: Pair, name: bytes) -> None:
        # Another's file may not be linked to on this machine (protected_hardlinks, proc(5)), by NFS it may.
        self.both("link", file, parent, name, ROOT)

    @rule(parent=directories, name=_names, caller=_callers)
    def unlink(self, parent: Pair, name: bytes, caller: Caller) -> None:
        self.both("unlink", parent, name, caller)

    @rule(parent=directories, name=_names, caller=_callers)
    def rmdir(self, parent: Pair, name: bytes, caller: Caller) -> None:
        self.both("rmdir", parent, name, caller)

    @rule(old=directories, old_name=_names, new=directories, new_name=_names, caller=_callers)
    def rename(self, old: Pair, old_name: bytes, new: Pair, new_name: bytes, caller: Caller) -> None:
        self.both("rename", old, old_name, new, new_name, caller)

    @rule(directory=directories, caller=_callers)
    def list(self, directory: Pair, caller: Caller) -> None:
        self.both("list", directory, caller)

    @rule(file=regular, offset=_offsets, content=_contents, stable=st.booleans())
    def write(self, file: Pair, offset: int, content: bytes, stable: bool) -> None:
        if content:
            self.both("write", file, offset, content, stable, ROOT)

    @rule(file=regular, offset=_offsets, length=st.integers(1, 200_000))
    def read(self, file: Pair, offset: int, length: int) -> None:
        self.both("read", file, offset, length, ROOT)

    @rule(file=regular, size=_offsets, caller=_callers)
    def truncate(self, file: Pair, size: int, caller: Caller) -> None:
        self.both("setattr", file, SetAttributes(size=size), caller)

    @rule(file=st.one_of(directories, regular), mode=_modes, caller=_callers)
    def chmod(self, file: Pair, mode: int, caller: Caller) -> None:
        self.both("setattr", file, SetAttributes(mode=mode), caller)

    @rule(file=anything, owner=st.sampled_from([USER, OTHER]), caller=_callers)
    def chown(self, file: Pair, owner: Caller, caller: Caller) -> None:
        self.both("setattr", file, SetAttributes(uid=owner.uid, gid=owner.gid), caller)

    @rule(file=anything, caller=_callers, mask=st.integers(1, 7))
    def access(self, file: Pair, caller: Caller, mask: int) -> None:
        self.both("access", file, mask, caller)

    @rule(file=anything)
    def getattr(self, file: Pair) -> None:
        self.both("getattr", file, ROOT)

    @rule(file=special)
    def readlink(self, file: Pair) -> None:
        self.both("readlink", file, ROOT)

    def is_special(self, parent: Pair, name: bytes) -> bool:
        backend = self.portals["memory"]
        try:
            _, found = backend.call(backend.backend.lookup, parent["memory"], name, ROOT)
        except OSError:
            return False
        return found.type is not FileType.REGULAR

    def new(self, operation: str, *arguments: Any) -> Any:
        """The new file, for its bundle; nothing if it was refused or is of another type than asked for."""
        answers = self.both(operation, *arguments)
        if any(isinstance(answer, int) for answer in answers.values()):
            return multiple()
        return {kind: answer[0] for kind, answer in answers.items()}

    def both(self, operation: str, *arguments: Any) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        for kind, portal in self.portals.items():
            own = [argument[kind] if isinstance(argument, dict) else argument for argument in arguments]
            function = _list if operation == "list" else None
            try:
                if function is not None:
                    answers[kind] = portal.call(function, portal.backend, *own)
                else:
                    answers[kind] = portal.call(getattr(portal.backend, operation), *own)
            except OSError as error:
                answers[kind] = error.errno or 0
        comparable = {kind: _comparable(operation, answer) for kind, answer in answers.items()}
        assert len(set(map(repr, comparable.values()))) == 1, f"{operation}{arguments}: {comparable}"
        return answers


async def _list(backend: Backend, handle: Handle, caller: Caller) -> list[bytes]:
    names: list[bytes] = []
    cookie, verifier = 0, b""
    while True:
        part = await backend.readdir(handle, cookie, verifier, caller)
        names += [entry.name for entry in part.entries]
        if part.end:
            return sorted(names)
        cookie, verifier = part.entries[-1].cookie, part.verifier


_TAKEN = (errno.EEXIST, errno.EISDIR, errno.EINVAL)
"""CREATE where something else than a file is: RFC 1813 3.3.8 names no status for it."""


def _comparable(operation: str, answer: Any) -> Any:
    if operation == "create" and answer in _TAKEN:
        return "taken"
    if operation in ("rename", "rmdir", "unlink", "link") and isinstance(answer, int):
        return "refused"  # several reasons may apply at once, and which is told first is the server's choice
    if isinstance(answer, int) and not isinstance(answer, bool):
        return errno.errorcode.get(answer, answer)
    if operation in ("write", "commit"):
        return "done"
    if isinstance(answer, tuple):
        return _comparable(operation, answer[1])
    if isinstance(answer, Attributes):
        size = None if answer.type is FileType.DIRECTORY else answer.size
        return (answer.type, answer.mode, answer.nlink, answer.uid, answer.gid, size)
    return answer


@contextlib.asynccontextmanager
async def _memory() -> AsyncIterator[Backend]:
    yield MemoryBackend(64 << 20)


def _drive(machine: type[RuleBasedStateMachine], *, examples: int, steps: int) -> None:
    settings = hypothesis.settings(max_examples=examples, stateful_step_count=steps, phases=[hypothesis.Phase.generate])
    run_state_machine_as_test(machine, settings=settings)


def test_backends_agree(nfs_server: GaneshaServer, disk_dir: Path) -> None:
    name = f"agreement-{os.getpid()}"
    (nfs_server.export_dir / name).mkdir()
    with (
        Portal(_memory()) as memory,
        Portal(open_source(f"file://{disk_dir}")) as local,
        Portal(open_source(nfs_server.url(name))) as nfs,
    ):
        portals = {"memory": memory, "local": local, "nfs": nfs}
        _drive(type("Agreeing", (Agreement,), {"portals": portals}), examples=40, steps=40)
