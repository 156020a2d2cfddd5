"""Takes safeguards away from the engine and the supervisor, in the guest only, to see what each is good for.

On PYTHONPATH of a guest whose scenario asks for it; FUSESWAP_WITHOUT names the safeguards.
"""

import contextlib
import errno
import os
import socket
import sys

_MODULES = ("fuseswap.engine.main", "fuseswap.engine.supervisor")
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h; Python has no names for them
_LARGE_BUFFER_BYTES = 4 << 20


def _refuse(*_arguments: object) -> None:
    raise PermissionError(errno.EPERM, "taken away by the test")


def _take_away(safeguard: str) -> None:
    from fuseswap.engine import hardening, libc, sockets, sysctls

    match safeguard:
        case "mlockall":
            libc.lock_memory = _refuse
        case "realtime":
            hardening.be_urgent = _refuse
        case "io-flusher":
            libc.set_io_flusher = lambda: False
        case "oom-score":
            hardening.protect_from_oom = lambda: False
        case "heap":
            hardening.touch_heap = hardening.touch_stack = lambda _size_bytes: None
        case "sysctls":
            sysctls.steady = lambda: contextlib.nullcontext(())
        case "small-buffers":
            make_socket = sockets.make_socket

            def make_large(*arguments: object) -> object:
                made = make_socket(*arguments)
                for option in (_SO_SNDBUFFORCE, _SO_RCVBUFFORCE):
                    made[0].setsockopt(socket.SOL_SOCKET, option, _LARGE_BUFFER_BYTES)
                return made

            sockets.make_socket = make_large
        case _:
            raise ValueError(f"no safeguard {safeguard!r}")


if any(module in sys.orig_argv for module in _MODULES):
    for _name in os.environ["FUSESWAP_WITHOUT"].split():
        _take_away(_name)
