"""Extended attributes: the control protocol of swap (units.py names them), and no others.

NFSv3 has none. The four names begin with "trusted.", which the VFS gives to CAP_SYS_ADMIN alone.
"""

import errno
import json
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import InodeT, XAttrNameT

from fuseswap.filesystem.serving import Serving
from fuseswap.filesystem.translate import answers_errno
from fuseswap.swap.rules import Operation
from fuseswap.swap.target import ActivationRequest, activation_to_json
from fuseswap.swap.units import XATTR_ACTIVATE, XATTR_ACTIVATION, XATTR_CHECK, XATTR_DEACTIVATE


class ControlOperations(Serving):
    """GETXATTR, SETXATTR, LISTXATTR, REMOVEXATTR."""

    @answers_errno
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        node = self.node(inode)
        if name == XATTR_CHECK.encode():
            return (await self.active.report(node.handle)).encode()
        if name == XATTR_ACTIVATION.encode():
            activation = self.active.activation_of(node.handle)
            if activation is None:
                raise OSError(errno.ENODATA, "not active")
            return activation_to_json(activation).encode()
        raise OSError(errno.EOPNOTSUPP, "NFSv3 has no extended attributes")

    @answers_errno
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        node = self.node(inode)
        if name == XATTR_ACTIVATE.encode():
            self.active.check(Operation.ACTIVATE, node.handle)
            request = _request(value)
            # As inode_drain_writes does: what shared mappings have dirtied reaches the file before it is swap.
            await trio.to_thread.run_sync(_drop_pages, inode)
            await self.active.activate(node.handle, request, self.inodes.path_of(node), lambda: self.drained(node))
        elif name == XATTR_DEACTIVATE.encode():
            await self.active.deactivate(node.handle)
            node.cached = None
        else:
            raise OSError(errno.EOPNOTSUPP, "NFSv3 has no extended attributes")

    @answers_errno
    async def listxattr(self, inode: InodeT, ctx: pyfuse3.RequestContext) -> Sequence[XAttrNameT]:
        self.node(inode)
        return ()

    @answers_errno
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: pyfuse3.RequestContext) -> None:
        raise OSError(errno.EOPNOTSUPP, "NFSv3 has no extended attributes")


def _request(value: bytes) -> ActivationRequest:
    try:
        plain = json.loads(value)
        request = ActivationRequest(**plain)
    except (ValueError, TypeError):
        raise OSError(errno.EINVAL, "not an activation request") from None
    texts = (request.machine_id, request.boot_id, request.host)
    if not all(isinstance(text, str) for text in texts) or not isinstance(request.steal, bool):
        raise OSError(errno.EINVAL, "not an activation request")
    return request


def _drop_pages(inode: InodeT) -> None:
    pyfuse3.invalidate_inode(inode)
