"""URLs of swap files: the file's directory is what gets mounted, its name is what gets activated."""

from urllib.parse import parse_qsl, quote, unquote, urlsplit, urlunsplit

from fuseswap.cli.failure import Exit, Failure

SCHEMES = ("nfs", "file", "mem")
_FORMS = {"nfs": "nfs://HOST/EXPORT/PATH/FILE", "file": "file:///DIRECTORY/FILE"}


def is_url(text: str) -> bool:
    """Whether `text` is meant as a source and not as a path."""
    scheme, colon, _ = text.partition(":")
    return bool(colon) and (scheme in SCHEMES or "://" in text)


def split_file_url(url: str) -> tuple[str, str]:
    """`nfs://host/export/dir/file?o=1` as (`nfs://host/export/dir?o=1`, `file`).

    Failure (usage) if it names no file, or one relative to a directory that only the caller knows.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise Failure(f"{url}: {error}", Exit.USAGE) from None
    form = _FORMS.get(parts.scheme, _FORMS["nfs"])
    if parts.scheme not in _FORMS or (parts.scheme == "file" and not parts.path.startswith("/")):
        raise Failure(f"{url}: expected {form}", Exit.USAGE)
    directory, _, name = parts.path.rpartition("/")
    name = unquote(name, errors="surrogateescape")
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        raise Failure(f"{url}: names no file: expected {form}", Exit.USAGE)
    if not directory and parts.scheme == "nfs":
        raise Failure(f"{url}: names an export but no file in it: add /FILE", Exit.USAGE)
    return urlunsplit(parts._replace(path=directory or "/")), name


def join_url(directory_url: str, below: str) -> str:
    """The inverse of `split_file_url`, for any number of path components."""
    parts = urlsplit(directory_url)
    path = parts.path.rstrip("/") + "/" + quote(below, errors="surrogateescape")
    return urlunsplit(parts._replace(path=path))


def same_file(one: str, other: str) -> bool:
    """Whether two URLs name the same file of the same server, as far as text can tell."""
    return _key(one) == _key(other)


def below(directory_url: str, url: str) -> str | None:
    """The path of `url` relative to the directory, None if it does not lie below it."""
    scheme, host, port, directory = _key(directory_url)
    key = _key(url)
    start = f"{directory}/" if directory else ""
    if key[:3] != (scheme, host, port) or not key[3].startswith(start) or key[3] == directory:
        return None
    return key[3].removeprefix(start)


def _key(url: str) -> tuple[str, str, str, str]:
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    port = options.get("nfsport") or (str(parts.port) if parts.port else "")
    path = "/".join(part for part in unquote(parts.path, errors="surrogateescape").split("/") if part)
    return parts.scheme, (parts.hostname or "").lower(), port, path
