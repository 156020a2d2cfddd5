"""The words behind -o."""

import pytest

from fuseswap.backends.protocol import SourceError
from fuseswap.filesystem.options import MountOptions, parse_mount_options


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", MountOptions()),
        ("rw", MountOptions()),
        ("ro", MountOptions(read_only=True)),
        ("ro,rw", MountOptions()),
        ("allow_other,actimeo=0.5", MountOptions(allow_other=True, cache_seconds=0.5)),
        (",,ro,", MountOptions(read_only=True)),
        ("hard", MountOptions()),
        ("soft", MountOptions(soft_seconds=60.0)),
        ("timeo=2.5,soft", MountOptions(soft_seconds=2.5)),
        ("soft,timeo=5,hard,soft", MountOptions(soft_seconds=5.0)),
    ],
)
def test_options(text: str, expected: MountOptions) -> None:
    assert parse_mount_options(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "ro=1",
        "actimeo",
        "actimeo=",
        "actimeo=-1",
        "actimeo=nan",
        "actimeo=1e9",
        "allow_other=yes",
        "timeo=3",
        "soft=1",
        "soft,timeo=0",
        "soft,timeo=",
        "soft,timeo=x",
    ],
)
def test_unknown_options(text: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_mount_options(text)
    assert caught.value.usage
    assert f"-o {text.removeprefix('soft,').partition('=')[0]}" in str(caught.value)


def test_a_comma_in_the_source_is_no_option() -> None:
    assert r"fsname=nfs://h/a\,allow_other" in MountOptions().kernel_options("nfs://h/a,allow_other")
