"""The filesystem's process: mounts, serves, and leaves when the mount does."""

import contextlib
import ctypes
import errno
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from fuseswap.backends.groups import first_error
from fuseswap.backends.source import open_source
from fuseswap.filesystem import handshake, readahead
from fuseswap.filesystem.active import ROOT, ActiveFiles
from fuseswap.filesystem.operations import Operations
from fuseswap.filesystem.options import MountOptions

log = logging.getLogger(__name__)

REQUESTS_MAX: Final = 1000
"""Served at once. Requests that wait for a lost server hold one each, and those that are answered from memory
must get through beside them."""

READ_SECONDS: Final = 1.0
"""How long a read of /dev/fuse may block (see `_interrupted_reads`)."""

GRACE_SECONDS: Final = 3.0
"""After a signal: for requests under way, and for what is written to reach stable storage."""

_HEAP_FREE_BYTES_MAX: Final = 64 << 20
_MMAP_THRESHOLD_BYTES: Final = 32 << 20
"""The largest that malloc takes."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def run(
    source: str,
    mountpoint: str,
    options: MountOptions,
    *,
    ready: Callable[[], None],
    is_on_top: Callable[[], bool],
) -> None:
    """Mount `source` on `mountpoint` and serve until it is unmounted or a signal comes.

    `ready` is called once the mount answers. `is_on_top` is asked at the end: unmounting goes by the path, where
    something else may lie by then; if so the mount stays, without a process. Errors before `ready`: SourceError, or
    OSError with one line of text.
    """
    _check_mountpoint(mountpoint)
    _keep_freed_memory()
    with first_error():
        trio.run(_serve, source, mountpoint, options, ready, is_on_top)


async def _serve(
    source: str, mountpoint: str, options: MountOptions, ready: Callable[[], None], is_on_top: Callable[[], bool]
) -> None:
    async with open_source(source, options.soft_seconds) as backend, trio.open_nursery() as nursery:
        active = ActiveFiles(backend, source)
        active.follow()
        root = await backend.getattr(backend.root, ROOT)
        statistics = await backend.statistics(backend.root, ROOT)
        operations = Operations(backend, root, statistics, active, nursery, options)
        try:
            pyfuse3.init(operations, mountpoint, options.kernel_options(source))
        except RuntimeError:
            raise OSError(errno.EIO, f"{mountpoint}: mount(2) failed") from None
        try:
            await handshake.negotiate(auto_invalidation=not options.watches_open_files)
            with trio.CancelScope() as serving, _interrupted_reads():
                await nursery.start(_leave_at_signal, serving)
                nursery.start_soon(operations.waiting.watch)
                nursery.start_soon(readahead.widen, mountpoint)
                if options.watches_open_files:
                    nursery.start_soon(operations.watch_open_files)
                ready()
                await pyfuse3.main(max_tasks=REQUESTS_MAX)
            # Of processes that closed nothing.
            with trio.move_on_after(GRACE_SECONDS):
                await operations.gathering.drain_all()
        finally:
            pyfuse3.close(unmount=is_on_top())
            nursery.cancel_scope.cancel()


@contextlib.contextmanager
def _interrupted_reads() -> Iterator[None]:
    """A signal now and then ends a read of /dev/fuse that blocks.

    pyfuse3 reads when the descriptor is readable, in blocking mode and holding the interpreter. A request whose
    user is killed just then is gone, and the read would wait for another one with everything else standing.
    """
    before = signal.signal(signal.SIGALRM, lambda _number, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, READ_SECONDS, READ_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


async def _leave_at_signal(serving: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("%s: leaving", signal.Signals(number).name)
            pyfuse3.terminate()
            serving.deadline = trio.current_time() + GRACE_SECONDS


def _keep_freed_memory() -> None:
    """mallopt(3): buffers of a MiB are reused instead of going back to the kernel, which would have to clear them
    again, page by page; that is a quarter of the time of a large READ. Up to _HEAP_FREE_BYTES_MAX stay."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
    libc.mallopt(_M_TRIM_THRESHOLD, _HEAP_FREE_BYTES_MAX)


def _check_mountpoint(mountpoint: str) -> None:
    if not Path("/dev/fuse").exists():
        raise OSError(errno.ENODEV, "this machine has no /dev/fuse: modprobe fuse")
    try:
        os.close(os.open(mountpoint, os.O_PATH | os.O_DIRECTORY))
    except OSError as error:
        raise OSError(error.errno, f"{mountpoint}: {error.strerror}") from None
