"""FUSE_INIT as the kernel gets it from us."""

import struct

from fuseswap.filesystem.handshake import amended

_PARALLEL_DIROPS = 1 << 18
_HANDLE_KILLPRIV_V2 = 1 << 28
_AUTO_INVAL_DATA = 1 << 12
_OTHERS = 0x4040B029


def offer(flags: int) -> bytes:
    """fuse_in_header and fuse_init_in of linux/fuse.h."""
    header = struct.pack("=IIQQIIIHH", 104, 26, 2, 0, 0, 0, 0, 0, 0)
    return header + struct.pack("=IIII", 7, 45, 131072, flags) + bytes(48)


def answer(flags: int) -> bytes:
    """fuse_out_header and fuse_init_out, as libfuse fills them."""
    return struct.pack("=IiQ", 80, 0, 2) + struct.pack(
        "=IIIIHHIIHHI7I", 7, 31, 131072, flags, 0, 0, 1 << 20, 1, 256, 0, 0, *range(7)
    )


def test_what_the_kernel_offers_is_taken_and_nothing_else_touched() -> None:
    both = _PARALLEL_DIROPS | _HANDLE_KILLPRIV_V2
    sent = amended(answer(_OTHERS), offer(0xFFFFFFFF), auto_invalidation=True)

    assert len(sent) == 80
    assert sent[:28] == answer(_OTHERS)[:28]
    assert sent[36:] == answer(_OTHERS)[36:]
    flags, background_max, congestion = struct.unpack_from("=IHH", sent, 28)
    assert flags == _OTHERS | both
    assert 12 < congestion < background_max


def test_an_older_kernel_is_not_asked_for_more_than_it_knows() -> None:
    sent = amended(answer(_OTHERS), offer(_PARALLEL_DIROPS), auto_invalidation=True)

    assert struct.unpack_from("=I", sent, 28) == (_OTHERS | _PARALLEL_DIROPS,)


def test_the_kernel_does_not_drop_pages_by_itself() -> None:
    sent = amended(answer(_OTHERS), offer(0), auto_invalidation=False)

    assert struct.unpack_from("=I", sent, 28) == (_OTHERS & ~_AUTO_INVAL_DATA,)


def test_an_error_goes_to_the_kernel_as_it_is() -> None:
    refusal = struct.pack("=IiQ", 16, -71, 2)
    assert amended(refusal, offer(0xFFFFFFFF), auto_invalidation=False) == refusal
