"""A private NFS server: nfs-ganesha on loopback, for the demo, the tests and the benchmark.

It touches nothing outside its own directory and needs no port but its two. nfs-ganesha refuses to start where
it cannot register with rpcbind, so it sees a private directory as /run, in which a socket answers every
registration with yes (`_Registrar`); port 111 of the machine stays as it was. Clients name the ports in the
URL.

A mount namespace is a copy of all mounts, and a copy keeps a FUSE connection alive after its umount; so the
server's namespace drops every FUSE mount it inherited before the server runs.
"""

import contextlib
import os
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import attrs

from fuseswap.host.bounded import HostError

NFS_PROGRAM: Final = 100003
MOUNT_PROGRAM: Final = 100005

Squash = Literal["none", "root", "all"]

_SQUASH: Final[dict[Squash, str]] = {"none": "No_Root_Squash", "root": "Root_Squash", "all": "All_Squash"}

_LAST_FRAGMENT: Final = 1 << 31
"""The mark of a record's last fragment (RFC 5531 section 11)."""

_ACCEPTED: Final = struct.pack(">5I", 1, 0, 0, 0, 0)
"""What follows the xid: REPLY, MSG_ACCEPTED, an empty verifier, SUCCESS (RFC 5531 section 9)."""

_START_SECONDS_MAX: Final = 20.0
_STOP_SECONDS_MAX: Final = 10.0
_POLL_SECONDS: Final = 0.02

# Below the kernel's ephemeral ports (32768 and up): a client that keeps connecting to a dead server's port in
# that range meets itself (TCP simultaneous open), or another client takes the port before the server is back.
_PORTS: Final = range(20000, 32000)

_ENTER_NAMESPACE: Final = r"""
set -eu
while read -r _ point type _; do
    case $type in fuse | fuseblk | fuse.*)
        umount --lazy --no-canonicalize "$(printf %b "$(printf %s "$point" | sed 's/\\/\\0/g')")" || true
    esac
done </proc/self/mounts
mount --bind "$1" /run
shift
exec "$@"
"""


@attrs.frozen
class Export:
    """One exported directory: `nfs://127.0.0.1/NAME`, kept in the server's directory below export/NAME."""

    name: str
    squash: Squash = "none"
    read_only: bool = False
    privileged_port: bool = False
    """Accept only clients whose source port is below 1024 (`secure` in exports(5))."""
    transfer_bytes_max: int = 1 << 20
    """wtmax and rtmax in FSINFO (RFC 1813 section 3.3.19)."""


def null_call(port: int, program: int, version: int = 3, *, timeout_seconds: float = 1.0) -> bool:
    """Whether the program answers procedure 0 (RFC 5531 section 12: no work, only an answer) on loopback."""
    xid = b"null"
    call = xid + struct.pack(">9I", 0, 2, program, version, 0, 0, 0, 0, 0)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=timeout_seconds) as connection:
            connection.sendall(struct.pack(">I", _LAST_FRAGMENT | len(call)) + call)
            reply = connection.recv(4 + len(xid) + len(_ACCEPTED), socket.MSG_WAITALL)
    except OSError:
        return False
    return reply[4:] == xid + _ACCEPTED


