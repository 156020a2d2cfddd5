"""A directory of this machine as a source: what it lets out, and what not."""

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from fuseswap.backends.protocol import Backend, FileType, SourceError
from fuseswap.backends.source import open_source
from fuseswap.filesystem.inodes import Node
from tests.backends.test_conformance import ROOT, fails, names


@pytest.mark.parametrize("source", ["file:", "file://host/x", "file:relative", "file:///x?y", "file:///x#y"])
def test_sources_written_wrongly(source: str) -> None:
    assert _refused(source).usage


def test_directories_that_are_none(disk_dir: Path) -> None:
    (disk_dir / "file").touch()
    assert "No such file" in str(_refused(f"file://{disk_dir}/none"))
    assert "Not a directory" in str(_refused(f"file://{disk_dir}/file"))
    assert "no file handles" in str(_refused("file:///proc"))


def _refused(source: str) -> SourceError:
    async def main() -> None:
        async with open_source(source):
            raise AssertionError("opened")

    with pytest.raises(SourceError) as caught:
        trio.run(main)
    return caught.value


def test_no_way_out(disk_dir: Path) -> None:
    inside = disk_dir / "a b"
    inside.mkdir()
    (disk_dir / "secret").write_text("secret")
    (inside / "link").symlink_to("../secret")
    (inside / "absolute").symlink_to("/")
    (inside / "mounted").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", inside / "mounted"], check=True, timeout=10)

    async def test(backend: Backend) -> None:
        for name in (b"link", b"absolute"):
            handle, attributes = await backend.lookup(backend.root, name, ROOT)
            assert attributes.type is FileType.SYMLINK
            await fails(errno.ENOTDIR, backend.lookup(handle, b"etc", ROOT))
            await fails(errno.ENOTDIR, backend.readdir(handle, 0, b"", ROOT))
            await fails(errno.EINVAL, backend.read(handle, 0, 10, ROOT))
            await fails(errno.EEXIST, backend.create(backend.root, name, 0o644, False, ROOT))
        await fails(errno.EXDEV, backend.lookup(backend.root, b"mounted", ROOT))
        assert await names(backend, backend.root) == [b"absolute", b"link"]
        await fails(errno.ESTALE, backend.getattr(b"", ROOT))
        await fails(errno.EINVAL, _swap_target(backend))

    async def main() -> None:
        async with open_source(f"file://{disk_dir}/a%20b") as backend:
            await test(backend)

    try:
        trio.run(main)
    finally:
        subprocess.run(["umount", inside / "mounted"], check=True, timeout=10)
    assert (disk_dir / "secret").read_text() == "secret"


async def _swap_target(backend: Backend) -> None:
    backend.swap_target(backend.root)


def test_what_programs_do_beside_it_is_seen(disk_dir: Path) -> None:
    async def main() -> None:
        async with open_source(f"file://{disk_dir}") as backend:
            handle, _ = await backend.create(backend.root, b"file", 0o600, True, ROOT)
            await backend.write(handle, 0, b"content", True, ROOT)
            assert (disk_dir / "file").read_bytes() == b"content"
            (disk_dir / "file").rename(disk_dir / "moved")
            os.truncate(disk_dir / "moved", 3)
            assert await backend.read(handle, 0, 10, ROOT) == b"con"
            (disk_dir / "moved").unlink()
            await fails(errno.ESTALE, backend.read(handle, 0, 10, ROOT))

    trio.run(main)


def test_what_programs_write_meanwhile_is_not_taken_for_ours(disk_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = os.pwritev

    def interrupted(*args: Any) -> int:
        with (disk_dir / "file").open("r+b") as file:
            file.write(b"theirs")
        return written(*args)

    async def main() -> None:
        async with open_source(f"file://{disk_dir}") as backend:
            handle, found = await backend.create(backend.root, b"file", 0o600, True, ROOT)
            node = Node(2, 1, handle, found, cached=found.version)
            monkeypatch.setattr(os, "pwritev", interrupted)
            node.wrote(await backend.write(handle, 10, b"ours", False, ROOT))
            assert node.cached != (await backend.getattr(handle, ROOT)).version

    trio.run(main)
