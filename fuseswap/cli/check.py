"""`check`: what swap_activate and swapon would say of a file, from wherever it can be asked."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from fuseswap.backends.protocol import Backend, Caller
from fuseswap.cli.backend_run import with_source
from fuseswap.cli.failure import Exit, Failure
from fuseswap.cli.source import split_file_url
from fuseswap.filesystem.facts import gather_facts
from fuseswap.host import xattr
from fuseswap.host.bounded import HostError, call
from fuseswap.swap.activation import (
    CHECK_MARK,
    CheckReport,
    DataRange,
    FileFacts,
    check_report,
    describe_mark,
    is_mark_of,
)
from fuseswap.swap.header import Mark
from fuseswap.swap.target import ActivationRequest
from fuseswap.swap.units import PAGE_SIZE, XATTR_CHECK

_SECONDS = 30.0
_LOCAL_TRANSFER_BYTES = 1 << 20

Report = dict[str, Any]
"""`CheckReport.to_plain`."""


def check_path(path: str, request: ActivationRequest) -> Report:
    """The report on a path: by its filesystem process on a fuseswap mount, by this machine's kernel elsewhere."""
    located = xattr.locate(path, seconds=_SECONDS)
    try:
        if located is not None:
            return _mounted_report(located.path, request)
        hang = f"{path}: it does not answer within {_SECONDS:g} s"
        facts = call(lambda: _local_facts(path), what=hang, seconds=_SECONDS)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from None
    return check_report(facts, request).to_plain()


def check_url(url: str, request: ActivationRequest) -> Report:
    """The report on a URL, asked of its server."""
    directory, name = split_file_url(url)

    async def work(backend: Backend) -> CheckReport:
        caller = Caller(os.getuid(), os.getgid())
        handle, _ = await backend.lookup(backend.root, os.fsencode(name), caller)
        return check_report(await gather_facts(backend, handle, caller, active=False), request)

    try:
        return with_source(directory, work).to_plain()
    except OSError as error:
        number = error.errno or errno.EIO
        if number == errno.ENOENT:
            raise Failure(f"{url} does not exist: fuseswap create {url} --size SIZE") from None
        raise Failure(f"{url}: {os.strerror(number)}", Exit.SERVER) from None


def explain_refusal(path: str, error: OSError, request: ActivationRequest) -> Exception:
    """Why swap_activate refused: the filesystem's report says more than its errno."""
    number = error.errno or errno.EIO
    try:
        found = refusal(path, _mounted_report(path, request))
    except (OSError, HostError):
        found = None
    if found is not None:
        return found
    if number in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENOTCONN):
        return Failure(f"{path}: {error.strerror}")
    name = errno.errorcode.get(number, str(number))
    return Failure(f"{path}: swap_activate: {error.strerror} ({name})", Exit.REFUSED)


def refusal(path: str, report: Report) -> Failure | None:
    """The report's refusal as a failure; None if it passes."""
    error = report["error"]
    if error is None:
        return None
    remedy = error["remedy"].replace("FILE", path)
    return Failure(f"{path}: {error['text']} ({error['errno_name']}); {remedy}", Exit.REFUSED)


def _mounted_report(path: str, request: ActivationRequest) -> Report:
    text = xattr.read(path, XATTR_CHECK, seconds=_SECONDS)
    if text is None:
        raise Failure(f"{path}: its filesystem has no answer: unmount it and mount it again")
    report: Report = json.loads(text)
    mark = report["mark"]
    if report["error"] is None and mark is not None and not is_mark_of(Mark(**mark), request):
        # Whose machine asks is not known there.
        error = CHECK_MARK.refusal(owner=describe_mark(Mark(**mark)))
        report["error"] = {
            "errno": error.errno,
            "errno_name": error.errno_name,
            "step": error.step,
            "text": error.text,
            "kernel_text": error.kernel_text,
            "own": error.own,
            "remedy": error.remedy,
        }
        report["verdict"] = error.errno_name
    return report


def _local_facts(path: str) -> FileFacts:
    status = Path(path).stat()
    page = None
    ranges = None
    if stat.S_ISREG(status.st_mode):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            page = os.pread(descriptor, PAGE_SIZE, 0)
            ranges = _data_ranges(descriptor, status.st_size)
        finally:
            os.close(descriptor)
    return FileFacts(
        mode=status.st_mode,
        size_bytes=status.st_size,
        allocated_bytes=status.st_blocks * 512,
        header_page=page,
        read_bytes_max=_LOCAL_TRANSFER_BYTES,
        write_bytes_max=_LOCAL_TRANSFER_BYTES,
        has_swap_rw=False,
        read_only=not os.access(path, os.W_OK),
        nlink=status.st_nlink,
        data_ranges=ranges,
    )


def _data_ranges(descriptor: int, size: int) -> tuple[DataRange, ...]:
    ranges = []
    offset = 0
    while offset < size:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        offset = os.lseek(descriptor, start, os.SEEK_HOLE)
        ranges.append(DataRange(start, offset))
    return tuple(ranges)
