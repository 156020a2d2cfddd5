"""Units of the swap-file contract, and the names by which the rooms speak of an active file."""

from typing import Final

PAGE_SIZE: Final = 4096
"""Bytes of a page and of a swap slot (x86-64, arm64 with 4 KiB pages)."""

SECTOR_SIZE: Final = 512
"""Bytes of the unit of i_blocks and of the block layer."""

RUN_DIRECTORY: Final = "/run/fuseswap"
"""NAME/fs, NAME/swap and NAME/counters live below it."""

XATTR_CHECK: Final = "trusted.fuseswap.check"
"""Read: what swap_activate and swapon would say of this file, as JSON. Root only (the VFS guards trusted.*)."""

XATTR_ACTIVATE: Final = "trusted.fuseswap.activate"
"""Write: swap_activate, with an `ActivationRequest` as JSON. The errno is the verdict."""

XATTR_ACTIVATION: Final = "trusted.fuseswap.activation"
"""Read: the `Activation` of an active file as JSON; ENODATA when it is not active."""

XATTR_DEACTIVATE: Final = "trusted.fuseswap.deactivate"
"""Write (any value): swap_deactivate; EINVAL when it is not active."""


def pages_of(length_bytes: int) -> int:
    """Pages that hold `length_bytes`, rounded up."""
    return -(-length_bytes // PAGE_SIZE)
