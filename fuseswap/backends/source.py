"""A source as the user writes it, opened."""

import contextlib
import re
from collections.abc import AsyncIterator
from typing import Final

from fuseswap.backends.local import open_local
from fuseswap.backends.memory import MemoryBackend
from fuseswap.backends.nfs.backend import open_nfs
from fuseswap.backends.protocol import Backend, SourceError

_SIZE: Final = re.compile(r"(\d{1,15})([KMGT]?)(?:iB)?", re.ASCII)
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@contextlib.asynccontextmanager
async def open_source(source: str, soft_seconds: float | None = None) -> AsyncIterator[Backend]:
    """The backend for nfs://HOST/EXPORT/PATH, file:///DIR or mem:SIZE. Errors: SourceError.

    A server that does not answer within `soft_seconds` is EIO; without them every call waits.
    """
    scheme, colon, rest = source.partition(":")
    if scheme == "nfs":
        async with open_nfs(source, soft_seconds) as nfs:
            yield nfs
    elif scheme == "file":
        async with open_local(source) as local:
            yield local
    elif colon and scheme == "mem":
        yield MemoryBackend(_size(source, rest))
    else:
        raise SourceError(f"{source}: expected nfs://HOST/EXPORT/PATH, file:///DIR or mem:SIZE", usage=True)


def _size(source: str, text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise SourceError(f"{source}: expected a size, like mem:64M", usage=True)
    return int(found[1]) * _UNITS[found[2]]
