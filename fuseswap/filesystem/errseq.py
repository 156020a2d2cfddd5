"""Failures of writes that were answered before, told to each open file once: errseq_t (lib/errseq.c).

The failure is the file's, and everybody who has the file open may have bytes in it. So the file counts its failures,
and each open file remembers how many of them it knows.
"""

import errno
import os

from attrs import define


@define(eq=False)
class ErrorSequence:
    """Of one file."""

    count: int = 0
    errno: int = 0
    """Of the latest."""
    seen: int = 0
    """How many of them fsync has told somebody, or close the last who had the file open."""
    told_by_close: int = 0

    def set(self, error: OSError) -> None:
        """One more."""
        self.count += 1
        self.errno = error.errno or errno.EIO

    def sample(self) -> int:
        """What a new open file knows: not what nobody was told of yet."""
        return self.seen

    def check(self, known: int) -> None:
        """OSError of the latest if there are more than the `known`."""
        if known != self.count:
            raise OSError(self.errno, os.strerror(self.errno))

    def advance(self) -> int:
        """Somebody is told of all that there are: how many."""
        self.seen = self.count
        return self.count
