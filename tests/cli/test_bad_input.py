"""Bad input gets one clear line and its exit code."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuseswap.cli import create as creating
from fuseswap.cli import mount as mounting
from fuseswap.cli.failure import Failure
from fuseswap.cli.main import main
from fuseswap.host.ganesha import Export, GaneshaServer
from fuseswap.host.swap import make_header
from fuseswap.swap.header import Mark, put_mark
from tests.cli.command import finish, fuseswap, start

SIZE = 1 << 20


def swap_file(path: Path, size: int = SIZE) -> Path:
    """A good swap file, made on the server's side."""
    path.write_bytes(make_header(size) + os.urandom(size - 4096))
    return path


# --- the command line ---


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "required: COMMAND"),
        (("fly",), "invalid choice: 'fly'"),
        (("up",), "required: URL"),
        (("up", "nfs://host/export/file", "--size", "many"), "size 'many' is not a number"),
        (("create", "file"), "required: --size"),
        (("create", "file", "--size", "0"), "size 0 is too small"),
        (("create", "file", "--size", "10000"), "size 10000 is not a multiple of 4096 bytes: 40960 would be"),
        (("on", "file", "--priority", "-1"), "'-1' is not a priority from 0 to 32767"),
        (("on", "file", "--priority", "32768"), "'32768' is not a priority from 0 to 32767"),
        (("on", "file", "--name", "a/b"), "'a/b' is not a name"),
        (("down",), "one of the arguments NAME|URL --all is required"),
        (("down", "name", "--all"), "not allowed with"),
        (("demo", "--size", "64M", "--limit", "64M"), "--limit must be below --size"),
        (("demo", "--size", "1M"), "--size must be at least 16 MiB"),
    ],
)
def test_usage(arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("fuseswap: ")
    assert errors.count("\n") == 1
    assert says in errors


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("nfs://", "names no file"),
        ("nfs:///export/file", "expected nfs://HOST/EXPORT/PATH"),
        ("nfs://host", "names no file"),
        ("nfs://host/file", "names an export but no file in it"),
        ("nfs://host/export/", "names no file"),
        ("nfs://host/export/..", "names no file"),
        ("nfs://[1::2/export/file", "Invalid IPv6 URL"),
        ("nfs://host:port/export/file", "Port could not be cast"),
        ("nfs://host/export/file?color=red", "unknown option 'color'"),
        ("nfs://host/export/file?version=4", "only NFS version 3"),
        ("http://host/export/file", "expected nfs://HOST/EXPORT/PATH/FILE"),
        ("/export/file", "expected nfs://HOST/EXPORT/PATH/FILE"),
        ("mem:64M", "expected nfs://HOST/EXPORT/PATH/FILE"),
        ("nfs://host/export/a%20b", "'a b' cannot be a name here"),
    ],
)
def test_a_url_that_does_not_parse(url: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("up", url)) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert says in errors


