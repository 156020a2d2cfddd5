"""How far the kernel reads ahead of whoever reads a file from front to back."""

import contextlib
import os
from pathlib import Path
from typing import Final

import trio

READ_AHEAD_KIB: Final = 4096
"""Four READs of the largest size on their way at once; FUSE begins with 128 KiB, which is one small READ."""


async def widen(mountpoint: str) -> None:
    """For the mount on `mountpoint`, once it answers, if this process may: only root may write to sysfs."""
    with contextlib.suppress(OSError):
        # The kernel sets the value itself when it takes our answer to FUSE_INIT, before anything else.
        device = (await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)).st_dev
        bdi = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        await trio.to_thread.run_sync(bdi.write_text, str(READ_AHEAD_KIB))
