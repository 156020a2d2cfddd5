"""Node ids and FORGET, against a model of the kernel's side."""

from attrs import evolve
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fuseswap.backends.protocol import Attributes, FileType
from fuseswap.filesystem.inodes import ROOT_ID, InodeTable, Node


def attributes(fileid: int) -> Attributes:
    return Attributes(FileType.REGULAR, 0o644, 1, 0, 0, 0, 0, (0, 0), fileid, 0, 0, 0)


_fileids = st.one_of(st.integers(0, 4), st.sampled_from([1 << 63, (1 << 64) - 1]))
_handles = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])
_names = st.sampled_from([b"x", b"y"])


class Kernel(RuleBasedStateMachine):
    """Is told of entries, forgets them, and never must see an id name two files."""

    def __init__(self) -> None:
        super().__init__()
        self.table = InodeTable(b"root", attributes(1))
        self.counts: dict[int, int] = {}
        self.nodes: dict[int, Node] = {}
        self.ever: dict[tuple[int, int], bytes] = {(ROOT_ID, 0): b"root"}

    @rule(handle=_handles, fileid=_fileids, name=_names)
    def lookup(self, handle: bytes, fileid: int, name: bytes) -> None:
        node = self.table.learn(handle, attributes(fileid))
        self.table.told(node, self.table.root, name)
        assert self.ever.setdefault((node.id, node.generation), handle) == handle
        self.counts[node.id] = self.counts.get(node.id, 0) + 1
        self.nodes[node.id] = node

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        if self.counts:
            id = data.draw(st.sampled_from(sorted(self.counts)))
            count = data.draw(st.integers(1, self.counts[id]))
            self.table.forget(id, count)
            self._drop(id, count)

    @rule(data=st.data())
    def hold_open(self, data: st.DataObject) -> None:
        if self.counts:
            node = self.nodes[data.draw(st.sampled_from(sorted(self.counts)))]
            self.table.opened(node)
            self.table.forget(node.id, self.counts[node.id])
            assert self.table.get(node.id) is node
            self.table.closed(node)
            self.table.release(node)
            assert self.table.get(node.id) is None
            self._drop(node.id, self.counts[node.id])

    @rule(id=st.sampled_from([0, ROOT_ID, 99, 1 << 63]), count=st.integers(1, 5))
    def forget_what_was_never_told(self, id: int, count: int) -> None:
        if id not in self.counts:
            self.table.forget(id, count)

    @invariant()
    def the_table_holds_what_the_kernel_knows(self) -> None:
        assert len(self.table) == len(self.counts) + 1
        for id, node in self.nodes.items():
            assert self.table.get(id) is node
            assert self.table.of_handle(node.handle) is node
            assert id != ROOT_ID
        assert self.table.get(ROOT_ID) is self.table.root

    def _drop(self, id: int, count: int) -> None:
        self.counts[id] -= count
        if self.counts[id] == 0:
            del self.counts[id], self.nodes[id]


TestKernel = Kernel.TestCase


def test_the_servers_fileid_is_the_inode_number_where_it_can_be() -> None:
    table = InodeTable(b"root", attributes(77))
    assert table.learn(b"a", attributes(5)).id == 5
    assert table.learn(b"b", attributes(5)).id >= 1 << 63
    assert table.learn(b"c", attributes(1)).id >= 1 << 63
    assert table.learn(b"d", attributes(0)).id >= 1 << 63
    assert table.root.id == ROOT_ID


def test_paths_follow_names() -> None:
    table = InodeTable(b"root", attributes(1))
    directory, file = table.learn(b"d", attributes(2)), table.learn(b"f", attributes(3))
    assert table.path_of(file) is None
    table.told(directory, table.root, b"d")
    table.told(file, directory, b"f")
    assert table.path_of(file) == b"d/f"
    assert table.by_name(directory, b"f") is file
    table.named(directory, table.root, b"e")
    assert table.path_of(file) == b"e/f"
    assert table.by_name(table.root, b"d") is None
    assert table.path_of(table.root) == b""
    # Another client's moves, seen at different times, may look like a ring.
    table.named(directory, file, b"ring")
    assert table.path_of(file) is None


def test_a_file_goes_by_another_of_its_names_when_one_goes() -> None:
    table = InodeTable(b"root", attributes(1))
    node = table.learn(b"a", evolve(attributes(2), nlink=3))
    for name in (b"first", b"second", b"third"):
        table.told(node, table.root, name)

    assert table.path_of(node) == b"third"
    table.unnamed(table.root, b"second")
    table.unnamed(table.root, b"third")
    assert table.path_of(node) == b"first"
    assert table.by_name(table.root, b"third") is None
    table.unnamed(table.root, b"first")
    assert table.path_of(node) is None
    table.forget(node.id, 3)
    assert len(table) == 1
