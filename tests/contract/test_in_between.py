"""The table's other two columns: what is done to a file while it is on its way to being swap, and back.

The server never sees the WRITE of the mark, so activation (or deactivation) stands still in the middle. It was
asked for by setxattr(2), which holds the inode's lock: like the kernel's own swapon it makes writers and their like
wait, and they get what the next state says. All others get at once what the table says of the state in between.
"""

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest
from attrs import define

from fuseswap.host.ganesha import GaneshaServer
from fuseswap.swap.rules import RULES, FileState, Operation, outcome_name
from tests.contract.mounting import activate, deactivate, fuseswap_world, mounted
from tests.contract.operations import outcome_of
from tests.kit.proxy import WRITE, Cut, Proxy, Record, Send, forward
from tests.kit.wait import wait_until

NOT_ASKED: Final = {
    Operation.UNMOUNT: "the call that activates is on the mount, so it is busy",
    Operation.REMOUNT_READ_ONLY: "the same",
    **dict.fromkeys(
        (
            Operation.MMAP_SHARED_READ,
            Operation.MMAP_PRIVATE,
            Operation.LOAD_OLD_SHARED_MAPPING,
            Operation.STORE_OLD_PRIVATE_MAPPING,
        ),
        "a page fault holds the interpreter's lock, which the proxy needs to bring the page",
    ),
    Operation.STORE_OLD_SHARED_MAPPING: "another process makes it, and what that waits for is not seen",
}
"""Operations that are not tried here, and why."""
WAIT_AT_LEAST: Final = {Operation.WRITE, Operation.TRUNCATE_SMALLER, Operation.CHMOD, Operation.UNLINK}


@define
class InBetween:
    """Brings a file between two states, and out of there when somebody waits for that."""

    proxy: Proxy
    threads: ThreadPoolExecutor
    under_way: "Future[None] | None" = None
    waiters: int = 0

    @contextmanager
    def begun(self, action: Callable[[Path], None], path: Path) -> Iterator[None]:
        """`action` on a file has begun, and ends with the context at the latest."""
        arrived = threading.Event()

        def lose(record: Record, _: random.Random) -> Iterable[Send | Cut]:
            if record.procedure != WRITE or arrived.is_set():
                return [Send(record.framed())]
            arrived.set()
            return []

        self.proxy.on_call = lose
        self.under_way = self.threads.submit(action, path)
        try:
            assert arrived.wait(20)
            yield
        finally:
            self.end()

    def end(self) -> None:
        """What was sent and not answered is sent again."""
        self.proxy.on_call = forward
        if self.under_way is not None:
            self.proxy.cut()
            self.under_way.result(20)
            self.under_way = None

    def make(self, attempt: Callable[[], None]) -> None:
        """An attempt that waits for the inode's lock is let on, and counted."""
        identity: list[int] = []

        def run() -> None:
            identity.append(threading.get_native_id())
            attempt()

        trying = self.threads.submit(run)

        def has_ended_or_waits() -> bool:
            return trying.done() or bool(identity and waits_for_lock(identity[0]))

        wait_until(has_ended_or_waits, seconds=20, what="the end of an attempt")
        if not trying.done():
            self.waiters += 1
            self.end()
        trying.result(20)


def waits_for_lock(thread: int) -> bool:
    """Whether it sleeps, and not for the filesystem's answer. (wchan names who called the lock.)"""
    task = Path(f"/proc/self/task/{thread}")
    with suppress(OSError):
        state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        return state == "D" and (task / "wchan").read_text() not in ("0", "request_wait_answer")
    return False


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("state", "next_state"),
    [(FileState.ACTIVATING, FileState.ACTIVE), (FileState.DEACTIVATING, FileState.ORDINARY)],
    ids=["activating", "deactivating"],
)
def test_the_mount_obeys_the_table(
    nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path, state: FileState, next_state: FileState
) -> None:
    source = nfs_server.url(nfs_dir.name)
    with Proxy(nfs_server.nfs_port) as proxy, ThreadPoolExecutor() as threads:
        source = source.replace(f"nfsport={nfs_server.nfs_port}", f"nfsport={proxy.port}")
        with mounted(source, mount_point):
            here = InBetween(proxy, threads)

            @contextmanager
            def activating(path: Path) -> Iterator[None]:
                try:
                    with here.begun(activate, path):
                        yield
                finally:
                    with suppress(OSError):
                        deactivate(path)

            @contextmanager
            def deactivating(path: Path) -> Iterator[None]:
                activate(path)
                with here.begun(deactivate, path):
                    yield

            world = fuseswap_world(source, mount_point)
            bring = activating if state is FileState.ACTIVATING else deactivating
            found = {}
            for operation in Operation:
                if operation not in NOT_ASKED:
                    before = here.waiters
                    outcome = outcome_of(world, operation, bring, here.make)
                    found[operation] = (here.waiters > before, outcome)

    wrong = {
        operation.name: (waited, outcome_name(outcome))
        for operation, (waited, outcome) in found.items()
        if outcome != RULES[operation].outcome(next_state if waited else state)
    }
    assert not wrong
    assert {operation for operation, (waited, _) in found.items() if waited} >= WAIT_AT_LEAST
