"""Every command of the documentation is run, in the order in which a reader meets it, on a private NFS server.

Names that stand for the reader's own (his server, the swap file's name, a loop device) are replaced; what cannot be
run here is listed with the reason, and the list must not be longer than the documentation needs.
"""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs
import pytest

from fuseswap.host import fusectl, rundir
from fuseswap.host.ganesha import GaneshaServer
from fuseswap.host.mounts import mount_at, unmount
from tests.docs.pages import PAGES, ROOT, Command, commands
from tests.kit.rescue import Leftovers

SIZE: Final = "16M"

NOT_RUN: Final = {
    r"make (setup|test|demo|check)\b.*": "it is how these tests are run, and tests/pressure/test_demo.py runs the demo",
    r"make (guest|torture|bench)\b.*": "takes many minutes; tests/guest and tests/bench run what it runs",
    r"\.venv/bin/python -m tests\.guest.*": "boots a machine; tests/guest/test_guest.py does it",
    r"bench/run\.py.*": "takes minutes; tests/bench/test_bench.py runs it with less",
    r"exportfs -ra": "there is no kernel NFS server here",
    r"journalctl .*": "there is no journal here",
    r"(\.venv/bin/python )?examples/(journey|deadlock)\.py.*": "tests/examples/test_examples.py runs it",
}
"""Commands, as regular expressions, that are not run here, and why."""

SYNOPSES: Final = {"docs/reference/cli.md"}
"""Pages whose commands are grammar; tests/cli/test_reference.py holds them to the parser."""


@attrs.define
class Reader:
    """Somebody who follows a page. What stands for his own is this machine's."""

    server: GaneshaServer
    directory: Path
    """In it the project looks as in its own directory."""
    name: str = attrs.field(factory=lambda: f"host1-{secrets.token_hex(3)}")

    @property
    def spare(self) -> str:
        return self.name.replace("host1", "spare")

    def run(self, command: str) -> None:
        """Run a line as it stands on the page."""
        if command.startswith("mount -t fusectl") and mount_at(str(fusectl.CONNECTIONS)):
            return  # as the page says
        text = self.translate(command)
        result = subprocess.run(
            ["sh", "-ec", text],
            cwd=self.directory,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, (text, result.stdout[-2000:], result.stderr)

    def translate(self, command: str) -> str:
        """The line with this machine's words."""
        text = command
        for place, name in (("other-server", self.spare), ("server", self.name)):
            text = text.replace(f"nfs://{place}/export/swap/host1", f"'{self.server.url(name)}'")
        text = re.sub(r"--size \S+", f"--size {SIZE}", text)
        if re.search(r"fuseswap +up .*", text) and "--size" not in text:
            text += f" --size {SIZE}"
        text = re.sub(r"\bhost1\b(?!-)", self.name, text)
        text = re.sub(r"--name spare\b", f"--name {self.spare}", text)
        text = re.sub(r"\bNAME\b", self.name, text)
        text = text.replace("/export/swap", str(self.directory / "export")).replace(
            "/etc/exports", str(self.directory / "exports")
        )
        if "/dev/loopN" in text:
            device = rundir.engine_device(self.name)
            assert device is not None
            text = text.replace("/dev/loopN", device.path)
        if "connections/39" in text:
            mounted = mount_at(str(rundir.engine_mountpoint(self.name)))
            assert mounted is not None
            text = text.replace("connections/39", f"connections/{mounted.minor}")
        return text

    def bring_up(self) -> None:
        """What a page takes for granted: swap that is on."""
        if not rundir.directory(self.name).exists():
            self.run("fuseswap up nfs://server/export/swap/host1 --size 1G --priority 32767")

    def make_file(self) -> None:
        """A swap file that has been made already."""
        self.run("fuseswap create nfs://server/export/swap/host1 --size 1G")

    def leave(self) -> None:
        """Take away what the page has left on, and nothing else."""
        # What `rm` of a page leaves where /run is no tmpfs.
        for counters in Path("/dev/shm").glob(f"fuseswap-{self.name}-*"):
            if not rundir.directory(self.name).exists():
                counters.unlink()
        for name in (self.name, self.spare):
            if rundir.directory(name).exists():
                subprocess.run([sys.executable, "-m", "fuseswap", "down", "--force", name], check=False, timeout=60)
                Leftovers.of(rundir.directory(name)).free()


BEFORE: Final[dict[str, Callable[[Reader], None]]] = {
    "fuseswap down --force NAME": Reader.bring_up,
    "fuseswap down NAME": Reader.bring_up,
    "fuseswap check nfs://server/export/swap/host1": Reader.make_file,
    "grep fuseswap-engine /proc/self/mountinfo": Reader.bring_up,
}
"""What must be so where a page's reader runs a line."""


@pytest.fixture
def reader(swap_lock: None, nfs_server: GaneshaServer, tmp_path: Path) -> Iterator[Reader]:
    for entry in ROOT.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    reader = Reader(nfs_server, tmp_path)
    controlled = mount_at(str(fusectl.CONNECTIONS)) is not None
    yield reader
    reader.leave()
    if not controlled and mount_at(str(fusectl.CONNECTIONS)) is not None:
        unmount(str(fusectl.CONNECTIONS), lazy=True)


def reason_not_to_run(command: Command) -> str:
    return next((why for pattern, why in NOT_RUN.items() if re.fullmatch(pattern, command.text)), "")


def commands_of(pages: Sequence[Path]) -> list[Command]:
    return [command for page in pages for command in commands(page) if str(page.relative_to(ROOT)) not in SYNOPSES]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands_of([page])], ids=lambda page: str(page.relative_to(ROOT))
)
def test_commands(page: Path, reader: Reader) -> None:
    for command in commands_of([page]):
        if not reason_not_to_run(command):
            if command.text in BEFORE:
                BEFORE[command.text](reader)
            reader.run(command.text)


def test_no_reason_is_without_a_command() -> None:
    texts = [command.text for command in commands_of(PAGES)]
    for pattern in NOT_RUN:
        assert any(re.fullmatch(pattern, text) for text in texts), pattern
    for text in BEFORE:
        assert text in texts
