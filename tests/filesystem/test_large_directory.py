"""A directory of many entries, listed while it changes."""

import os
from pathlib import Path

ENTRIES = 50_000


def test_a_large_directory_is_listed_while_it_changes(nfs: Path, nfs_dir: Path) -> None:
    behind = nfs_dir / "large"
    behind.mkdir()
    for number in range(ENTRIES):
        os.close(os.open(behind / f"stays-{number}", os.O_CREAT | os.O_WRONLY))
    for number in range(100):
        (behind / f"goes-{number}").touch()
    seen: list[str] = []
    with os.scandir(nfs / "large") as entries:
        for count, entry in enumerate(entries):
            seen.append(entry.name)
            if count % 500 == 0 and count < 50_000:
                (nfs / "large" / f"comes-{count}").touch()
                (nfs / "large" / f"goes-{count // 500}").unlink()
    stayed = [name for name in seen if name.startswith("stays-")]
    assert len(stayed) == ENTRIES
    assert set(stayed) == {f"stays-{number}" for number in range(ENTRIES)}
    assert len(seen) == len(set(seen))
