"""A portmapper for one server: qemu-storage-daemon cannot be told the ports, it asks port 111 (RFC 1833)."""

import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fuseswap.host.bounded import HostError
from fuseswap.host.ganesha import MOUNT_PROGRAM, NFS_PROGRAM, GaneshaServer

_LAST_FRAGMENT = 1 << 31
_GETPORT = 3


@contextmanager
def portmapper(server: GaneshaServer) -> Iterator[None]:
    """Answer GETPORT for the server's two programs on 127.0.0.1:111. HostError if the port is taken."""
    ports = {NFS_PROGRAM: server.nfs_port, MOUNT_PROGRAM: server.mount_port}

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            # libnfs leaves by a reset.
            with suppress(ConnectionError):
                while len(head := self.rfile.read(4)) == 4:
                    self._answer(self.rfile.read(struct.unpack(">I", head)[0] & ~_LAST_FRAGMENT))

        def _answer(self, call: bytes) -> None:
            xid, procedure = struct.unpack_from(">I16xI", call)
            (program,) = struct.unpack_from(">I", call, len(call) - 16)
            result = struct.pack(">I", ports.get(program, 0)) if procedure == _GETPORT else b""
            reply = struct.pack(">6I", xid, 1, 0, 0, 0, 0) + result
            self.wfile.write(struct.pack(">I", _LAST_FRAGMENT | len(reply)) + reply)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    try:
        listener = Server(("127.0.0.1", 111), Handler)
    except OSError as error:
        raise HostError(f"port 111 on loopback: {error.strerror}") from None
    with listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            listener.shutdown()
            thread.join()