class _Registrar:
    """What a server asks of rpcbind at its start and end: SET and UNSET (RFC 1833 section 2.2.1) are true."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        # Through a descriptor: sun_path holds 108 bytes, and test directories are longer.
        directory = os.open(path.parent, os.O_PATH)
        try:
            self._listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        self._listener.listen()
        self._answering: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """To be called when the server has ended. After it, nothing here keeps the file system of `path` mounted.

        A socket does, bound or accepted, until the last call on it has returned (unix_release_sock).
        """
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for thread in self._answering:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._answer, args=(connection,), daemon=True)
                self._answering.append(thread)
                thread.start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while len(head := connection.recv(8, socket.MSG_WAITALL)) == 8:
                mark, xid = struct.unpack(">2I", head)
                connection.recv((mark & ~_LAST_FRAGMENT) - 4, socket.MSG_WAITALL)
                reply = struct.pack(">I", xid) + _ACCEPTED + struct.pack(">I", True)
                connection.sendall(struct.pack(">I", _LAST_FRAGMENT | len(reply)) + reply)


class GaneshaServer:
    """A private nfs-ganesha; as a context manager it is started on entry and stopped on exit.

    It dies with the thread that started it (PR_SET_PDEATHSIG counts threads): start it from one that stays.
    `directory` must lie on a disk file system, for tmpfs has no file handles for nfs-ganesha's FSAL_VFS.
    """

    def __init__(self, directory: Path, exports: Sequence[Export] = (Export("swap"),)) -> None:
        self.directory = directory
        self.exports = tuple(exports)
        self.nfs_port, self.mount_port = _free_ports(2)
        self.log_path = directory / "ganesha.log"
        self._registrar: _Registrar | None = None
        self._ganesha: subprocess.Popen[bytes] | None = None

    @property
    def export_dir(self) -> Path:
        """The directory behind the first export, as this machine sees it."""
        return self._directory_of(self.exports[0])

    @property
    def pid(self) -> int:
        """The running server's process; a test may stop and continue it."""
        if self._ganesha is None:
            raise HostError("the private NFS server is not running")
        return self._ganesha.pid

    def url(self, path: str = "", *, export: str | None = None, version: int = 3) -> str:
        """The URL of `path` below an export (the first, unless named), in libnfs's grammar."""
        name = self.exports[0].name if export is None else export
        below = f"/{path.lstrip('/')}" if path else ""
        ports = f"nfsport={self.nfs_port}&mountport={self.mount_port}"
        return f"nfs://127.0.0.1/{name}{below}?version={version}&{ports}"

    def start(self) -> None:
        """Start the server, on the same ports each time, and return when it answers. Errors: HostError."""
        if self._ganesha is not None:
            raise HostError("the private NFS server is already running")
        self._prepare()
        if self._registrar is None:
            self._registrar = _Registrar(self.directory / "run/rpcbind.sock")
        self._ganesha = self._spawn()
        try:
            self._wait_until_serving()
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone: what a crash of the server looks like to its clients."""
        if self._ganesha is not None:
            _reap(self._ganesha, signal.SIGKILL)
            self._ganesha = None

    def stop(self) -> None:
        """End the server; replies to what it has begun are still sent. Calling it twice is allowed."""
        if self._ganesha is not None:
            _reap(self._ganesha, signal.SIGTERM)
            self._ganesha = None
        if self._registrar is not None:
            self._registrar.close()
            self._registrar = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _directory_of(self, export: Export) -> Path:
        return self.directory / "export" / export.name

    def _prepare(self) -> None:
        if shutil.which("ganesha.nfsd") is None:
            raise HostError("no nfs-ganesha here, try: apt-get install nfs-ganesha nfs-ganesha-vfs")
        for below in ("run", "run/ganesha", "recovery"):
            (self.directory / below).mkdir(parents=True, exist_ok=True)
        for export in self.exports:
            self._directory_of(export).mkdir(parents=True, exist_ok=True)
        (self.directory / "ganesha.conf").write_text(self._configuration())

    def _configuration(self) -> str:
        blocks = [
            f"""NFS_CORE_PARAM {{
    Protocols = 3; NFS_Port = {self.nfs_port}; MNT_Port = {self.mount_port}; Bind_addr = 127.0.0.1;
    Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; mount_path_pseudo = true;
}}
NFSv4 {{ Graceless = true; RecoveryRoot = "{self.directory}/recovery"; }}
"""
        ]
        for number, export in enumerate(self.exports, start=1):
            blocks.append(
                f"""EXPORT {{
    Export_Id = {number}; Path = "{self._directory_of(export)}"; Pseudo = "/{export.name}";
    Access_Type = {"RO" if export.read_only else "RW"}; Squash = {_SQUASH[export.squash]};
    PrivilegedPort = {str(export.privileged_port).lower()};
    MaxRead = {export.transfer_bytes_max}; MaxWrite = {export.transfer_bytes_max};
    PrefRead = {export.transfer_bytes_max}; PrefWrite = {export.transfer_bytes_max};
    SecType = sys; Protocols = 3; Transports = TCP; FSAL {{ Name = VFS; }}
}}
"""
            )
        return "".join(blocks)

    def _spawn(self) -> subprocess.Popen[bytes]:
        # Own session and no inherited stream: who reads the caller's pipe must not wait for the server's end.
        with (self.directory / "output.log").open("ab") as output:
            return subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "slave"),
                    *("sh", "-c", _ENTER_NAMESPACE, "enter", self.directory / "run"),
                    *("ganesha.nfsd", "-F", "-f", self.directory / "ganesha.conf"),
                    *("-L", self.log_path, "-p", self.directory / "ganesha.pid"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _wait_until_serving(self) -> None:
        assert self._ganesha is not None
        deadline = time.monotonic() + _START_SECONDS_MAX
        for port, program in ((self.mount_port, MOUNT_PROGRAM), (self.nfs_port, NFS_PROGRAM)):
            while not null_call(port, program):
                if not _runs_on(self._ganesha, deadline):
                    raise HostError(f"nfs-ganesha did not start: {self._last_log_line()}")

    def _last_log_line(self) -> str:
        with contextlib.suppress(OSError, IndexError):
            return self.log_path.read_text(errors="replace").splitlines()[-1]
        return f"it left no log, see {self.directory}/output.log"


def _runs_on(process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Wait one poll interval; False when the process has ended meanwhile or the deadline has passed."""
    pidfd = os.pidfd_open(process.pid)
    try:
        ended, _, _ = select.select([pidfd], [], [], _POLL_SECONDS)
    finally:
        os.close(pidfd)
    return not ended and time.monotonic() < deadline


def _reap(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
        process.send_signal(number)
    try:
        process.wait(_STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise HostError(f"no free TCP port between {_PORTS.start} and {_PORTS.stop} on loopback")
