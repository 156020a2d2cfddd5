"""What the kernel knows: node ids, and how often it was told each.

A node stands for one file handle of the backend, under whatever names. Its id is the server's fileid where
that is free, so that people see the server's inode numbers; fileid 1 (the root's id in FUSE) and the id of
another living node are replaced by ids of our own. The kernel counts every entry it was told and returns the
counts with FORGET; a node lives as long as its count, and the pair of id and generation never names another.
"""

import itertools
from typing import Final

from attrs import define, field

from fuseswap.backends.protocol import Attributes, FileType, Handle, Version, Written
from fuseswap.filesystem.errseq import ErrorSequence

ROOT_ID: Final = 1

_OWN_IDS: Final = 1 << 63
"""Where our own ids begin; a fileid of the server that is so large gets one of them too."""

NO_VERSION: Final = Version(-1, -1, -1)
"""No file has it."""

_NAMES_MAX: Final = 16
_DEPTH_MAX: Final = 2048
"""Components of a path: PATH_MAX / 2."""


@define(eq=False)
class Node:
    """A file that the kernel knows, or that is open."""

    id: int
    generation: int
    handle: Handle
    attributes: Attributes
    """As the backend told them last."""
    lookups: int = 0
    opened: int = 0
    """How many open files it has."""
    parent: "Node | None" = None
    """With `name`, where it was seen last."""
    name: bytes = b""
    elsewhere: "list[tuple[Node, bytes]]" = field(factory=list)
    """Its other names, as far as they were seen (at most _NAMES_MAX); the latest is the last."""
    hidden: tuple[Handle, bytes] | None = None
    """Directory and name under which a removed file lives on while it is open."""
    cached: Version | None = None
    """The state of the file that the kernel's page cache shows; None before it was opened."""
    wb_err: ErrorSequence = field(factory=ErrorSequence)
    """Its writes that failed after they were answered."""

    def wrote(self, written: Written) -> None:
        """A write of ours, which the kernel's pages have already. What others changed before it they have not."""
        if self.cached is not None:
            ours = written.after is not None and written.before == self.cached
            self.cached = written.after.version if written.after is not None and ours else NO_VERSION


class InodeTable:
    """All nodes."""

    def __init__(self, root: Handle, attributes: Attributes) -> None:
        self._generations = itertools.count(1)
        self._own_ids = itertools.count(_OWN_IDS)
        self.root = Node(ROOT_ID, 0, root, attributes, lookups=1)
        self._by_id = {ROOT_ID: self.root}
        self._by_handle = {root: self.root}
        self._by_name: dict[tuple[int, bytes], Node] = {}
        self.open_files = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, id: int) -> Node | None:
        """The node of this id, if the kernel may still name it."""
        return self._by_id.get(id)

    def of_handle(self, handle: Handle) -> Node | None:
        """The node of this handle, if it has one."""
        return self._by_handle.get(handle)

    def learn(self, handle: Handle, attributes: Attributes) -> Node:
        """The node of a handle, made if need be. Count it with `told` when the kernel is told."""
        node = self._by_handle.get(handle)
        if node is None:
            id = attributes.fileid
            if not ROOT_ID < id < _OWN_IDS or id in self._by_id:
                id = next(self._own_ids)
            node = Node(id, next(self._generations), handle, attributes)
            self._by_id[id] = self._by_handle[handle] = node
        else:
            node.attributes = attributes
        return node

    def told(self, node: Node, parent: Node, name: bytes) -> None:
        """The kernel gets an entry that names `node`."""
        node.lookups += 1
        self.named(node, parent, name)

    def named(self, node: Node, parent: Node, name: bytes) -> None:
        """`node` was seen, or put, under this name."""
        if (node.parent, node.name) != (parent, name):
            if node.parent is not None:
                node.elsewhere.append((node.parent, node.name))
                # A file with one link was moved; so was a directory, which has one name whatever its count.
                many = node.attributes.nlink > 1 and node.attributes.type is not FileType.DIRECTORY
                while len(node.elsewhere) > (_NAMES_MAX if many else 0):
                    self._drop_name(node, *node.elsewhere.pop(0))
            node.elsewhere = [known for known in node.elsewhere if known != (parent, name)]
            node.parent, node.name = parent, name
        self._by_name[parent.id, name] = node

    def unnamed(self, parent: Node, name: bytes) -> None:
        """The name has gone; a node that had it goes by another of its names, if one was seen."""
        node = self._by_name.pop((parent.id, name), None)
        if node is None:
            return
        if (node.parent, node.name) != (parent, name):
            node.elsewhere = [known for known in node.elsewhere if known != (parent, name)]
        elif node.elsewhere:
            node.parent, node.name = node.elsewhere.pop()
        else:
            node.parent, node.name = None, b""

    def by_name(self, parent: Node, name: bytes) -> Node | None:
        """The node that was seen last under this name. Another client may have put another file there since."""
        return self._by_name.get((parent.id, name))

    def forget(self, id: int, lookups: int) -> None:
        """FORGET: the kernel gives back `lookups` entries."""
        node = self._by_id.get(id)
        if node is not None and node is not self.root:
            node.lookups = max(0, node.lookups - lookups)
            self.release(node)

    def opened(self, node: Node) -> None:
        """One open file more."""
        node.opened += 1
        self.open_files += 1

    def closed(self, node: Node) -> None:
        """One open file less."""
        node.opened -= 1
        self.open_files -= 1

    def release(self, node: Node) -> None:
        """Drop a node that nobody needs any longer."""
        if node.lookups == 0 and node.opened == 0 and self._by_id.get(node.id) is node:
            del self._by_id[node.id]
            del self._by_handle[node.handle]
            for parent, name in (*node.elsewhere, (node.parent, node.name)):
                if parent is not None:
                    self._drop_name(node, parent, name)

    def _drop_name(self, node: Node, parent: Node, name: bytes) -> None:
        if self._by_name.get((parent.id, name)) is node:
            del self._by_name[parent.id, name]

    def path_of(self, node: Node) -> bytes | None:
        """The path below the mount point by the names seen last, without a leading slash."""
        parts: list[bytes] = []
        while node is not self.root:
            # Names seen at different times may form a ring, when another client moves directories.
            if node.parent is None or len(parts) == _DEPTH_MAX:
                return None
            parts.append(node.name)
            node = node.parent
        return b"/".join(reversed(parts))
