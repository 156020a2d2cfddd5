"""Mode bits, as generic_permission of fs/namei.c reads them; for backends that have no server to decide."""

import os

from fuseswap.backends.protocol import Attributes, Caller, FileType


def permits(attributes: Attributes, caller: Caller, mask: int) -> bool:
    """Whether `caller` may do all that `mask` (R_OK | W_OK | X_OK) names."""
    mode = attributes.mode
    if caller.uid == 0:
        # CAP_DAC_OVERRIDE: all but executing what nobody may execute.
        return not mask & os.X_OK or attributes.type is FileType.DIRECTORY or bool(mode & 0o111)
    if caller.uid == attributes.uid:
        granted = mode >> 6
    elif attributes.gid == caller.gid or attributes.gid in caller.groups:
        granted = mode >> 3
    else:
        granted = mode
    return mask & ~granted & 7 == 0


def may_remove(directory: Attributes, victim: Attributes, caller: Caller) -> bool:
    """Whether a sticky directory lets `caller` take the victim's name away (check_sticky of fs/namei.c)."""
    return not directory.mode & 0o1000 or caller.uid in (0, directory.uid, victim.uid)
