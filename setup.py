"""What pyproject.toml cannot say: what is compiled.

The cffi module is compiled against the installed libnfs. The modules that carry each page are compiled by mypyc, from
the same source that is tested and read; what is left to the interpreter runs when the engine starts.
"""

from mypyc.build import mypycify
from setuptools import setup

COMPILED = [
    "fuseswap/engine/engine.py",
    "fuseswap/engine/fuse_wire.py",
    "fuseswap/engine/memory_target.py",
    "fuseswap/engine/rpc_wire.py",
    "fuseswap/engine/spin.py",
    "fuseswap/engine/transport.py",
    "fuseswap/swap/plug.py",
    "fuseswap/swap/requests.py",
    "fuseswap/swap/reserve.py",
    "fuseswap/swap/units.py",
]

setup(
    cffi_modules=["fuseswap/backends/nfs/build_libnfs.py:ffibuilder"],
    ext_modules=mypycify(COMPILED, opt_level="2", debug_level="0", group_name="fuseswap.engine.compiled"),
)
