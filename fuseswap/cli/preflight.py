"""The cheap checks that come before the network and before anything is changed."""

from fuseswap.host import machine
from fuseswap.host.swap import swaps


def require_mounting() -> None:
    """HostError unless this machine lets us mount."""
    machine.require_root()
    machine.require_fuse()


def require_swapping() -> None:
    """HostError unless this machine lets us swap."""
    require_mounting()
    machine.require_loop()
    machine.require_no_request_timeout()
    swaps()
