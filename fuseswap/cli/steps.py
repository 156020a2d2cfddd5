"""Steps that can be undone: a stack of things, each standing on the one before.

`build` and `tear_down` are the whole of `up` and `down`. A step's undo is told nothing about how far its do
came: it looks at the kernel's tables, undoes what it finds and is content with nothing. So the same list
takes down what another process built, and what one that was killed left behind.
"""

from collections.abc import Callable, Sequence

from attrs import frozen


@frozen
class Step:
    """One thing to bring about, and the way back."""

    what: str
    """What the step makes, for the user: "the loop device"."""
    do: Callable[[], None]
    undo: Callable[[], None]
    """Idempotent; an exception means that the thing still stands."""


class NotUndone(Exception):
    """A step could not be undone; it and all it stands on are still there. The cause is `__cause__`."""

    def __init__(self, step: Step) -> None:
        super().__init__(step.what)
        self.step = step


def build(steps: Sequence[Step], *, failed: Callable[[BaseException], None], shield: Callable[[], None]) -> None:
    """Do every step in order.

    When one fails or is interrupted, `failed` is told once, and it and those before it are undone in reverse
    order. Then the exception goes on, or `NotUndone` if something stays. `shield()` is called before anything
    is undone: after it no signal raises. Before it one may, at most once and anywhere.
    """
    begun = 0
    error: BaseException | None = None
    try:
        try:
            for step in steps:
                begun += 1
                step.do()
        except BaseException as caught:
            shield()
            error = caught
    except BaseException as caught:
        # The one signal came between a step's failure and the shield.
        error = caught
    if error is not None:
        failed(error)
        tear_down(steps[:begun])
        raise error


def tear_down(steps: Sequence[Step]) -> None:
    """Undo every step in reverse order; stop at the first that does not go: it stands on those before it."""
    for step in reversed(steps):
        try:
            step.undo()
        except Exception as error:
            raise NotUndone(step) from error
