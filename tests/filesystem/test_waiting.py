"""Calls that wait for a dead server: how long, and what ends them."""

import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fuseswap.host.ganesha import GaneshaServer
from tests.filesystem.conftest import Mount
from tests.kit.wait import wait_until


def write_and_sync(descriptor: int) -> None:
    os.pwrite(descriptor, b"x" * 10, 0)
    os.fsync(descriptor)


def test_soft_ends_the_wait_with_eio(mount: Mount, fresh_nfs_server: GaneshaServer) -> None:
    point = mount(fresh_nfs_server.url(), "soft,timeo=1,actimeo=0").point
    (point / "file").write_bytes(b"content" * 1000)
    writer = os.open(point / "file", os.O_RDWR)
    fresh_nfs_server.kill()
    calls: dict[str, Callable[[], object]] = {
        "stat": lambda: (point / "file").stat(),
        "open": lambda: (point / "other").touch(),
        "fsync": lambda: write_and_sync(writer),
        "list": lambda: list(point.iterdir()),
    }
    for name, call in calls.items():
        began = time.monotonic()
        with pytest.raises(OSError) as caught:
            call()
        assert (name, caught.value.errno) == (name, errno.EIO)
        assert 0.9 < time.monotonic() - began < 10, name
    fresh_nfs_server.start()
    wait_until(lambda: _works(point), seconds=20, what="the mount to work again")
    os.close(writer)


def _works(point: Path) -> bool:
    try:
        return (point / "file").read_bytes().endswith(b"content")
    except OSError:
        return False


_CALLS = {
    "stat": "os.stat(directory + '/other')",
    "list": "os.listdir(directory)",
    "create": "open(directory + '/new', 'w')",
    "rename": "os.rename(path, path + '-renamed')",
    "read": "os.pread(fd, 100, 0)",
    "read direct": "os.preadv(direct, [mmap.mmap(-1, 4096)], 0)",
    "write": "os.pwrite(fd, b'x' * 100, 0)",
    "fsync": "(os.pwrite(fd, b'x' * 100, 0), os.fsync(fd))",
}

_USER = """
import mmap, os, sys
directory = sys.argv[1]
path = directory + "/file"
fd = os.open(path, os.O_RDWR)
direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
os.write(fd, b"d" * int(sys.argv[3]))
print("ready", flush=True)
sys.stdin.readline()
exec(sys.argv[2])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_fatal_signal_ends_every_wait(mount: Mount, fresh_nfs_server: GaneshaServer, number: signal.Signals) -> None:
    point = mount(fresh_nfs_server.url(), "actimeo=0").point
    (point / "file").write_bytes(b"content" * 10_000)
    users = {}
    for name, call in _CALLS.items():
        # One of them dies with data that the server has not committed.
        command = [sys.executable, "-c", _USER, str(point), call, "1000" if name == "fsync" else "0"]
        user = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert user.stdout is not None
        assert user.stdout.readline() == b"ready\n", name
        users[name] = user
    fresh_nfs_server.kill()
    for user in users.values():
        assert user.stdin is not None
        user.stdin.write(b"go on\n")
        user.stdin.close()
    wait_until(lambda: all(_sleeps(user.pid) for user in users.values()), seconds=10, what="all to wait")
    for user in users.values():
        user.send_signal(number)
    for name, user in users.items():
        assert (name, user.wait(15)) == (name, -number)
        assert user.stdout is not None
        assert user.stderr is not None
        user.stdout.close()
        user.stderr.close()
    fresh_nfs_server.start()
    wait_until(lambda: (point / "file").stat().st_size == 70_000, seconds=20, what="the mount to work again")
    behind = fresh_nfs_server.export_dir / "file"
    wait_until(lambda: behind.read_bytes()[:1000] == b"d" * 1000, seconds=10, what="the dead process's data")


_HANDLES = """
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda number, frame: print("handled", flush=True))
print("ready", flush=True)
sys.stdin.readline()
print(os.path.exists(sys.argv[1] + "/other"), flush=True)
"""

_INHERITS = """
import mmap, os, sys
fd = os.open(sys.argv[1] + "/file", os.O_RDONLY | os.O_DIRECT)
print("ready", flush=True)
sys.stdin.readline()
child = os.fork()
if child == 0:
    os.preadv(fd, [mmap.mmap(-1, 4096)], 0)
    os._exit(0)
print(child, flush=True)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

_DIES = """
import os, sys
print("ready", flush=True)
sys.stdin.readline()
os.stat(sys.argv[1] + "/another")
"""


def test_what_waits_on_although_it_was_signalled(mount: Mount, fresh_nfs_server: GaneshaServer) -> None:
    """A signal with a handler, and SIGKILL of who inherited a descriptor: both end with the server's return."""
    # A read asks for attributes first where they are old, and does not wait on for those.
    point = mount(fresh_nfs_server.url(), "actimeo=60").point
    (point / "file").write_bytes(b"content" * 1000)
    users = [
        subprocess.Popen([sys.executable, "-c", script, str(point)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for script in (_HANDLES, _INHERITS, _DIES)
    ]
    for user in users:
        assert user.stdout is not None
        assert user.stdout.readline() == b"ready\n"
    fresh_nfs_server.kill()
    for user in users:
        assert user.stdin is not None
        user.stdin.write(b"go on\n")
        user.stdin.close()
    handles, inherits, dies = users
    assert handles.stdout is not None
    assert inherits.stdout is not None
    assert dies.stdout is not None
    child = int(inherits.stdout.readline())
    wait_until(lambda: all(_sleeps(pid) for pid in (handles.pid, child, dies.pid)), seconds=10, what="all to wait")
    # A signal takes back what the mount's process has not read yet. It reads in order, and answers this by itself.
    os.statvfs(point)
    handles.send_signal(signal.SIGUSR1)
    os.kill(child, signal.SIGKILL)
    # When this one, which is killed last, has ended, the others would have, too.
    dies.kill()
    assert dies.wait(15) == -signal.SIGKILL
    assert _sleeps(handles.pid)
    assert _sleeps(child)
    assert select.select([handles.stdout, inherits.stdout], [], [], 0)[0] == []
    fresh_nfs_server.start()
    assert handles.stdout.read() == b"handled\nFalse\n"
    assert inherits.stdout.read() == b"-9\n"
    for user in users:
        user.wait(10)
        assert user.stdout is not None
        user.stdout.close()


def _sleeps(pid: int) -> bool:
    return any(word in Path(f"/proc/{pid}/wchan").read_text() for word in ("request_wait", "fuse", "folio"))
