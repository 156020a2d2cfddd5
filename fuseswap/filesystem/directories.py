"""Open directories: a listing that goes on where the kernel left off.

The kernel remembers a position as a number below 2^63. Cookies of a server may be any 64 bits, and "." and
".." have none, so positions are counted here: 1 is behind ".", 2 behind "..", 2 + n behind the n-th entry.
"""

import errno
from collections.abc import AsyncIterator

from fuseswap.backends.protocol import Backend, Caller, Entry
from fuseswap.filesystem.inodes import Node

DOTS = 2
"""Positions of "." and "..", which the caller reports."""

ENTRIES_MAX = 1 << 24
"""A longer directory is taken for endless: an ext4 directory is full at about 12 million names."""


class OpenDirectory:
    """One opendir(3)."""

    def __init__(self, node: Node, caller: Caller, pid: int) -> None:
        """`pid`: the thread that opens it."""
        self.node = node
        self.pid = pid
        self.caller = caller
        self.rewind()

    def rewind(self) -> None:
        """Begin a fresh listing."""
        self._verifier = b""
        self._cookies: list[int] = []
        self._seen: set[int] = set()
        self._page: list[Entry] = []
        self._page_start = 0
        """How many entries come before the page."""
        self._end = False

    async def entries(self, backend: Backend, position: int) -> AsyncIterator[tuple[int, Entry]]:
        """Entries behind `position`, each with its own position. OSError EINVAL for a position never given."""
        index = position - DOTS
        if index > len(self._cookies) and self._end:
            return  # a fresh start found fewer
        if not 0 <= index <= len(self._cookies):
            raise OSError(errno.EINVAL, "no such position")
        while True:
            if not self._page_start <= index < self._page_start + len(self._page):
                if self._end and index >= self._page_start + len(self._page):
                    return
                await self._fetch(backend, index)
                continue
            entry = self._page[index - self._page_start]
            index += 1
            yield index + DOTS, entry

    async def _fetch(self, backend: Backend, index: int) -> None:
        try:
            await self._fetch_page(backend, index)
        except OSError as error:
            if error.errno != errno.ESTALE or index == 0:
                raise
            # BAD_COOKIE: the directory changed, and its server wants a fresh start. What was told is passed over
            # by count, as nfs_readdir_search_for_pos (fs/nfs/dir.c) does.
            self.rewind()
            while len(self._cookies) < index and not self._end:
                await self._fetch_page(backend, len(self._cookies))
            if not self._end:
                await self._fetch_page(backend, index)

    async def _fetch_page(self, backend: Backend, index: int) -> None:
        cookie = self._cookies[index - 1] if index else 0
        listing = await backend.readdir(self.node.handle, cookie, self._verifier, self.caller)
        self._verifier = listing.verifier
        self._page = list(listing.entries)
        self._page_start = index
        self._end = listing.end
        cookies = [entry.cookie for entry in self._page]
        known = self._cookies[index : index + len(cookies)]
        if cookies[: len(known)] != known:
            del self._cookies[index:]
            self._seen.intersection_update(self._cookies)
            known = []
        # Else it is a part that was read before: positions behind it stay good.
        for cookie in cookies[len(known) :]:
            if len(self._cookies) == ENTRIES_MAX:
                raise OSError(errno.ELOOP, "the server's directory has no end")
            if cookie in self._seen:
                raise OSError(errno.ELOOP, "the server's directory cookies form a loop")
            self._seen.add(cookie)
            self._cookies.append(cookie)
