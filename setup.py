"""The one thing pyproject.toml cannot say: the cffi module is compiled against the installed libnfs."""

from setuptools import setup

setup(cffi_modules=["fuseswap/backends/nfs/build_libnfs.py:ffibuilder"])
