"""Active swap files: swap_activate, swap_deactivate, and what is answered from memory in between.

The state of a file is kept by its handle, so all its names share it. While a file is not ordinary, its
attributes are a copy in memory with the size pinned: nothing that a user asks of it waits for the server, and
no answer can shrink what the engine and the loop device believe (a GETATTR that does breaks swap-in).
"""

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Final
from urllib.parse import quote, urlsplit, urlunsplit

import trio
from attrs import define, evolve

from fuseswap.backends.protocol import Attributes, Backend, Caller, Handle, SetAttributes
from fuseswap.filesystem import adoption
from fuseswap.filesystem.facts import gather_facts
from fuseswap.swap.activation import CHECK_ACTIVE, swap_activate
from fuseswap.swap.errors import ContractError
from fuseswap.swap.header import MARK_BYTES, MARK_OFFSET, NO_UUID, Mark, clear_mark, put_mark, read_mark
from fuseswap.swap.lifecycle import Event, next_state
from fuseswap.swap.report import check_report
from fuseswap.swap.rules import FileState, Operation, verdict
from fuseswap.swap.target import Activation, ActivationRequest, NfsTarget
from fuseswap.swap.units import PAGE_SIZE

log = logging.getLogger(__name__)

CLEAR_SECONDS: Final = 2.0
"""A server that is gone must not keep a file active: its mark then stays, and is this machine's own."""

RIVAL_SECONDS: Final = 0.5
"""Longer than a machine takes from reading a free header to its own mark on the server's disk, so that of two
machines at once the earlier sees the later's mark. No lock says so: a server or machine that stands still for
longer in between is not waited for."""

ROOT: Final = Caller(0, 0)


@define(eq=False)
class _Guarded:
    state: FileState
    activation: Activation | None = None
    attributes: Attributes | None = None
    is_adopted: bool = False
    """Activated on another mount, or by a process before this one."""


