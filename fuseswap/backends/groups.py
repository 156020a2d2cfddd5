"""Nurseries raise groups; users get the one error that was first."""

import contextlib
from collections.abc import Iterator

import trio


@contextlib.contextmanager
def first_error() -> Iterator[None]:
    """In place of an exception group, its first member that is not a cancellation."""
    try:
        yield
    except BaseExceptionGroup as group:
        errors = list(_leaves(group))
        raise next((error for error in errors if not isinstance(error, trio.Cancelled)), errors[0]) from None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error
