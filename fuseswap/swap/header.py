"""The swap header (union swap_header, include/linux/swap.h) and the mark that fuseswap leaves in front of it.

A swap area begins with one page, of which the kernel reads these bytes, in either byte order:

    0       boot block, 1024 bytes that swap never looks at
    1024    version, u32: 1
    1028    last_page, u32: index of the last usable page, so the area has last_page + 1 pages
    1032    nr_badpages, u32: at most 637
    1036    UUID, 16 bytes
    1052    label, 16 bytes, ends with the first NUL
    1068    padding
    1536    bad pages, u32 each
    4086    SWAPSPACE2

The mark says which machine swaps to the file: two machines on one file would be silent corruption. It owns
the second half of the boot block, bytes 512..1023 (one sector, so it is never torn), and the first half stays
whoever's it is. Layout, little-endian: magic (8), CRC-32 of all that follows (4), then three times a length
(2) and UTF-8 text: machine-id, boot-id, host name; zeros up to the end. Bytes there that are neither zero nor
a mark with a right checksum belong to somebody else (a boot loader); they are never overwritten: `put_mark`
refuses, and `clear_mark` leaves them alone.
"""

import struct
from errno import EINVAL
from typing import Final, Literal
from uuid import UUID
from zlib import crc32

from attrs import frozen

from fuseswap.swap.errors import Check
from fuseswap.swap.units import PAGE_SIZE

VERSION: Final = 1
SIGNATURE: Final = b"SWAPSPACE2"
BAD_PAGES_MAX: Final = 637
"""MAX_SWAP_BADPAGES: u32s between byte 1536 and the signature."""

BOOT_BLOCK_BYTES: Final = 1024
LABEL_BYTES: Final = 16
MARK_OFFSET: Final = 512
MARK_BYTES: Final = 512
MARK_MAGIC: Final = b"fuseswap"

_SIGNATURE_OFFSET: Final = PAGE_SIZE - len(SIGNATURE)
_BAD_PAGES_OFFSET: Final = 1536
_FIELDS: Final = "III16s16s"
_PAGES_LIMIT: Final = 2**32 - 1
"""swap_info_struct.max is an unsigned int."""
_MARK_HEAD: Final = struct.Struct("<8sI")
_MARK_LENGTH: Final = struct.Struct("<H")

ByteOrder = Literal["little", "big"]
_STRUCT_ORDER: Final[dict[ByteOrder, str]] = {"little": "<", "big": ">"}

MAKE_HEADER: Final = "write a header: mkswap FILE, or remove it and make it anew: fuseswap create FILE --size SIZE"

CHECK_SIGNATURE: Final = Check(
    step="signature",
    errno=EINVAL,
    imposed_by="read_swap_header",
    why="Without it a slip of the finger would turn any file into swap and destroy what it holds.",
    text="Unable to find swap-space signature",
    remedy=MAKE_HEADER,
    kernel_text=True,
)
CHECK_OTHER_ENDIAN_BAD_PAGES: Final = Check(
    step="other-endian-bad-pages",
    errno=EINVAL,
    imposed_by="read_swap_header",
    why="The bad pages of an other-endian header are swapped in place, and must end before the signature.",
    text="header of the other byte order lists {count} bad pages, more than 637",
    remedy=MAKE_HEADER,
)
CHECK_VERSION: Final = Check(
    step="version",
    errno=EINVAL,
    imposed_by="read_swap_header",
    why="Version 1 is the only layout that exists; another one may mean other things by the same bytes.",
    text="Unable to handle swap header version {version}",
    remedy=MAKE_HEADER,
    kernel_text=True,
)
CHECK_LAST_PAGE: Final = Check(
    step="last-page",
    errno=EINVAL,
    imposed_by="read_swap_header",
    why="Page 0 is the header, so an area whose last page is 0 has no slot.",
    text="Empty swap-file",
    remedy=MAKE_HEADER,
    kernel_text=True,
)
CHECK_SHORTER: Final = Check(
    step="shorter",
    errno=EINVAL,
    imposed_by="read_swap_header",
    why="Slots behind the end of the file could be neither written nor read.",
    text="Swap area shorter than signature indicates",
    remedy="the file was cut: write a header that fits its size: mkswap FILE",
    kernel_text=True,
)
CHECK_BAD_PAGES: Final = Check(
    step="bad-pages",
    errno=EINVAL,
    imposed_by="read_swap_header",
    why="Bad pages are places on a disk; in a file the file system deals with those.",
    text="header of a regular file lists {count} bad pages",
    remedy=MAKE_HEADER,
)
CHECK_BAD_PAGES_MAX: Final = Check(
    step="bad-pages-max",
    errno=EINVAL,
    imposed_by="read_swap_header",
    why="The list of bad pages must end before the signature.",
    text="header lists {count} bad pages, more than 637",
    remedy=MAKE_HEADER,
)
HEADER_CHECKS: Final = (
    CHECK_SIGNATURE,
    CHECK_OTHER_ENDIAN_BAD_PAGES,
    CHECK_VERSION,
    CHECK_LAST_PAGE,
    CHECK_SHORTER,
    CHECK_BAD_PAGES,
    CHECK_BAD_PAGES_MAX,
)
"""In the order of read_swap_header, mm/swapfile.c."""

