"""The one-file mount: a state machine of opens and releases, and every opcode with any body."""

import errno
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fuseswap.engine.fuse_wire import FILE_NODE, ROOT_NODE, FuseRequest, MalformedRequest
from fuseswap.engine.private_file import PrivateFile, UnsupportedKernel

NAME = b"swapfile"
SIZE = 64 << 20
TRANSFER = 1 << 20
NODES = st.sampled_from([0, ROOT_NODE, FILE_NODE, 3, 2**64 - 1])
ACCESS = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, 3])


def new_file() -> PrivateFile:
    return PrivateFile(NAME, SIZE, TRANSFER)


def ask(file: PrivateFile, opcode: int, body: bytes = b"", *, node: int = FILE_NODE) -> tuple[int, bytes]:
    """errno (0 for success) and body of the answer."""
    answer = file.answer(FuseRequest(opcode, 9, node, body))
    assert answer is not None
    length, error, unique = struct.unpack_from("<IiQ", answer)
    assert (length, unique) == (len(answer), 9)
    assert error == 0 or len(answer) == 16
    return -error, answer[16:]


def open_file(file: PrivateFile, flags: int, *, node: int = FILE_NODE) -> tuple[int, int]:
    """errno and handle."""
    error, body = ask(file, 14, struct.pack("<II", flags, 0), node=node)
    if error:
        return error, 0
    handle, open_flags, backing = struct.unpack("<QIi", body)
    assert (open_flags, backing) == (0x61, 0)
    return 0, handle


class OpenFiles(RuleBasedStateMachine):
    """The kernel opens and closes; the model knows who is open and who may write."""

    def __init__(self) -> None:
        super().__init__()
        self.file = new_file()
        self.open: set[int] = set()
        self.ever: set[int] = {0}
        self.writer = 0

    @rule(node=NODES, access=ACCESS, direct=st.booleans(), truncate=st.booleans(), other=st.integers(0, 2**31))
    def opens(self, node: int, access: int, direct: bool, truncate: bool, other: int) -> None:
        flags = other & ~(os.O_ACCMODE | os.O_DIRECT | os.O_TRUNC)
        flags |= access | os.O_DIRECT * direct | os.O_TRUNC * truncate
        error, handle = open_file(self.file, flags, node=node)
        if node == ROOT_NODE:
            wanted = errno.EISDIR
        elif node != FILE_NODE:
            wanted = errno.ENOENT
        elif truncate or (access and self.writer):
            wanted = errno.ETXTBSY
        else:
            wanted = errno.EINVAL if access and not direct else 0
        assert error == wanted
        if not error:
            assert handle not in self.ever
            self.ever.add(handle)
            self.open.add(handle)
            if access:
                self.writer = handle

    @rule(data=st.data())
    def releases(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(sorted(self.ever)))
        assert ask(self.file, 18, struct.pack("<QIIQ", handle, 0, 0, 0)) == (0, b"")
        self.open.discard(handle)
        if handle == self.writer:
            self.writer = 0

    @rule(handle=st.integers(0, 2**64 - 1))
    def releases_what_never_was(self, handle: int) -> None:
        if handle not in self.ever:
            assert ask(self.file, 18, struct.pack("<QIIQ", handle, 0, 0, 0)) == (0, b"")

    @rule(opcode=st.sampled_from([3, 17, 20, 25, 27, 29]))
    def asks_something_else(self, opcode: int) -> None:
        assert ask(self.file, opcode, bytes(24))[0] == 0

    @invariant()
    def one_writer(self) -> None:
        assert self.file.write_handle == self.writer
        assert {handle for handle in self.ever if self.file.is_open(handle)} == self.open
        assert not self.file.is_open(2**63)


TestOpenFiles = OpenFiles.TestCase
TestOpenFiles.settings = settings(max_examples=60, stateful_step_count=30)


@given(
    opcode=st.integers(0, 60) | st.integers(0, 2**32 - 1),
    unique=st.integers(0, 2**64 - 1),
    node=NODES,
    body=st.binary(max_size=120) | st.just(NAME + b"\0"),
)
@settings(max_examples=1500)
def test_every_opcode_with_any_body(opcode: int, unique: int, node: int, body: bytes) -> None:
    try:
        answer = new_file().answer(FuseRequest(opcode, unique, node, body))
    except MalformedRequest as error:
        assert error.unique == unique
    except UnsupportedKernel:
        assert opcode == 26
    else:
        if answer is None:
            assert opcode in (2, 36, 42)
            return
        length, error_number, answered = struct.unpack_from("<IiQ", answer)
        assert (length, answered) == (len(answer), unique)
        assert -512 < error_number <= 0
        assert error_number == 0 or length == 16


