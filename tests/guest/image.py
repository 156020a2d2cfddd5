"""What the guest boots: a Debian kernel, an initramfs that finds the root, and a root made of this machine.

Nothing is installed: the kernel is a Debian package, downloaded and unpacked; the root file system has this
machine's busybox, util-linux, Python and libraries, each at its place, and fuseswap with the packages that it
needs in /guest, wherever the repository and its virtual environment lie here.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from attrs import frozen
from packaging.requirements import Requirement

from fuseswap.host.bounded import HostError

REPOSITORY: Final = Path(__file__).resolve().parents[2]
CACHE: Final = REPOSITORY / "build/guest"
KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
SCRATCH_BYTES: Final = 256 << 20

_MODULES: Final = ("virtio_pci", "virtio_blk", "virtio_net", "qemu_fw_cfg", "fuse", "loop")
_TOOLS: Final = ("losetup", "mkswap", "swapon", "swapoff", "mount", "umount", "setpriv", "choom", "nice", "swaplabel")
_BUSYBOX: Final = "/bin/busybox"
_LOADER: Final = "/lib64/ld-linux-x86-64.so.2"
_CODE: Final = "guest"
"""The folder of the guest's root that PYTHONPATH names."""
_ENTRANCES: Final = (
    *("fuseswap.cli.updown", "fuseswap.cli.status", "fuseswap.cli.daemon"),
    *("fuseswap.engine.main", "fuseswap.engine.supervisor", "fuseswap.backends.nfs", "tests.guest.inside"),
)
"""What the guest runs imports these, sooner or later."""
_COMPILED: Final = shutil.ignore_patterns("__pycache__")
_LEFT_OUT: Final = shutil.ignore_patterns(
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip"),
    *("lib2to3", "pydoc_data", "config-*", "*.a"),
)

_INIT: Final = """#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r module; do insmod "/modules/$module"; done </modules/order
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do sleep 0.1; done
mount -t ext4 -o ro /dev/vda /root
for point in dev proc sys; do mount -o move /$point /root/$point; done
exec switch_root /root /guest/start
"""

_START: Final = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin PYTHONPATH=/guest PYTHONDONTWRITEBYTECODE=1 LC_ALL=C.UTF-8 HOME=/root
for point in /run /tmp /var/tmp; do mount -t tmpfs -o mode=1777,size=8m tmpfs $point; done
mount -t ext4 /dev/vdb /scratch
ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
@PYTHON@ -m tests.guest.inside
echo "@@RC $?" >/dev/ttyS1
poweroff -f
"""


@frozen
class Kernel:
    """An unpacked kernel package."""

    image: Path
    modules: tuple[Path, ...]
    """What the guest needs, in the order of loading."""


def kernel(package: str = KERNEL_PACKAGE) -> Kernel:
    """The kernel that a Debian metapackage stands for; downloaded once."""
    directory = CACHE / package
    if not directory.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            unpacked = _unpack(package, Path(temporary))
            unpacked.rename(directory)
    (modules,) = directory.glob("lib/modules/*")
    loads: dict[Path, None] = {}
    for module in _MODULES:
        lines = _output("modprobe", "-d", directory, "-S", modules.name, "--show-depends", module).splitlines()
        loads.update((Path(words[1]), None) for line in lines if (words := line.split())[0] == "insmod")
    return Kernel(directory / "boot" / f"vmlinuz-{modules.name}", tuple(loads))


def _unpack(package: str, temporary: Path) -> Path:
    found = re.search(r"Depends: (linux-image-\S+)", _output("apt-cache", "depends", package))
    # A metapackage depends on the package with the files; any other name has them itself.
    concrete = found[1] if found else package
    _output("apt-get", "download", "-qq", concrete, cwd=temporary)
    (archive,) = temporary.glob("*.deb")
    unpacked = temporary / "unpacked"
    _output("dpkg", "-x", archive, unpacked)
    (modules,) = unpacked.glob("lib/modules/*")
    _output("depmod", "-b", unpacked, modules.name)
    return unpacked


def make_initramfs(kernel: Kernel, path: Path) -> None:
    """A cpio archive with busybox, the modules and `_INIT`."""
    with tempfile.TemporaryDirectory() as temporary:
        stage = Path(temporary)
        for name in ("bin", "dev", "proc", "sys", "root", "modules"):
            (stage / name).mkdir()
        shutil.copy2(which("busybox"), stage / "bin/busybox")
        for applet in ("sh", "mount", "insmod", "sleep", "switch_root"):
            (stage / "bin" / applet).symlink_to("busybox")
        for module in kernel.modules:
            shutil.copy2(module, stage / "modules")
        (stage / "modules/order").write_text("".join(f"{module.name}\n" for module in kernel.modules))
        _write_script(stage / "init", _INIT)
        names = "".join(f"{found.relative_to(stage)}\n" for found in sorted(stage.rglob("*")))
        with path.open("wb") as archive:
            subprocess.run(
                ["busybox", "cpio", "--quiet", "-o", "-H", "newc"],
                input=names.encode(),
                stdout=archive,
                cwd=stage,
                check=True,
            )


def make_root(path: Path) -> None:
    """An ext4 image with all that `inside` runs."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as temporary:
        stage = Path(temporary)
        _make_skeleton(stage)
        _copy_python(stage)
        _copy_code(stage)
        for tool in _TOOLS:
            _copy(stage, which(tool))
        _copy_libraries(stage)
        _try_imports(stage)
        _make_ext4(path, _size_bytes(stage) + (32 << 20), stage)


def make_scratch(path: Path) -> None:
    """An empty ext4 image for what the guest writes."""
    _make_ext4(path, SCRATCH_BYTES)


