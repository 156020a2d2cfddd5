"""Refusals of the swap-file contract: by which check, with which errno, and what mends it."""

from errno import EDEADLK, EOPNOTSUPP, errorcode
from typing import Final

from attrs import frozen

_KERNEL_NAMES: Final = {EOPNOTSUPP: "EOPNOTSUPP", EDEADLK: "EDEADLK"}
"""Where the C library has a second name."""


def errno_name(errno: int) -> str:
    """`EINVAL` and its like, as the kernel calls it."""
    return _KERNEL_NAMES.get(errno, errorcode[errno])


@frozen
class Check:
    """One check that a file must pass, as data: code raises it, `check` prints it, the docs explain it."""

    step: str
    """Its name, unique among all checks."""
    errno: int
    """What the caller gets when the check refuses."""
    imposed_by: str
    """The kernel function that imposes it, or `fuseswap` for a refusal of our own."""
    why: str
    """One sentence: what would go wrong without it."""
    text: str
    """What is wrong with the file, as a `str.format` template; the kernel's own words where it has some."""
    remedy: str
    """The command or action that mends it, as a `str.format` template; FILE stands for the file."""
    kernel_text: bool = False
    """Whether `text` is what the kernel logs; where it refuses silently, the words are ours."""

    @property
    def own(self) -> bool:
        """True for what the kernel would accept and fuseswap does not."""
        return self.imposed_by == "fuseswap"

    def refusal(self, **values: object) -> "ContractError":
        """The error that this check raises, with `values` put into its text and remedy."""
        return ContractError(
            self.errno,
            self.text.format(**values),
            self.step,
            self.remedy.format(**values),
            kernel_text=self.kernel_text,
            own=self.own,
        )


class ContractError(Exception):
    """A refusal by the swap-file contract. The caller, not the server, is at fault.

    `errno` is what the kernel returns (or would), `text` one clause that says what is wrong (the kernel's own
    if `kernel_text`), `step` the `Check` that refused, `remedy` the command or action that mends it; `own` is
    True where the kernel would have accepted and fuseswap does not.
    """

    def __init__(
        self, errno: int, text: str, step: str, remedy: str, *, kernel_text: bool = False, own: bool = False
    ) -> None:
        super().__init__(errno, text, step, remedy)
        self.errno = errno
        self.text = text
        self.step = step
        self.remedy = remedy
        self.kernel_text = kernel_text
        self.own = own

    @property
    def errno_name(self) -> str:
        """`EINVAL` and its like."""
        return errno_name(self.errno)

    def __str__(self) -> str:
        return f"{self.text} ({self.errno_name}); {self.remedy}"
