"""Swap over NFS from user space."""

__version__ = "0.1.0"
