"""`check`: what swap_activate and swapon would say of a file, from wherever it can be asked."""

import errno
import json
import os
from typing import Any

from attrs import evolve

from fuseswap.backends.protocol import Backend, Caller
from fuseswap.cli import recursion
from fuseswap.cli.backend_run import with_source
from fuseswap.cli.failure import Exit, Failure
from fuseswap.cli.local_facts import local_facts
from fuseswap.cli.source import join_url, split_file_url
from fuseswap.filesystem.facts import gather_facts
from fuseswap.host import xattr
from fuseswap.host.bounded import HostError, call
from fuseswap.swap.activation import (
    CHECK_MARK,
    CHECK_RECURSION,
    describe_mark,
    is_mark_of,
)
from fuseswap.swap.errors import ContractError
from fuseswap.swap.header import Mark
from fuseswap.swap.report import CheckReport, Outcome, check_report, plain_error
from fuseswap.swap.target import ActivationRequest
from fuseswap.swap.units import XATTR_CHECK

_SECONDS = 30.0
_EXTENTS_SHOWN = 8

Report = dict[str, Any]
"""`CheckReport.to_plain`."""


def check_path(path: str, request: ActivationRequest) -> Report:
    """The report on a path: by its filesystem process on a fuseswap mount, by this machine's kernel elsewhere."""
    located = xattr.locate(path, seconds=_SECONDS)
    try:
        if located is not None:
            report = _mounted_report(located.path, request)
            return _without_recursion(report, join_url(located.mount.source, located.below))
        hang = f"{path}: it does not answer within {_SECONDS:g} s"
        facts = call(lambda: local_facts(path), what=hang, seconds=_SECONDS)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from None
    return check_report(evolve(facts, stands_on=recursion.below(path)), request).to_plain()


def check_url(url: str, request: ActivationRequest) -> Report:
    """The report on a URL, asked of its server."""
    directory, name = split_file_url(url)

    async def work(backend: Backend) -> CheckReport:
        caller = Caller(os.getuid(), os.getgid())
        handle, _ = await backend.lookup(backend.root, os.fsencode(name), caller)
        return check_report(await gather_facts(backend, handle, caller, active=False), request)

    try:
        return _without_recursion(with_source(directory, work).to_plain(), url)
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


def describe(report: Report) -> list[str]:
    """The report in lines: each check, the header, the extents; what failed with its reason."""
    lines = []
    for result in report["checks"]:
        failed = result["outcome"] == Outcome.FAILED.value
        lines.append(f"{result['outcome']:14} {result['step']}" + (f": {result['why']}" if failed else ""))
    header, activation = report["header"], report["activation"]
    if header is not None:
        lines.append(
            f"header         version {header['version']}, {header['byte_order']}-endian,"
            f" last page {header['last_page']}, {len(header['bad_pages'])} bad pages,"
            f" UUID {header['uuid']}, label {header['label']!r}"
        )
    if activation is not None:
        lines.append(f"extents        {activation['extent_count']}, across {activation['span']} pages")
        if activation["fs_ops"]:
            return [*lines, "               slot n is page n of the file: fuseswap does the I/O"]
        shown = activation["extents"][:_EXTENTS_SHOWN]
        lines += [f"               slots {start} to {start + count - 1} at page {at}" for start, count, at in shown]
        if activation["extent_count"] > len(shown):
            lines.append("               ...")
    return lines


def _mounted_report(path: str, request: ActivationRequest) -> Report:
    text = xattr.read(path, XATTR_CHECK, seconds=_SECONDS)
    if text is None:
        raise Failure(f"{path}: its filesystem has no answer: unmount it and mount it again")
    report: Report = json.loads(text)
    mark = report["mark"]
    if report["error"] is None and mark is not None and not is_mark_of(Mark(**mark), request):
        # Whose machine asks is not known there.
        _refuse(report, CHECK_MARK.refusal(owner=describe_mark(Mark(**mark))))
    return report


def _without_recursion(report: Report, url: str) -> Report:
    """The report, with the check that only this side can make: what the file stands on."""
    stands_on = report["facts"]["stands_on"] = recursion.below(url)
    if stands_on and report["error"] is None:
        _refuse(report, CHECK_RECURSION.refusal(what=stands_on))
    return report


def _refuse(report: Report, error: ContractError) -> None:
    report["error"] = plain_error(error)
    report["verdict"] = error.errno_name
    for result in report["checks"]:
        if result["step"] == error.step:
            result["outcome"] = Outcome.FAILED.value
