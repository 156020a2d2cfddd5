"""A private NFS server as steps, for `demo` and `bench`: a directory on a disk, and nfs-ganesha in it."""

import shutil
import tempfile
from pathlib import Path

from attrs import define

from fuseswap.cli.output import say
from fuseswap.cli.steps import Step
from fuseswap.host.ganesha import GaneshaServer

_PARENT_DIRECTORY = "/var/tmp"
"""On a disk: a tmpfs has no file handles for the NFS server, and would compete for memory."""


@define(eq=False)
class PrivateServer:
    """Made and taken away by its steps; nothing of it stays."""

    what: str
    """Which command it serves."""
    _directory: Path | None = None
    _server: GaneshaServer | None = None

    def steps(self) -> list[Step]:
        """The directory, then the server."""
        return [
            Step("directory", self._make_directory, self._remove_directory),
            Step("NFS server", self._start, self._stop),
        ]

    @property
    def server(self) -> GaneshaServer:
        """The server, once its step is done."""
        assert self._server is not None
        return self._server

    def _make_directory(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix=f"fuseswap-{self.what}-", dir=_PARENT_DIRECTORY))

    def _remove_directory(self) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _start(self) -> None:
        assert self._directory is not None
        say(f"{self.what}: starting a private nfs-ganesha")
        self._server = GaneshaServer(self._directory)
        self._server.start()

    def _stop(self) -> None:
        if self._server is not None:
            self._server.stop()
