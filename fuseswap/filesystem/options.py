"""What `fuseswap mount -o` takes."""

from attrs import frozen

from fuseswap.backends.protocol import SourceError

_FLAGS = ("allow_other", "ro")


@frozen
class MountOptions:
    """Options of one mount."""

    allow_other: bool = False
    """Other users than the mounting one may enter."""
    read_only: bool = False
    cache_seconds: float = 3.0
    """How long the kernel may use names and attributes without asking (actimeo of nfs(5))."""

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
    for word in filter(None, text.split(",")):
        name, equals, value = word.partition("=")
        if name == "rw" and not equals:
            values["read_only"] = False
        elif name in _FLAGS and not equals:
            values["read_only" if name == "ro" else name] = True
        elif name == "actimeo":
            try:
                values["cache_seconds"] = seconds = float(value)
            except ValueError:
                seconds = -1.0
            if not 0 <= seconds <= 3600:
                raise SourceError(f"-o {word}: expected seconds, like actimeo=3", usage=True)
        else:
            raise SourceError(f"-o {word}: known are rw, ro, allow_other, actimeo=SECONDS", usage=True)
    return MountOptions(**values)  # type: ignore[arg-type]
