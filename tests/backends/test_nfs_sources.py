"""Sources that cannot be opened: one line that says what is wrong."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from fuseswap.backends.nfs import mount as mount_module
from fuseswap.backends.nfs.url import NfsUrl, parse_nfs_url
from fuseswap.backends.protocol import Caller, FileType, SourceError
from fuseswap.backends.source import open_source
from fuseswap.host.ganesha import Export, GaneshaServer
from fuseswap.swap.target import NfsTarget
from tests.backends.test_conformance import ROOT, fails

MakeServer = Callable[..., GaneshaServer]


def refused(source: str) -> SourceError:
    async def main() -> None:
        async with open_source(source):
            raise AssertionError("opened")

    with pytest.raises(SourceError) as caught:
        trio.run(main)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nfs://host/export", NfsUrl("host", "/export")),
        ("nfs://host:2050/a/b/", NfsUrl("host", "/a/b", nfs_port=2050)),
        ("nfs://[::1]:2050/a", NfsUrl("::1", "/a", nfs_port=2050)),
        ("nfs://h/a%20b?version=3&uid=0&gid=12", NfsUrl("h", "/a b", uid=0, gid=12)),
        ("nfs://h/x?nfsport=1&mountport=65535", NfsUrl("h", "/x", nfs_port=1, mount_port=65535)),
    ],
)
def test_urls(text: str, expected: NfsUrl) -> None:
    assert parse_nfs_url(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nfs",
        "nfs:",
        "nfs://",
        "nfs:///export",
        "nfs://host",
        "nfs://host/",
        "nfs://user@host/x",
        "nfs://host:port/x",
        "nfs://host:99999/x",
        "nfs://host:0/x",
        "nfs://[::1/x",
        "nfs://host/x#y",
        "nfs://host/x%00y",
        "nfs://host/x?y",
        "nfs://host/x?version=4",
        "nfs://host/x?colour=red",
        "nfs://host/x?uid=-1",
        "nfs://host/x?uid=4294967296",
        "nfs://host/x?nfsport=0",
        "nfs://host/x?mountport=65536",
        "nfs://host/x?uid=١",
        "smb://host/x",
        "/some/directory",
        "mem:",
        "mem:much",
        "mem:-1",
        "mem:1X",
    ],
)
def test_sources_written_wrongly(text: str) -> None:
    assert refused(text).usage


def test_an_unknown_host() -> None:
    error = refused("nfs://no-such-host.invalid/export")
    assert "no-such-host.invalid: unknown host" in str(error)
    assert not error.usage


def test_a_host_name_that_is_none() -> None:
    assert "unknown host" in str(refused("nfs://" + "x" * 300 + "/export"))


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_closed_ports(nfs_server: GaneshaServer) -> None:
    closed = _closed_port()
    url = f"nfs://127.0.0.1/swap?nfsport={nfs_server.nfs_port}&mountport={closed}"
    assert str(refused(url)) == f"127.0.0.1: MOUNT on port {closed}: connection refused"
    url = f"nfs://127.0.0.1/swap?nfsport={closed}&mountport={nfs_server.mount_port}"
    assert str(refused(url)) == f"127.0.0.1: NFS on port {closed}: connection refused"


def test_a_closed_portmapper(monkeypatch: pytest.MonkeyPatch) -> None:
    # 127.9.9.9 is loopback too; nothing listens there unless it listens everywhere.
    error = str(refused("nfs://127.9.9.9/export"))
    assert "portmapper" in error or "Program is not available" in error or "does not exist" in error


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_port_that_never_answers(
    silent_port: int, nfs_server: GaneshaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mount_module, "CONNECT_SECONDS", 1.0)
    url = f"nfs://127.0.0.1/swap?nfsport={nfs_server.nfs_port}&mountport={silent_port}"
    assert str(refused(url)) == f"127.0.0.1: MOUNT on port {silent_port}: no answer within 1 s"
    url = f"nfs://127.0.0.1/swap?nfsport={silent_port}&mountport={nfs_server.mount_port}"
    assert str(refused(url)) == f"127.0.0.1: NFS on port {silent_port}: no answer within 1 s"


def test_a_port_that_speaks_otherwise(nfs_server: GaneshaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount_module, "CONNECT_SECONDS", 1.0)
    # The NFS program does not serve MOUNT on its port, and the other way round.
    url = f"nfs://127.0.0.1/swap?nfsport={nfs_server.mount_port}&mountport={nfs_server.nfs_port}"
    assert "MOUNT on port" in str(refused(url))


def test_an_export_that_does_not_exist(nfs_server: GaneshaServer) -> None:
    url = nfs_server.url(export="nothing")
    assert str(refused(url)).startswith("127.0.0.1: MOUNT of /nothing: no such export")


def test_a_directory_that_does_not_exist(nfs_server: GaneshaServer) -> None:
    assert "MOUNT of /swap/none" in str(refused(nfs_server.url("none")))


def test_root_squash_and_read_only(make_nfs_server: MakeServer) -> None:
    server = make_nfs_server(Export("squash", squash="root"), Export("ro", read_only=True))
    (server.directory / "export/squash").chmod(0o755)

    async def main() -> None:
        async with open_source(server.url(export="squash")) as backend:
            assert (await backend.getattr(backend.root, ROOT)).type is FileType.DIRECTORY
            await fails(13, backend.create(backend.root, b"x", 0o644, False, ROOT))
        async with open_source(server.url(export="ro")) as backend:
            await fails(30, backend.create(backend.root, b"x", 0o644, False, ROOT))

    trio.run(main)


def test_ids_of_the_url_stand_for_everybody(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    nfs_dir.chmod(0o777)

    async def main() -> None:
        async with open_source(nfs_server.url(nfs_dir.name) + "&uid=77&gid=88") as backend:
            _, made = await backend.create(backend.root, b"x", 0o600, False, Caller(1, 2))
            assert (made.uid, made.gid) == (77, 88)
            target = backend.swap_target(backend.root)
            assert isinstance(target, NfsTarget)
            assert (target.uid, target.gid) == (77, 88)

    trio.run(main)


def test_every_address_of_a_name_is_tried_and_kept(
    nfs_server: GaneshaServer, nfs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(host: str) -> list[str]:
        assert host == "server.example"
        return ["127.0.0.2", "127.0.0.1", "::1"]

    monkeypatch.setattr(mount_module, "_resolve", resolve)

    async def main() -> None:
        url = nfs_server.url(nfs_dir.name).replace("127.0.0.1", "server.example")
        async with open_source(url) as backend:
            target = backend.swap_target(backend.root)
            assert isinstance(target, NfsTarget)
            # Only 127.0.0.1 answers; it comes first, and the others are kept for later.
            assert [address.host for address in target.addresses] == ["127.0.0.1", "127.0.0.2", "::1"]
            assert {address.port for address in target.addresses} == {nfs_server.nfs_port}

    trio.run(main)
