"""Exceptions of the handlers as errno of the kernel: the one place.

pyfuse3 knows FUSEError only; anything else would end the whole process with every request unanswered. So an
OSError becomes its errno, and what nobody expected is logged and becomes EIO.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import pyfuse3

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def answers_errno(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Decorate a pyfuse3 handler."""

    @functools.wraps(handler)
    async def translated(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        except Exception:
            log.exception("%s failed", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return translated