@pytest.mark.parametrize("command", [("check",), ("create", "--size", "1M"), ("up",)])
def test_a_relative_path_in_a_file_url(
    command: tuple[str, ...], disk_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was taken for /full."""
    swap_file(disk_dir / "full")
    monkeypatch.chdir(disk_dir)
    for url in ("file:full", "file:./full"):
        assert main((*command, url)) == 2
        assert capsys.readouterr() == ("", f"fuseswap: {url}: expected file:///DIRECTORY/FILE\n")


# --- the way to the server ---


def test_an_unknown_host(mount_point: Path) -> None:
    result = fuseswap("mount", "nfs://no-such-host.invalid/export", mount_point)
    assert result.code == 4
    assert "no-such-host.invalid: unknown host" in result.line


def test_a_closed_port(mount_point: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: a connection is refused
        port = taken.getsockname()[1]
        result = fuseswap("mount", f"nfs://127.0.0.1/export?nfsport={port}&mountport={port}", mount_point)
    assert result.code == 4
    assert str(port) in result.line


def test_a_port_that_never_answers(mount_point: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        result = fuseswap("mount", f"nfs://127.0.0.1/export?nfsport={port}&mountport={port}", mount_point)
    assert result.code == 4
    assert "10 s" in result.line


def test_an_export_that_does_not_exist(nfs_server: GaneshaServer, mount_point: Path) -> None:
    result = fuseswap("mount", nfs_server.url(export="no-such-export"), mount_point)
    assert result.code == 4
    assert "/no-such-export" in result.line


@pytest.fixture(scope="module")
def closed_server() -> Iterator[GaneshaServer]:
    """A server with an export that squashes root, one that is read-only, and a small full one."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="fuseswap-test-", dir="/var/tmp") as directory:
        image, exports = Path(directory, "image"), Path(directory, "export")
        image.write_bytes(b"")
        os.truncate(image, 32 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        (exports / "small").mkdir(parents=True)
        subprocess.run(["mount", "-o", "loop", image, exports / "small"], check=True)
        try:
            kinds = (Export("squash", squash="root"), Export("ro", read_only=True), Export("small"))
            with GaneshaServer(Path(directory), kinds) as server:
                yield server
        finally:
            subprocess.run(["umount", exports / "small"], check=True)


def test_root_squash_is_named(closed_server: GaneshaServer) -> None:
    result = fuseswap("create", closed_server.url("file", export="squash"), "--size", "1M")
    assert result.code == 4
    assert "root squash" in result.line
    assert not any(closed_server.export_dir.iterdir())


def test_a_read_only_export(closed_server: GaneshaServer, mount_point: Path) -> None:
    url = closed_server.url("file", export="ro")
    result = fuseswap("create", url, "--size", "1M")
    assert result.code == 4
    assert "the export is read-only" in result.line
    swap_file(closed_server.directory / "export/ro/file")
    result = fuseswap("check", url)
    assert result.code == 3
    assert "cannot be written (EROFS)" in result.line


def test_too_large_for_the_server(closed_server: GaneshaServer) -> None:
    result = fuseswap("create", closed_server.url("file", export="small"), "--size", "1G")
    assert result.code == 4
    assert "no room" in result.line


def test_disk_full_while_creating(
    closed_server: GaneshaServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def pass_over(self: object, size: int) -> None:
        """As if the room had been there a moment ago."""

    monkeypatch.setattr(creating._Creation, "_require_room", pass_over)
    assert main(("create", closed_server.url("file", export="small"), "--size", "64M")) == 4
    errors = capsys.readouterr().err
    assert "disk full" in errors
    assert errors.count("\n") == 1
    left = sorted(path.name for path in (closed_server.directory / "export/small").iterdir())
    assert left == ["lost+found"], "nothing half-made remains"


# --- the file ---


def test_a_file_that_is_no_swap_file_is_kept(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    precious = nfs_dir / "thesis"
    precious.write_bytes(b"years of work" * 1000)
    url = nfs_server.url(f"{nfs_dir.name}/thesis")
    for arguments in (("create", url, "--size", "1M"), ("up", url), ("up", url, "--size", "1M")):
        result = fuseswap(*arguments)
        assert result.code == 3
        assert "is not a swap file" in result.line
    assert precious.read_bytes() == b"years of work" * 1000


def test_a_swap_file_of_another_size_is_kept(nfs_server: GaneshaServer, nfs_dir: Path) -> None:
    swap_file(nfs_dir / "file")
    result = fuseswap("create", nfs_server.url(f"{nfs_dir.name}/file"), "--size", "2M")
    assert result.code == 1
    assert "exists with 1048576 bytes, not 2097152" in result.line


def hole(path: Path) -> None:
    with swap_file(path).open("r+b") as stream:
        stream.truncate(SIZE // 2)
        stream.truncate(SIZE)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def odd(path: Path) -> None:
    with swap_file(path).open("ab") as stream:
        stream.write(bytes(100))


def directory(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def foreign(path: Path) -> None:
    page = put_mark(make_header(SIZE), Mark("0" * 31 + "1", "boot", "other-host"))
    path.write_bytes(page + os.urandom(SIZE - 4096))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (hole, "swap activate: swapfile has holes (EINVAL)"),
        (empty, "Unable to find swap-space signature (EINVAL)"),
        (odd, "size of 1048676 bytes is not a whole number of pages of 4096 bytes (EINVAL)"),
        (directory, "is a directory (EISDIR)"),
        (fifo, "is not a regular file (EINVAL)"),
        (foreign, "in use as swap by another machine: other-host"),
    ],
)
def test_a_file_that_the_contract_refuses(
    make: Callable[[Path], None], says: str, nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path
) -> None:
    make(nfs_dir / "file")
    url = nfs_server.url(f"{nfs_dir.name}/file")
    assert fuseswap("mount", nfs_server.url(nfs_dir.name), mount_point).code == 0
    for arguments in (("check", url), ("check", mount_point / "file"), ("on", mount_point / "file")):
        result = fuseswap(*arguments)
        assert result.code == 3, result
        assert says in result.line
    assert fuseswap("umount", mount_point).code == 0


def test_a_missing_file(nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path) -> None:
    url = nfs_server.url(f"{nfs_dir.name}/missing")
    result = fuseswap("check", url)
    assert result.code == 1
    assert "does not exist" in result.line
    result = fuseswap("check", mount_point / "missing")
    assert result.code == 1
    assert "No such file" in result.line


def test_a_file_on_no_fuseswap_mount(tmp_path: Path) -> None:
    result = fuseswap("on", swap_file(tmp_path / "file"))
    assert result.code == 1
    assert "does not lie on a fuseswap mount" in result.line


# --- the mount point ---


def test_a_bad_mount_point(nfs_server: GaneshaServer, nfs_dir: Path, disk_dir: Path) -> None:
    url = nfs_server.url(nfs_dir.name)
    result = fuseswap("mount", url, disk_dir / "missing")
    assert result.code == 1
    assert "does not exist: mkdir" in result.line
    (disk_dir / "full").mkdir()
    (disk_dir / "full" / "something").touch()
    result = fuseswap("mount", url, disk_dir / "full")
    assert result.code == 1
    assert "is not empty: 'something' would be hidden" in result.line
    result = fuseswap("mount", url, disk_dir / "full" / "something")
    assert result.code == 1
    assert "is not a directory" in result.line
    result = fuseswap("mount", url, "/proc")
    assert result.code == 1
    assert "is busy: something is mounted there (proc)" in result.line
    result = fuseswap("umount", "/proc")
    assert result.code == 1
    assert "/proc is not a fuseswap mount but proc" in result.line
    result = fuseswap("umount", disk_dir / "missing")
    assert result.code == 1
    assert "does not exist" in result.line


def test_an_unknown_mount_option(nfs_server: GaneshaServer, nfs_dir: Path, mount_point: Path) -> None:
    result = fuseswap("mount", nfs_server.url(nfs_dir.name), mount_point, "-o", "fast")
    assert result.code == 2
    assert "-o fast: known are" in result.line


# --- this machine ---


def in_namespace(script: str) -> tuple[str, ...]:
    """Run below `script` in a mount namespace of its own."""
    return ("unshare", "--mount", "sh", "-c", f'{script} && exec "$@"', "sh")


NO_DEVICES = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9"


def test_no_fuse(mount_point: Path) -> None:
    result = fuseswap("mount", "nfs://127.0.0.1/export", mount_point, wrapper=in_namespace(NO_DEVICES))
    assert result.code == 1
    assert result.line == "no /dev/fuse: load the module (modprobe fuse)"


def test_no_loop_devices() -> None:
    script = f"{NO_DEVICES} && mknod -m 666 /dev/fuse c 10 229"
    result = fuseswap("up", "nfs://127.0.0.1/export/file", wrapper=in_namespace(script))
    assert result.code == 1
    assert "no loop devices" in result.line


@pytest.mark.parametrize("setting", ["default_request_timeout", "max_request_timeout"])
def test_a_kernel_that_ends_slow_connections(setting: str) -> None:
    directory = "/proc/sys/fs/fuse"
    script = f"mount -t tmpfs none {directory} && echo 60 > {directory}/{setting}"
    result = fuseswap("up", "nfs://127.0.0.1/export/file", wrapper=in_namespace(script))
    assert result.code == 1
    assert result.line.endswith(f"server is away for 60 s, and swap with them: sysctl fs.fuse.{setting}=0")


def test_no_swap_in_the_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fuseswap.host.swap.SWAPS", tmp_path / "swaps")
    assert main(("up", "nfs://127.0.0.1/export/file")) == 1
    assert "this kernel has no swap (CONFIG_SWAP)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [("up", "nfs://127.0.0.1/export/file"), ("mount", "nfs://127.0.0.1/export", "/mnt"), ("down", "--all")],
)
def test_not_root(arguments: tuple[str, ...]) -> None:
    # The interpreter may lie where only root can read: what is needed is loaded before.
    script = (
        "import os, sys, fuseswap.cli.files, fuseswap.cli.updown; from fuseswap.cli.main import main;"
        " os.setresuid(65534, 65534, 65534); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "fuseswap: not root: run it with sudo\n"


def test_nothing_is_up() -> None:
    result = fuseswap("down", "no-such-name")
    assert (result.code, result.errors) == (0, "")
    assert result.output.endswith("no-such-name is not up\n")


def test_output_that_nobody_reads() -> None:
    process = start("contract", "--json")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    result = finish(process)
    assert (result.code, result.errors) == (0, "")


def test_a_filesystem_process_that_dies_at_once(monkeypatch: pytest.MonkeyPatch, mount_point: Path) -> None:
    # As if the installation were broken.
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Failure, match="its filesystem process ended: without a word"):
        mounting.start("nfs://127.0.0.1/export", str(mount_point), "")
