"""A swap file in use, as steps: directory, mount, activation, engine, loop device, swap.

Every do and undo looks at what is there: /proc/swaps, losetup, the mount table, the counters. Nothing is
remembered between steps, so `down` undoes what another `up` did.
"""

from collections.abc import Callable

from attrs import frozen

from fuseswap.cli import mount, ordinary
from fuseswap.cli.check import explain_refusal
from fuseswap.cli.interrupts import Interrupts
from fuseswap.cli.output import say
from fuseswap.cli.steps import Step
from fuseswap.cli.swapping_off import swap_off
from fuseswap.engine.launch import launch
from fuseswap.host import processes, rundir, xattr
from fuseswap.host.bounded import HostError
from fuseswap.host.loop import detach
from fuseswap.host.mounts import mount_at, unmount
from fuseswap.host.swap import swapon
from fuseswap.swap.units import XATTR_ACTIVATE

_END_SECONDS = 10.0


@frozen
class Plan:
    """What shall be in use, and how."""

    name: str
    file: str
    """The swap file on its ordinary mount."""
    source: str | None = None
    """What is to be mounted at NAME/fs; None if the file lies on a mount that is there."""
    priority: int | None = None
    steal: bool = False


def build_steps(plan: Plan, interrupts: Interrupts) -> list[Step]:
    """What `on` and `up` do; undone as `remove_steps` does it."""
    name = plan.name
    dos: list[Callable[[], None]] = [
        lambda: rundir.directory(name).mkdir(mode=0o755, parents=True, exist_ok=True),
        lambda: _mount(plan),
        lambda: _activate(plan, interrupts),
        lambda: _start_engine(plan, interrupts),
        lambda: _attach(name),
        lambda: _swap_on(plan),
    ]
    undone = remove_steps(name, force=False)
    return [Step(step.what, do, step.undo) for step, do in zip(undone, dos, strict=True)]


def remove_steps(name: str, *, force: bool) -> list[Step]:
    """What `off` and `down` undo, the last first."""

    def nothing() -> None:
        return

    undos: list[tuple[str, Callable[[], None]]] = [
        ("directory", lambda: _remove_directory(name)),
        ("mount", lambda: ordinary.unmount_own(name, force=force)),
        ("activation", lambda: ordinary.deactivate(name, force=force)),
        ("engine", lambda: _end_engine(name, force=force)),
        ("loop device", lambda: _detach(name)),
        ("swap", lambda: swap_off(name, force=force)),
    ]
    return [Step(what, nothing, undo) for what, undo in undos]


def _mount(plan: Plan) -> None:
    if plan.source is None:
        return
    point = rundir.filesystem_mountpoint(plan.name)
    point.mkdir(mode=0o700, exist_ok=True)
    say(f"{plan.name}: mounting {plan.source}")
    mount.start(plan.source, str(point), "")


def _activate(plan: Plan, interrupts: Interrupts) -> None:
    request = ordinary.this_machine(steal=plan.steal)
    say(f"{plan.name}: activating {plan.file}")
    with interrupts.deferred():
        try:
            if ordinary.is_stale(plan.file):
                ordinary.deactivate_file(plan.file)
            value = ordinary.request_of_this_machine(steal=plan.steal)
            xattr.write(plan.file, XATTR_ACTIVATE, value, seconds=ordinary.FILE_SECONDS)
        except OSError as error:
            raise explain_refusal(plan.file, error, request) from None


def _start_engine(plan: Plan, interrupts: Interrupts) -> None:
    activation = ordinary.activation_of(plan.file)
    if activation is None:
        raise HostError(f"{plan.file} is no longer active")
    say(f"{plan.name}: starting the engine")
    with interrupts.deferred():
        launch(plan.name, activation)


def _end_engine(name: str, *, force: bool) -> None:
    """Unmount the engine's file, upon which engine and supervisor leave.

    An engine that stays serves somebody still: HostError, and only with `force` it is killed.
    """
    counters = rundir.read_counters(name)
    found: list[processes.Process | None] = []
    if counters is not None:
        found = [processes.find_engine(counters.words), processes.find_supervisor(counters.words)]
    try:
        while mount_at(str(rundir.engine_mountpoint(name))) is not None:
            unmount(str(rundir.engine_mountpoint(name)))
        for process in found:
            if process is None or process.wait(_END_SECONDS):
                continue
            if not force:
                raise HostError(
                    f"{name}: something still holds the engine's file (process {process.pid} does not end): see"
                    f" losetup -l and cat /proc/swaps, or: fuseswap down --force {name}"
                )
            process.kill()
            process.wait(_END_SECONDS)
    finally:
        for process in found:
            if process is not None:
                process.close()


def _attach(name: str) -> None:
    device = rundir.attach_engine(name)
    say(f"{name}: {device.path} with direct I/O")


def _detach(name: str) -> None:
    device = rundir.engine_device(name)
    if device is not None:
        detach(device.path)
    if rundir.engine_device(name) is not None:
        raise HostError(f"{device.path if device else name} is in use by another program: close it")


def _swap_on(plan: Plan) -> None:
    device = rundir.engine_device(plan.name)
    if device is None:
        raise HostError(f"{plan.name}: its loop device has gone")
    swapon(device.path, plan.priority)


def _remove_directory(name: str) -> None:
    directory = rundir.directory(name)
    rundir.remove_counters(name)
    rundir.remove_mark(name)
    for path in (rundir.filesystem_mountpoint(name), rundir.engine_mountpoint(name), directory):
        try:
            path.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}") from None
