"""What a process can do so that the path of a page needs no memory, each step read back.

`ENVIRONMENT` must be set before the interpreter starts: one malloc arena on the heap, never trimmed and never
mmapped, and Python's objects in it, so that once `touch_heap` has grown it, allocating makes no system call.
After `harden` the process is locked, its heap is larger than it will need, and the collector is off.
"""

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from attrs import frozen

from fuseswap.engine import libc

ENVIRONMENT: Final = {
    "PYTHONMALLOC": "malloc",
    "PYTHONDONTWRITEBYTECODE": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "MALLOC_TOP_PAD_": str(1 << 20),
    "LC_ALL": "C.UTF-8",
}

STACK_BYTES: Final = 256 << 10
NICE: Final = -10
REALTIME: Final = os.sched_param(1)
ORDINARY: Final = os.sched_param(0)


@frozen
class Hardening:
    """What was allowed."""

    memory_locked: bool
    io_flusher: bool
    oom_protected: bool
    realtime: bool


def harden(heap_bytes: int, *, realtime: bool) -> Hardening:
    """Lock memory, grow the heap by `heap_bytes`, freeze the collector, and ask for what needs privilege.

    `realtime` asks for nice -10 and for leave to `enter_realtime`.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    locked = _try(lambda: libc.lock_memory(libc.MCL_CURRENT | libc.MCL_FUTURE))
    touch_heap(heap_bytes)
    touch_stack(STACK_BYTES)
    return Hardening(
        memory_locked=locked,
        io_flusher=libc.set_io_flusher(),
        oom_protected=protect_from_oom(),
        realtime=realtime and _try(be_urgent),
    )


def touch_heap(size_bytes: int) -> None:
    """Grow the heap by `size_bytes` of touched memory, which stays because it is never trimmed."""
    pieces = [bytearray(64 << 10) for _ in range(size_bytes >> 16)]
    del pieces


def touch_stack(size_bytes: int) -> None:
    """Use `size_bytes` of the stack once, so that a deep call later does not fault."""

    # A ctypes structure passed by value is copied onto the C stack.
    class Block(ctypes.Structure):
        _fields_ = (("data", ctypes.c_char * size_bytes),)

    callback = ctypes.CFUNCTYPE(None)(lambda: None)
    function = ctypes.cast(callback, ctypes.CFUNCTYPE(None, Block))
    function(Block())


def protect_from_oom() -> bool:
    """oom_score_adj -1000, read back; lowering it needs CAP_SYS_RESOURCE."""
    path = Path("/proc/self/oom_score_adj")
    _try(lambda: path.write_text("-1000"))
    return int(path.read_text()) == -1000


def be_urgent() -> None:
    """nice -10, and a trial of `enter_realtime`; OSError EPERM or EACCES without CAP_SYS_NICE."""
    os.setpriority(os.PRIO_PROCESS, 0, NICE)
    enter_realtime()
    leave_realtime()


def enter_realtime() -> None:
    """SCHED_FIFO until `leave_realtime`; OSError EPERM without CAP_SYS_NICE.

    The page allocator lets a real-time task use part of the reserve below the min watermark (gfp_to_alloc_flags,
    ALLOC_MIN_RESERVE), the nearest thing to PF_MEMALLOC for a process. Only while it allocates: a real-time engine
    runs at once for each single request and reply, and there is nothing left to send or receive together.
    """
    os.sched_setscheduler(0, os.SCHED_FIFO, REALTIME)


def leave_realtime() -> None:
    """Be scheduled fairly again, with the same nice value."""
    os.sched_setscheduler(0, os.SCHED_OTHER, ORDINARY)


def _try(step: Callable[[], object]) -> bool:
    try:
        step()
    except OSError:
        return False
    return True