def test_lookup_knows_one_name() -> None:
    file = new_file()

    error, body = ask(file, 1, NAME + b"\0", node=ROOT_NODE)
    assert error == 0
    assert struct.unpack_from("<Q", body) == (FILE_NODE,)
    assert struct.unpack_from("<QQQ", body, 40) == (FILE_NODE, SIZE, SIZE // 512)
    assert ask(file, 1, b"swapfil\0", node=ROOT_NODE)[0] == errno.ENOENT
    assert ask(file, 1, NAME + b"\0", node=FILE_NODE)[0] == errno.ENOENT


def test_getattr_knows_the_root_and_the_file() -> None:
    file = new_file()

    for node, mode in ((ROOT_NODE, 0o040700), (FILE_NODE, 0o100600)):
        error, body = ask(file, 3, bytes(16), node=node)
        assert error == 0
        assert struct.unpack_from("<I", body, 16 + 60) == (mode,)
    assert ask(file, 3, bytes(16), node=3)[0] == errno.ENOENT


@pytest.mark.parametrize(
    ("opcode", "wanted"),
    [
        (43, errno.EOPNOTSUPP),  # FALLOCATE
        *((opcode, errno.EPERM) for opcode in (4, 6, 8, 9, 10, 11, 12, 13, 35, 45)),
        *((opcode, errno.ENOSYS) for opcode in (5, 21, 22, 23, 24, 34, 37, 39, 46, 47)),
    ],
)
def test_what_changes_the_file_or_its_name_is_refused(opcode: int, wanted: int) -> None:
    assert ask(new_file(), opcode, bytes(120), node=FILE_NODE)[0] == wanted


def test_a_truncate_is_text_busy_and_another_setattr_not_permitted() -> None:
    for valid in range(1 << 10):
        wanted = errno.ETXTBSY if valid & 1 << 3 else errno.EPERM
        assert ask(new_file(), 4, struct.pack("<I84x", valid))[0] == wanted


@given(offset=st.integers(0, 2**64 - 1), size=st.integers(0, 2**32 - 1))
def test_readdir_has_one_entry_once(offset: int, size: int) -> None:
    error, body = ask(new_file(), 28, struct.pack("<QQIIQII", 0, offset, size, 0, 0, 0, 0), node=ROOT_NODE)

    assert error == 0
    assert len(body) <= size
    assert bool(body) == (offset == 0 and size >= 32)
    if body:
        assert body[24 : 24 + len(NAME)] == NAME


OFFERED = 0x73FFFFFB  # what kernel 6.18 offers


def init(major: int, minor: int, flags: int) -> bytes:
    return struct.pack("<IIIII44x", major, minor, 131072, flags, 0)


@given(flags=st.integers(0, 2**32 - 1), minor=st.integers(31, 99))
def test_init_takes_no_flag_that_was_not_offered(flags: int, minor: int) -> None:
    required = 1 << 5 | 1 << 15 | 1 << 22
    if flags & required != required:
        with pytest.raises(UnsupportedKernel, match="lacks"):
            ask(new_file(), 26, init(7, minor, flags))
        return
    error, body = ask(new_file(), 26, init(7, minor, flags))
    taken = struct.unpack_from("<I", body, 12)[0]
    assert error == 0
    assert taken & ~flags == 0
    assert taken & required == required


def test_init_with_this_kernel_s_offer() -> None:
    error, body = ask(new_file(), 26, init(7, 45, OFFERED))

    assert error == 0
    assert struct.unpack_from("<IIII", body) == (7, 45, 0, 0x608029)
    assert struct.unpack_from("<HHIIH", body, 16) == (256, 192, TRANSFER, 1, TRANSFER // 4096)


@pytest.mark.parametrize("version", [(6, 99), (8, 0), (7, 30), (7, 0)])
def test_old_and_unknown_protocols_are_refused(version: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedKernel, match=r"7\.31 is needed"):
        ask(new_file(), 26, init(*version, OFFERED))


@pytest.mark.parametrize("opcode", [2, 36, 42])
def test_some_messages_have_no_answer(opcode: int) -> None:
    assert new_file().answer(FuseRequest(opcode, 9, 2, bytes(8))) is None