CHECK_BOOT_BLOCK: Final = Check(
    step="boot-block",
    errno=EINVAL,
    imposed_by="fuseswap",
    why="Without a mark nothing would keep another machine from swapping to the same file.",
    text="bytes 512 to 1023, the place of fuseswap's mark, hold something else",
    remedy="if nobody needs them, clear them: dd if=/dev/zero of=FILE bs=512 seek=1 count=1 conv=notrunc",
)


NO_UUID: Final = UUID(int=0)


@frozen
class SwapHeader:
    """A header that read_swap_header accepts, as far as it can tell without the file."""

    last_page: int
    """Index of the last usable page."""
    bad_pages: tuple[int, ...] = ()
    """Indexes of pages that must not be used; empty in every swap file."""
    uuid: UUID = NO_UUID
    label: bytes = b""
    """Up to 16 bytes without NUL, as mkswap -L wrote them."""
    byte_order: ByteOrder = "little"
    version: int = VERSION

    @property
    def pages_max(self) -> int:
        """Pages that the header claims, itself included: `maxpages` of read_swap_header."""
        return min(self.last_page + 1, _PAGES_LIMIT)


def parse_header(page: bytes, size_bytes: int = 0, regular: bool = False) -> SwapHeader:
    """The header in `page`, judged as read_swap_header (mm/swapfile.c) does on a little-endian machine.

    `page` is page 0 of the file, shorter if the file is. With `size_bytes` the area must fit the file (0
    skips that, as in the kernel); a `regular` file must not list bad pages. ContractError EINVAL, in the
    kernel's order (HEADER_CHECKS) and with its texts.
    """
    page = page[:PAGE_SIZE].ljust(PAGE_SIZE, b"\0")
    if page[_SIGNATURE_OFFSET:] != SIGNATURE:
        raise CHECK_SIGNATURE.refusal()
    swapped = int.from_bytes(page[BOOT_BLOCK_BYTES : BOOT_BLOCK_BYTES + 4], "big") == VERSION
    byte_order: ByteOrder = "big" if swapped else "little"
    order = _STRUCT_ORDER[byte_order]
    version, last_page, bad_page_count, uuid, label = struct.unpack_from(order + _FIELDS, page, BOOT_BLOCK_BYTES)
    if swapped and bad_page_count > BAD_PAGES_MAX:
        raise CHECK_OTHER_ENDIAN_BAD_PAGES.refusal(count=bad_page_count)
    if version != VERSION:
        # The kernel prints the u32 with %d.
        signed = version - 2**32 if version >= 2**31 else version
        raise CHECK_VERSION.refusal(version=signed)
    if last_page == 0:
        raise CHECK_LAST_PAGE.refusal()
    file_pages = size_bytes // PAGE_SIZE
    if file_pages and min(last_page + 1, _PAGES_LIMIT) > file_pages:
        raise CHECK_SHORTER.refusal()
    if bad_page_count and regular:
        raise CHECK_BAD_PAGES.refusal(count=bad_page_count)
    if bad_page_count > BAD_PAGES_MAX:
        raise CHECK_BAD_PAGES_MAX.refusal(count=bad_page_count)
    return SwapHeader(
        last_page=last_page,
        bad_pages=struct.unpack_from(f"{order}{bad_page_count}I", page, _BAD_PAGES_OFFSET),
        uuid=UUID(bytes=uuid),
        label=label.split(b"\0", 1)[0],
        byte_order=byte_order,
    )