class ActiveFiles:
    """All files of the mount that are swap, or on their way to or from it."""

    def __init__(self, backend: Backend, source: str) -> None:
        self._backend = backend
        self._source = source
        self._files: dict[Handle, _Guarded] = {}
        self._watch = adoption.Watch()
        self._present: object = None
        """Which counters there were when all engines were looked at."""

    def __bool__(self) -> bool:
        self.follow()
        return bool(self._files)

    def handles(self) -> Iterable[Handle]:
        """Of all files that are not ordinary."""
        return self._files.keys()

    def knows(self, handle: Handle) -> bool:
        """Whether the file is not ordinary, as far as is known without a look at the engines."""
        return handle in self._files

    def state_of(self, handle: Handle) -> FileState:
        """Where the file is in its life as swap."""
        self.follow()
        guarded = self._files.get(handle)
        return FileState.ORDINARY if guarded is None else guarded.state

    def check(self, operation: Operation, handle: Handle) -> None:
        """OSError with the errno of the table of operations, if it refuses."""
        outcome = verdict(operation, self.state_of(handle))
        if outcome > 0:
            raise OSError(outcome, os.strerror(outcome))

    def activation_of(self, handle: Handle) -> Activation | None:
        """The activation of an active file."""
        self.follow()
        guarded = self._files.get(handle)
        return None if guarded is None else guarded.activation

    def attributes_of(self, handle: Handle) -> Attributes | None:
        """The pinned attributes, if the file has any."""
        guarded = self._files.get(handle)
        return None if guarded is None else guarded.attributes

    def pin(self, handle: Handle, attributes: Attributes) -> Attributes:
        """What to tell of a file whose backend says `attributes`: these, or those that are pinned."""
        guarded = self._files.get(handle)
        if guarded is None or guarded.activation is None:
            return attributes
        if guarded.attributes is None:
            guarded.attributes = evolve(attributes, size=guarded.activation.size_bytes)
        return evolve(guarded.attributes, nlink=attributes.nlink)

    def change(self, handle: Handle, changes: SetAttributes) -> Attributes | None:
        """chmod, chown and utimes on pinned attributes; None if the file has none."""
        guarded = self._files.get(handle)
        if guarded is None or guarded.attributes is None:
            return None
        names = ("mode", "uid", "gid", "atime_ns", "mtime_ns")
        given = {name: value for name in names if (value := getattr(changes, name)) is not None}
        guarded.attributes = evolve(guarded.attributes, **given)
        return guarded.attributes

    async def report(self, handle: Handle) -> str:
        """What swap_activate and swapon would say, as JSON. Errors as the backend's."""
        active = self.state_of(handle) is not FileState.ORDINARY or _is_served(handle)
        return check_report(await gather_facts(self._backend, handle, ROOT, active=active)).to_json()

    async def activate(
        self,
        handle: Handle,
        request: ActivationRequest,
        path: bytes | None,
        drained: Callable[[], Awaitable[None]],
    ) -> None:
        """swap_activate. OSError with the errno of the refusal.

        `path` is the file's below the mount point; `drained` returns when every ordinary write is on stable storage.
        """
        if _is_served(handle):
            raise OSError(CHECK_ACTIVE.errno, CHECK_ACTIVE.text)
        known = self._files.get(handle)
        # By an engine that is dead, or never began.
        is_left = known is not None and known.is_adopted and known.state is FileState.ACTIVE
        state = self._next(FileState.ORDINARY if known is None or is_left else known.state, Event.ACTIVATE)
        guarded = self._files[handle] = _Guarded(state)
        try:
            # From here on no new write begins (the table refuses it); those under way land first.
            await drained()
            await self._grant(handle, guarded, request, path)
        except BaseException:
            del self._files[handle]
            raise
        guarded.state = self._next(guarded.state, Event.GRANT)

    async def deactivate(self, handle: Handle) -> None:
        """swap_deactivate: the mark goes if the server lets it within CLEAR_SECONDS, the state in any case."""
        state = self._next(self.state_of(handle), Event.DEACTIVATE)
        if _is_served(handle):
            raise OSError(errno.EBUSY, "an engine swaps to the file")
        guarded = self._files[handle]
        guarded.state = state
        with trio.move_on_after(CLEAR_SECONDS) as limit:
            try:
                await self._clear_mark(handle, guarded)
            except OSError as error:
                log.warning("the mark in the header page stays: %s", error.strerror)
        if limit.cancelled_caught:
            log.warning("the mark in the header page stays: the server does not answer")
        self._next(guarded.state, Event.CLEAR)
        del self._files[handle]

    def follow(self) -> None:
        """Adopt what engines have come to serve elsewhere, and let go of what has no engine's counters any more.

        Asked at each operation that could be refused: a write between the beginning of an engine and the next look
        would be one to a page of swap.
        """
        present = self._watch.present()
        if present == self._present:
            return
        # Of two that name one file, the living counts. A server has addresses that we do not know of: the same handle
        # on two servers costs no more than that a file which is not active is refused as if it were.
        found = {
            engine.activation.target.file_handle: engine
            for engine in sorted(adoption.engines(), key=lambda engine: engine.is_alive)
            if isinstance(engine.activation.target, NfsTarget)
        }
        for handle, guarded in list(self._files.items()):
            if guarded.is_adopted and guarded.state is FileState.ACTIVE and handle not in found:
                del self._files[handle]
        for handle, engine in found.items():
            known = self._files.get(handle)
            if known is None and (engine.is_alive or not engine.has_begun):
                log.info("%s is active", engine.activation.source)
                state = self._next(FileState.ORDINARY, Event.ADOPT)
                self._files[handle] = _Guarded(state, engine.activation, is_adopted=True)
            elif known is not None and known.is_adopted:
                known.activation = engine.activation
        # One that has not begun is looked at again.
        self._present = present if all(engine.has_begun for engine in found.values()) else None

    def is_adopted(self, handle: Handle) -> bool:
        """Whether the file became swap without this mount's doing, which could not finish its writes first."""
        self.follow()
        guarded = self._files.get(handle)
        return guarded is not None and guarded.is_adopted

    async def _grant(self, handle: Handle, guarded: _Guarded, request: ActivationRequest, path: bytes | None) -> None:
        facts = await gather_facts(self._backend, handle, ROOT, active=False)
        mark = Mark(request.machine_id, request.boot_id, os.uname().nodename[:64])
        try:
            found = swap_activate(facts, request)
            assert facts.header_page is not None
            page = put_mark(facts.header_page, mark)
        except ContractError as refusal:
            raise OSError(refusal.errno, refusal.text) from None
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from None
        if found.stolen_from is not None:
            log.warning("took the swap file over from machine %s", found.stolen_from.machine_id)
        target = self._backend.swap_target(handle)
        attributes = await self._backend.getattr(handle, ROOT)
        identity = "" if found.header.uuid == NO_UUID else f"{found.header.uuid} {attributes.fileid}"
        if identity and any(activation.identity == identity for activation in adoption.served()):
            raise OSError(CHECK_ACTIVE.errno, CHECK_ACTIVE.text)
        area = page[MARK_OFFSET : MARK_OFFSET + MARK_BYTES]
        await self._backend.write(handle, MARK_OFFSET, area, True, ROOT)
        if read_mark(facts.header_page) != mark:
            # Another machine may have read a free header before our mark was there; the later of two marks stands.
            await trio.sleep(RIVAL_SECONDS)
        if read_mark(await self._backend.read(handle, 0, PAGE_SIZE, ROOT)) != mark:
            raise OSError(errno.EBUSY, "another machine activates the same file")
        guarded.attributes = evolve(attributes, size=facts.size_bytes)
        guarded.activation = Activation(
            source=_below(self._source, path),
            size_bytes=facts.size_bytes,
            target=target,
            identity=identity,
            machine_id=mark.machine_id,
            boot_id=mark.boot_id,
        )

    async def _clear_mark(self, handle: Handle, guarded: _Guarded) -> None:
        page = await self._backend.read(handle, 0, PAGE_SIZE, ROOT)
        mark, mine = read_mark(page), guarded.activation
        if mark is None or mine is None or (mark.machine_id, mark.boot_id) != (mine.machine_id, mine.boot_id):
            return  # another machine has taken the file over
        area = clear_mark(page)[MARK_OFFSET : MARK_OFFSET + MARK_BYTES]
        await self._backend.write(handle, MARK_OFFSET, area, True, ROOT)

    def _next(self, state: FileState, event: Event) -> FileState:
        try:
            return next_state(state, event)
        except ContractError as refusal:
            raise OSError(refusal.errno, refusal.text) from None


def _is_served(handle: Handle) -> bool:
    """Whether an engine serves the file."""
    targets = [activation.target for activation in adoption.served()]
    return any(isinstance(target, NfsTarget) and target.file_handle == handle for target in targets)


def _below(source: str, path: bytes | None) -> str:
    """The URL of a file below `source`."""
    if path is None:
        return source
    parts = urlsplit(source)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(path)}"))
