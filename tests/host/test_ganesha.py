import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import libnfs
import pytest

from fuseswap.host.bounded import HostError
from fuseswap.host.ganesha import MOUNT_PROGRAM, NFS_PROGRAM, Export, GaneshaServer, null_call
from fuseswap.host.mounts import unmount
from tests.contract import syscalls
from tests.kit import fuse_stub, rpc
from tests.kit.wait import wait_until


def write_file(server: GaneshaServer, name: str, text: str, export: str | None = None) -> None:
    mounted = libnfs.NFS(server.url(export=export))
    with closing(mounted.open(f"/{name}", mode="w")) as file:
        file.write(text)


def test_a_file_written_over_nfs_is_in_the_export_directory(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    write_file(nfs_server, f"{nfs_dir.name}/hello", "over the wire")

    assert (nfs_dir / "hello").read_text() == "over the wire"


def test_two_servers_serve_side_by_side(make_nfs_server: Callable[..., GaneshaServer]) -> None:
    first, second = make_nfs_server(), make_nfs_server()

    write_file(first, "file", "first")
    write_file(second, "file", "second")

    assert (first.export_dir / "file").read_text() == "first"
    assert (second.export_dir / "file").read_text() == "second"


def test_a_killed_server_comes_back_with_the_same_ports_and_handles(fresh_nfs_server: GaneshaServer) -> None:
    mounted = libnfs.NFS(fresh_nfs_server.url())
    with closing(mounted.open("/file", mode="w")) as file:
        file.write("before")
        fresh_nfs_server.kill()
        assert not null_call(fresh_nfs_server.nfs_port, NFS_PROGRAM)
        fresh_nfs_server.start()
        file.write(" and after")

    assert (fresh_nfs_server.export_dir / "file").read_text() == "before and after"


def test_stop_ends_the_server_and_may_be_repeated(fresh_nfs_server: GaneshaServer) -> None:
    pid = fresh_nfs_server.pid
    fresh_nfs_server.stop()
    fresh_nfs_server.stop()

    assert not Path(f"/proc/{pid}").exists()
    assert not null_call(fresh_nfs_server.mount_port, MOUNT_PROGRAM)
    with pytest.raises(HostError, match="not running"):
        _ = fresh_nfs_server.pid


def test_stop_ends_a_server_that_a_test_has_frozen(fresh_nfs_server: GaneshaServer) -> None:
    os.kill(fresh_nfs_server.pid, signal.SIGSTOP)
    fresh_nfs_server.stop()


def test_exports_have_their_own_rules(make_nfs_server: Callable[..., GaneshaServer]) -> None:
    server = make_nfs_server(Export("open"), Export("ro", read_only=True), Export("squashed", squash="root"))
    for export in server.exports:
        (server.export_dir.parent / export.name).chmod(0o755)

    write_file(server, "file", "x")
    with pytest.raises(ValueError, match="Read-only file system"):
        write_file(server, "file", "x", export="ro")
    with pytest.raises(ValueError, match="Permission denied"):
        write_file(server, "file", "x", export="squashed")


def test_an_unprivileged_source_port_can_be_refused(make_nfs_server: Callable[..., GaneshaServer]) -> None:
    server = make_nfs_server(Export("open"), Export("secure", privileged_port=True))
    open_root = rpc.opaque(rpc.mount(server.mount_port, "/open"))
    secure_root = rpc.opaque(rpc.mount(server.mount_port, "/secure"))
    getattr_procedure, privileged_port = 1, free_privileged_port()

    assert rpc.call(server.nfs_port, NFS_PROGRAM, getattr_procedure, open_root)
    assert rpc.call(server.nfs_port, NFS_PROGRAM, getattr_procedure, secure_root, source_port=privileged_port)
    with pytest.raises(rpc.Rejected):
        rpc.call(server.nfs_port, NFS_PROGRAM, getattr_procedure, secure_root)


def test_the_server_dies_with_its_parent(disk_dir: Path) -> None:
    script = """
        import signal, sys
        from pathlib import Path
        from fuseswap.host.ganesha import GaneshaServer
        server = GaneshaServer(Path(sys.argv[1]))
        server.start()
        print(server.pid, flush=True)
        signal.pause()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(disk_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        server_pid = int(parent.stdout.readline())
        parent.kill()

    wait_until(lambda: not is_running(server_pid), seconds=10)


def test_the_servers_namespace_keeps_no_fuse_mount_alive(disk_dir: Path) -> None:
    point = disk_dir / "with a space"
    point.mkdir()
    with fuse_stub.mounted(point) as connection, GaneshaServer(disk_dir / "server"):
        connection.unmount()

        assert connection.ended(seconds=5)


def test_a_server_that_has_ended_holds_its_file_system_no_more(disk_dir: Path) -> None:
    image, point = disk_dir / "image", disk_dir / "point"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    for _ in range(5):
        subprocess.run(["mount", "-o", "loop", image, point], check=True)
        try:
            with GaneshaServer(point):
                pass
            syscalls.unmount(point)
        except BaseException:
            unmount(str(point), lazy=True)
            raise


def test_a_server_that_cannot_start_says_why(disk_dir: Path) -> None:
    with GaneshaServer(disk_dir / "first") as first:
        second = GaneshaServer(disk_dir / "second")
        second.nfs_port = first.nfs_port

        with pytest.raises(HostError, match=r"did not start: .*bind"):
            second.start()


def test_a_machine_without_nfs_ganesha_is_told_what_to_install(disk_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(disk_dir))

    with pytest.raises(HostError, match="apt-get install nfs-ganesha"):
        GaneshaServer(disk_dir).start()


def free_privileged_port() -> int:
    for port in range(1023, 600, -1):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port below 1024")


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
