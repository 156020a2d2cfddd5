"""Exceptions of the handlers as errno of the kernel, and the end of waits that nobody needs: the one place.

pyfuse3 knows FUSEError only; anything else would end the whole process with every request unanswered. So an
OSError becomes its errno, and what nobody expected is logged and becomes EIO.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pyfuse3
import trio

from fuseswap.filesystem.waiting import WaitingCalls

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Asked(Protocol):
    """What a handler's object must tell."""

    waiting: WaitingCalls

    def asker(self, arguments: tuple[Any, ...]) -> int:
        """The thread that waits for the request with these arguments."""
        ...


S = TypeVar("S", bound=Asked)


def answers_errno(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Decorate a pyfuse3 handler."""

    @functools.wraps(handler)
    async def translated(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with trio.CancelScope() as scope:
                call = self.waiting.begin(self.asker(args), scope)
                try:
                    return await handler(self, *args, **kwargs)
                finally:
                    self.waiting.end(call)
        except pyfuse3.FUSEError:
            raise
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        except Exception:
            log.exception("%s failed", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None
        raise pyfuse3.FUSEError(errno.EINTR)

    return translated
