"""libnfs-python, an NFS client that shares no code with the mount above libnfs itself, must see the same files."""

import os
from pathlib import Path

import libnfs

from fuseswap.host.ganesha import GaneshaServer


def test_another_client_reads_what_was_written(nfs: Path, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    content = os.urandom(2_500_000)
    (nfs / "file").write_bytes(content)
    client = libnfs.NFS(nfs_server.url(nfs_dir.name))
    assert client.open("/file", "rb").read() == content
    assert client.stat("/file")["size"] == len(content)
    assert client.stat("/file")["ino"] == (nfs / "file").stat().st_ino


def test_what_another_client_wrote_is_read(nfs: Path, nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    content = os.urandom(100_000)
    client = libnfs.NFS(nfs_server.url(nfs_dir.name))
    file = client.open("/file", "wb")
    file.write(bytearray(content))
    file.close()
    assert (nfs / "file").read_bytes() == content
    client.unlink("/file")
    assert not (nfs / "file").exists()
