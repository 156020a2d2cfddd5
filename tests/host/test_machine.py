"""This machine's identity and memory."""

import re

import pytest

from fuseswap.host import machine
from fuseswap.host.bounded import HostError


def test_identity() -> None:
    assert re.fullmatch("[0-9a-f]{32}", machine.machine_id())
    assert re.fullmatch("[0-9a-f-]{36}", machine.boot_id())
    assert machine.memory_available_bytes() > 1 << 20


def test_a_machine_without_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_MACHINE_ID_FILES", ("/no/such/file",))
    with pytest.raises(HostError, match="systemd-machine-id-setup"):
        machine.machine_id()


def test_this_machine_can_swap() -> None:
    machine.require_root()
    machine.require_fuse()
    machine.require_loop()


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(HostError, match="not root"):
        machine.require_root()
