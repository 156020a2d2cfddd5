"""The source nfs://host[:port]/export/path[?option=value&...], in libnfs's grammar."""

from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import frozen

from fuseswap.backends.protocol import SourceError

_OPTIONS = ("version", "nfsport", "mountport", "uid", "gid")


@frozen
class NfsUrl:
    """A parsed source. Ports are None where the portmapper shall be asked, ids where the process's serve."""

    host: str
    path: str
    nfs_port: int | None = None
    mount_port: int | None = None
    uid: int | None = None
    gid: int | None = None


def parse_nfs_url(text: str) -> NfsUrl:
    """SourceError says what is wrong with `text`."""

    def wrong(what: str) -> SourceError:
        return SourceError(f"{text}: {what}", usage=True)

    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise wrong(str(error)) from None
    if parts.scheme != "nfs":
        raise wrong("not an nfs:// URL")
    if not host or parts.username is not None:
        raise wrong("expected nfs://HOST/EXPORT/PATH")
    if parts.fragment:
        raise wrong("write # in a path as %23")
    path = unquote(parts.path, errors="surrogateescape").rstrip("/") or "/"
    if parts.path in ("", "/"):
        raise wrong("names no export: expected nfs://HOST/EXPORT/PATH")
    if "\0" in path or "\0" in host:
        raise wrong("contains a NUL byte")
    options: dict[str, int] = {}
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise wrong("options are written ?NAME=VALUE&NAME=VALUE") from None
    for name, value in pairs:
        if name not in _OPTIONS:
            raise wrong(f"unknown option {name!r}, known are {', '.join(_OPTIONS)}")
        if not (value.isascii() and value.isdigit()) or len(value) > 10:
            raise wrong(f"option {name}={value} is not a number")
        options[name] = int(value)
    if options.pop("version", 3) != 3:
        raise wrong("only NFS version 3 is served")
    for name in ("nfsport", "mountport"):
        if not 0 < options.get(name, 1) < 1 << 16:
            raise wrong(f"option {name} is not a port")
    for name in ("uid", "gid"):
        if options.get(name, 0) >= 1 << 32:
            raise wrong(f"option {name} is not an id")
    if port == 0:
        raise wrong("port 0 is not a port")
    return NfsUrl(
        host=host,
        path=path,
        nfs_port=options.get("nfsport", port),
        mount_port=options.get("mountport"),
        uid=options.get("uid"),
        gid=options.get("gid"),
    )
