"""What `fuseswap mount -o` takes."""

from typing import Final

from attrs import frozen

from fuseswap.backends.protocol import SourceError

_KNOWN: Final = "rw, ro, allow_other, actimeo=SECONDS, hard, soft, timeo=SECONDS"

SOFT_SECONDS: Final = 60.0
"""Of a soft mount without timeo; nfs(5) has the same for TCP."""

WATCH_SECONDS_MIN: Final = 1.0


@frozen
class MountOptions:
    """Options of one mount."""

    allow_other: bool = False
    """Other users than the mounting one may enter."""
    read_only: bool = False
    cache_seconds: float = 3.0
    """How long the kernel may use names and attributes without asking (actimeo of nfs(5))."""

    soft_seconds: float | None = None
    """After so long without an answer an operation fails with EIO (soft,timeo); None waits for ever (hard)."""

    @property
    def watches_open_files(self) -> bool:
        """Whether what others change in them is looked for; else the kernel asks before each read(2)."""
        return self.cache_seconds >= WATCH_SECONDS_MIN

    def kernel_options(self, source: str) -> set[str]:
        """For mount(2), by way of libfuse."""
        escaped = source.replace("\\", "\\\\").replace(",", "\\,")
        options = {f"fsname={escaped}", "subtype=fuseswap", "default_permissions"}
        if self.allow_other:
            options.add("allow_other")
        if self.read_only:
            options.add("ro")
        return options


def parse_mount_options(text: str) -> MountOptions:
    """The comma-separated words behind -o. SourceError (usage) for one that is unknown or has a bad value."""
    values: dict[str, bool | float] = {}
    soft, timeo = False, None
    for word in filter(None, text.split(",")):
        name, equals, value = word.partition("=")
        if name in ("rw", "ro") and not equals:
            values["read_only"] = name == "ro"
        elif name == "allow_other" and not equals:
            values["allow_other"] = True
        elif name in ("hard", "soft") and not equals:
            soft = name == "soft"
        elif name == "actimeo":
            values["cache_seconds"] = _seconds(word, value, 0)
        elif name == "timeo":
            timeo = _seconds(word, value, 1)
        else:
            raise SourceError(f"-o {word}: known are {_KNOWN}", usage=True)
    if not soft and timeo is not None:
        raise SourceError("-o timeo: a hard mount waits for ever; add soft", usage=True)
    if soft:
        values["soft_seconds"] = SOFT_SECONDS if timeo is None else timeo
    return MountOptions(**values)  # type: ignore[arg-type]


def _seconds(word: str, value: str, least: float) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not least <= seconds <= 3600:
        example = word.partition("=")[0]
        raise SourceError(f"-o {word}: expected {least:g} to 3600 seconds, like {example}=3", usage=True)
    return seconds
