"""What pyfuse3 calls for each request of the kernel."""

from fuseswap.filesystem.control import ControlOperations
from fuseswap.filesystem.files import FileOperations
from fuseswap.filesystem.listing import ListingOperations
from fuseswap.filesystem.names import NameOperations


class Operations(NameOperations, FileOperations, ListingOperations, ControlOperations):
    """All of it."""
