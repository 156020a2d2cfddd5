"""What a backend knows of a file, in the words of swap_activate."""

import os

from fuseswap.backends.protocol import Backend, Caller, FileType, Handle
from fuseswap.swap.activation import FileFacts
from fuseswap.swap.target import NfsTarget
from fuseswap.swap.units import PAGE_SIZE


async def gather_facts(backend: Backend, handle: Handle, caller: Caller, *, active: bool) -> FileFacts:
    """Fresh from the backend; nothing of what the kernel or we remember. Errors as the backend's `getattr`."""
    attributes = await backend.getattr(handle, caller)
    regular = attributes.type is FileType.REGULAR
    try:
        page = await backend.read(handle, 0, PAGE_SIZE, caller) if regular else None
    except OSError:
        page = None
    try:
        target = backend.swap_target(handle)
    except OSError:
        target = None
    limits = (backend.read_bytes_max, backend.write_bytes_max)
    if isinstance(target, NfsTarget):
        limits = (target.read_bytes_max, target.write_bytes_max)
    return FileFacts(
        mode=attributes.type.value | attributes.mode,
        size_bytes=attributes.size,
        allocated_bytes=attributes.used,
        header_page=page,
        read_bytes_max=limits[0],
        write_bytes_max=limits[1],
        active=active,
        has_swap_rw=target is not None,
        read_only=not await backend.access(handle, os.W_OK, caller),
        nlink=attributes.nlink,
    )
