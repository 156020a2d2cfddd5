"""`mount` and `umount`: a filesystem process in the background, and its end."""

import contextlib
import json
import os
import select
import subprocess
import sys
from typing import Any

from fuseswap.cli.failure import Exit, Failure
from fuseswap.host import fusectl, processes
from fuseswap.host.bounded import abandon, call
from fuseswap.host.mounts import FILESYSTEM_TYPE, Mount, absolute, mount_at, unmount

_START_SECONDS = 60.0
"""Name service, portmapper, MOUNT and NFS each have limits of their own below this."""
_END_SECONDS = 10.0
_LOOK_SECONDS = 5.0


def require_mountpoint(directory: str) -> str:
    """The absolute path of an empty directory on which nothing is mounted. Failure says what is wrong."""

    def look() -> tuple[str, list[str] | None]:
        path = os.path.realpath(directory)
        # What is mounted there is not asked: its server may be away.
        return path, None if mount_at(path) is not None else [entry.name for entry in os.scandir(path)]

    hang = f"{directory}: looking it up takes longer than {_LOOK_SECONDS:g} s: it lies on a mount that hangs"
    try:
        path, entries = call(look, what=hang, seconds=_LOOK_SECONDS)
    except FileNotFoundError:
        raise Failure(f"mount point {directory} does not exist: mkdir {directory}") from None
    except NotADirectoryError:
        raise Failure(f"mount point {directory} is not a directory") from None
    except OSError as error:
        raise Failure(f"mount point {directory}: {error.strerror}") from None
    if entries is None:
        mounted = mount_at(path)
        source = f" ({mounted.source})" if mounted is not None else ""
        raise Failure(
            f"mount point {directory} is busy: something is mounted there{source}: fuseswap umount {directory}"
        )
    if entries:
        raise Failure(f"mount point {directory} is not empty: {entries[0]!r} would be hidden; use an empty directory")
    return path


def start(source: str, mountpoint: str, options: str) -> None:
    """Mount in the background: returns once a filesystem process serves. Failure with its reason otherwise.

    The process is its own session's leader and outlives the command. When it fails or is interrupted, neither
    process nor mount stays.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    last_words = os.memfd_create("fuseswap-filesystem-stderr", os.MFD_CLOEXEC)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "fuseswap.cli.daemon", str(writer), source, mountpoint, options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=last_words,
        pass_fds=(writer,),
        cwd="/",
        start_new_session=True,
        text=True,
    )
    os.close(writer)
    try:
        report = _answer(reader, source, last_words)
        if "error" in report:
            raise Failure(report["error"], Exit(int(report["code"])))
    except BaseException:
        abandon(process)
        while (mounted := mount_at(mountpoint)) is not None and _is_left_behind(mounted, source):
            unmount(mountpoint)
        raise
    finally:
        os.close(last_words)
    # It outlives us and is not ours to wait for; Popen would complain of that.
    process.returncode = 0


def _answer(reader: int, source: str, last_words: int) -> dict[str, Any]:
    """What the filesystem process says of itself (see `daemon.main`)."""
    with os.fdopen(reader, "rb") as pipe:
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        if not poll.poll(_START_SECONDS * 1000):
            return {"error": f"{source}: no answer within {_START_SECONDS:g} s", "code": Exit.SERVER}
        line = pipe.readline()
    if line:
        report: dict[str, Any] = json.loads(line)
        return report
    words = os.pread(last_words, 1 << 16, 0).decode(errors="replace").strip() or "without a word"
    return {"error": f"{source}: its filesystem process ended: {words.splitlines()[-1]}", "code": Exit.FAILED}


def _is_left_behind(mounted: Mount, source: str) -> bool:
    """Whether it is one of `source` without a process: something else may have been mounted there meanwhile."""
    return mounted.type == FILESYSTEM_TYPE and mounted.source == source and not processes.filesystems(mounted)


def stop(mounted: Mount, *, seconds: float = _END_SECONDS) -> None:
    """Unmount, and wait for the filesystem process to end, which is killed after `seconds`.

    It goes on if what it serves is mounted elsewhere, too: bound to another directory, or in another namespace.
    HostError if the mount is busy, `Hung` if it cannot write out what it holds.
    """
    pids = processes.filesystems(mounted)
    found = [process for pid in pids if (process := processes.find(pid, processes.FILESYSTEM))]
    try:
        others = _same_mounted(found, mounted) - {mounted.mount_id}
        unmount(mounted.mountpoint)
        if others & _same_mounted(found, mounted):
            return
        for process in found:
            # umount has waited for what was written; a process that stays has nothing left to do, unless a namespace
            # that it does not see has the mount.
            if not process.wait(seconds) and not fusectl.is_connected(mounted):
                process.kill()
                process.wait(_END_SECONDS)
    finally:
        for process in found:
            process.close()


def _same_mounted(found: list[processes.Process], mounted: Mount) -> set[int]:
    """The mount ids of the same file system in the namespaces of its processes."""
    tables = [processes.mounts_of(process.pid) for process in found]
    return {each.mount_id for table in tables for each in table if each.device == mounted.device}


def unmount_directory(directory: str) -> bool:
    """`fuseswap umount DIR`: False if nothing of ours is mounted there. Failure, HostError."""
    path = absolute(directory)
    mounted = mount_at(path)
    if mounted is None:
        hang = f"{directory}: looking it up takes longer than {_LOOK_SECONDS:g} s: it lies on a mount that hangs"
        with contextlib.suppress(OSError):
            mounted = mount_at(call(lambda: os.path.realpath(directory, strict=True), what=hang, seconds=_LOOK_SECONDS))
    if mounted is None:
        if not os.path.lexists(path):
            raise Failure(f"{directory} does not exist")
        return False
    if mounted.type != FILESYSTEM_TYPE:
        raise Failure(f"{directory} is not a fuseswap mount but {mounted.type} ({mounted.source}): umount {directory}")
    stop(mounted)
    return True