def format_header(header: SwapHeader) -> bytes:
    """A page that holds `header`, its boot block zero: the inverse of `parse_header`.

    ValueError for what no header can say: more than 637 bad pages, numbers beyond 32 bits, a label that is
    too long or holds a NUL.
    """
    if len(header.bad_pages) > BAD_PAGES_MAX:
        raise ValueError(f"{len(header.bad_pages)} bad pages; a header holds {BAD_PAGES_MAX}")
    if len(header.label) > LABEL_BYTES or b"\0" in header.label:
        raise ValueError(f"label {header.label!r} does not fit {LABEL_BYTES} bytes without NUL")
    order = _STRUCT_ORDER[header.byte_order]
    page = bytearray(PAGE_SIZE)
    count = len(header.bad_pages)
    try:
        struct.pack_into(
            order + _FIELDS,
            page,
            BOOT_BLOCK_BYTES,
            header.version,
            header.last_page,
            count,
            header.uuid.bytes,
            header.label,
        )
        struct.pack_into(f"{order}{count}I", page, _BAD_PAGES_OFFSET, *header.bad_pages)
    except struct.error as error:
        raise ValueError(f"not a 32-bit number in {header}") from error
    page[_SIGNATURE_OFFSET:] = SIGNATURE
    return bytes(page)


@frozen
class Mark:
    """Who swaps to a file: /etc/machine-id, /proc/sys/kernel/random/boot_id, and for people the host name."""

    machine_id: str
    boot_id: str
    host: str = ""


def read_mark(page: bytes) -> Mark | None:
    """The mark in a header page; None if there is none or its checksum is wrong. Never fails."""
    area = page[MARK_OFFSET : MARK_OFFSET + MARK_BYTES]
    if len(area) < MARK_BYTES:
        return None
    magic, checksum = _MARK_HEAD.unpack_from(area)
    if magic != MARK_MAGIC or checksum != crc32(area[_MARK_HEAD.size :]):
        return None
    texts = []
    position = _MARK_HEAD.size
    for _ in range(3):
        if position + _MARK_LENGTH.size > MARK_BYTES:
            return None
        (length,) = _MARK_LENGTH.unpack_from(area, position)
        position += _MARK_LENGTH.size
        text = area[position : position + length]
        if len(text) < length:
            return None
        texts.append(text.decode(errors="replace"))
        position += length
    return Mark(*texts)


def is_boot_block_free(page: bytes) -> bool:
    """Whether a mark may be put: its place holds zeros or a mark."""
    return read_mark(page) is not None or not any(page[MARK_OFFSET : MARK_OFFSET + MARK_BYTES])


def put_mark(page: bytes, mark: Mark) -> bytes:
    """`page` with `mark`, in place of an older one; all else unchanged.

    ContractError EINVAL (CHECK_BOOT_BLOCK, our own) if the place holds anything else. ValueError if `page`
    is not a page or the texts of `mark` do not fit 494 bytes.
    """
    if len(page) != PAGE_SIZE:
        raise ValueError(f"header page of {len(page)} bytes")
    if not is_boot_block_free(page):
        raise CHECK_BOOT_BLOCK.refusal()
    texts = [text.encode() for text in (mark.machine_id, mark.boot_id, mark.host)]
    body = b"".join(_MARK_LENGTH.pack(len(text)) + text for text in texts)
    if len(body) > MARK_BYTES - _MARK_HEAD.size:
        raise ValueError(f"mark of {len(body)} bytes is too long")
    body = body.ljust(MARK_BYTES - _MARK_HEAD.size, b"\0")
    area = _MARK_HEAD.pack(MARK_MAGIC, crc32(body)) + body
    return page[:MARK_OFFSET] + area + page[MARK_OFFSET + MARK_BYTES :]


def clear_mark(page: bytes) -> bytes:
    """`page` with zeros where its mark was; a page without a mark comes back as it is."""
    if read_mark(page) is None:
        return page
    return page[:MARK_OFFSET] + bytes(MARK_BYTES) + page[MARK_OFFSET + MARK_BYTES :]