def _make_ext4(path: Path, size_bytes: int, content: Path | None = None) -> None:
    with path.open("wb") as image:
        image.truncate(size_bytes)
    filled = ("-d", content) if content else ()
    _output("mke2fs", "-q", "-t", "ext4", "-m", "0", *filled, path)


def _make_skeleton(stage: Path) -> None:
    for name in ("bin", "sbin", "lib", "lib64"):
        (stage / "usr" / name).mkdir(parents=True)
        (stage / name).symlink_to(f"usr/{name}")
    for name in ("dev", "proc", "sys", "run", "tmp", "var/tmp", "root", "etc", "scratch", "guest/tests"):
        (stage / name).mkdir(parents=True, exist_ok=True)
    shutil.copy2(which("busybox"), stage / "usr/bin/busybox")
    for applet in _output("busybox", "--list").split():
        if applet != "busybox" and applet not in _TOOLS:
            (stage / "usr/bin" / applet).symlink_to("busybox")
    (stage / "etc/machine-id").write_text("f5e5a900d0000000000000000000face\n")
    (stage / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (stage / "etc/group").write_text("root:x:0:\n")
    (stage / "etc/mtab").symlink_to("/proc/self/mounts")
    _write_script(stage / "guest/start", _START.replace("@PYTHON@", str(_python())))


def _python() -> Path:
    """The interpreter itself, which a virtual environment only links to."""
    return Path(sys.executable).resolve()


def _copy_python(stage: Path) -> None:
    _copy(stage, _python())
    for name in ("stdlib", "platstdlib"):
        library = Path(sysconfig.get_path(name, vars=_base()))
        shutil.copytree(library, _staged(stage, library), ignore=_LEFT_OUT, symlinks=True, dirs_exist_ok=True)


def _copy_code(stage: Path) -> None:
    """fuseswap, this folder, and the packages that fuseswap needs."""
    code = stage / _CODE
    for distribution in _requirements("fuseswap"):
        for file in distribution.files or ():
            source = Path(str(distribution.locate_file(file)))
            # Scripts lie outside of site-packages.
            if ".." not in file.parts and source.exists():
                _copy_to(code / file, source)
    shutil.copytree(REPOSITORY / "fuseswap", code / "fuseswap", ignore=_COMPILED)
    shutil.copytree(REPOSITORY / "tests/guest", code / "tests/guest", ignore=_COMPILED)
    shutil.copy2(REPOSITORY / "tests/__init__.py", code / "tests")
    # The guest's root is read-only, and compiling there takes seconds at each start of a process.
    _output(
        *(sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"),
        *("-s", stage, code),
    )


def _base() -> dict[str, str]:
    return {"installed_base": sys.base_prefix, "installed_platbase": sys.base_exec_prefix}


def _requirements(name: str) -> list[importlib.metadata.Distribution]:
    """All packages that `name` needs, itself left out."""
    found: dict[str, importlib.metadata.Distribution] = {}
    pending = [name]
    while pending:
        for requirement in map(Requirement, importlib.metadata.requires(pending.pop()) or ()):
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if wanted and requirement.name not in found:
                found[requirement.name] = importlib.metadata.distribution(requirement.name)
                pending.append(requirement.name)
    return list(found.values())


def _copy_libraries(stage: Path) -> None:
    """What ldd names for every program and shared object of the stage, and the cache that says where it lies."""
    programs = []
    for staged in stage.rglob("*"):
        if staged.is_file() and not staged.is_symlink() and _is_elf(staged):
            # As it lies on this machine, if it does, so that its RUNPATH leads where it does here.
            original = Path("/", staged.relative_to(stage))
            programs.append(original if original.exists() else staged)
    # What ldd does not find is not judged here: Python's modules for what this machine does not have end in an
    # error, and are not missed. `_try_imports` sees the rest.
    listing = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    libraries = {Path(found) for found in re.findall(r"=> (/\S+) \(", listing)}
    for library in (*sorted(libraries), Path(_LOADER)):
        if not library.is_relative_to(stage):
            _copy(stage, library)
    # This machine may know folders that are none of the loader's own, as /usr/local/lib.
    folders = sorted({library.parent for library in libraries})
    (stage / "etc/ld.so.conf").write_text("".join(f"{folder}\n" for folder in folders))
    _output("ldconfig", "-r", stage)


def _try_imports(stage: Path) -> None:
    """Let the stage's own Python import what the guest will run: a root that lacks something is refused here."""
    command = ("chroot", stage, _python(), "-c", f"import {', '.join(_ENTRANCES)}")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"/{_CODE}", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise HostError(f"the guest's root cannot run what it has to: {last} (`make setup` may mend that)")


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _copy(stage: Path, path: Path) -> None:
    """The file at its own place below `stage`, and what its links lead to."""
    staged = _staged(stage, path)
    if staged.is_symlink() or staged.exists():
        return
    staged.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        staged.symlink_to(path.readlink())
        _copy(stage, path.parent / path.readlink())
    else:
        shutil.copy2(path, staged)


def _copy_to(target: Path, source: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def _staged(stage: Path, path: Path) -> Path:
    return stage / path.relative_to("/")


def _write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def which(name: str) -> Path:
    """Where a program is. HostError if it is missing."""
    found = shutil.which(name)
    if found is None:
        raise HostError(f"{name} is not installed: `sh tools/packages-guest` installs it")
    return Path(found)


def _size_bytes(directory: Path) -> int:
    # Each file takes whole blocks.
    sizes: Iterable[int] = (path.lstat().st_size for path in directory.rglob("*"))
    return sum(size // 4096 * 4096 + 4096 for size in sizes)


def _output(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode:
        raise HostError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
