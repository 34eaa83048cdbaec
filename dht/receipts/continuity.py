"""Say whether a file still is what was written at some time on this machine, and no copy that was put back since.

Whoever goes on from a file counts on its being the newest. One that was restored, from a backup or another machine,
looks whole and is old; but putting it there has changed the file's inode at a time that nobody writes himself
(``st_ctime``), and a machine that was rolled back as a whole has another time by then. What is not noticed: a machine
that is rolled back by less than ``MAX_AGE_S`` while it runs. Touches no database; may be called from any thread.
"""

import hashlib
from pathlib import Path

MAX_AGE_S = 600
"""Seconds after which nobody goes on from what a file says, whatever has become of it."""

SETTLING_S = 5
"""Seconds in which a file may change after what was written last: SQLite moves it from its log, and closes it."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_digest() -> bytes:
    """Name this start of this machine, 16 bytes; empty where the system does not tell."""
    try:
        return hashlib.sha256(_BOOT_ID.read_bytes()).digest()[:16]
    except OSError:
        return b""


def is_continued(path: Path, boot: bytes, t: int, now_s: float) -> bool:
    """Say whether a file is as it was left at unix second ``t`` on the machine's start ``boot``.

    Args:
        path: Of the file.
        boot: What ``boot_digest`` gave then.
        t: When it was written, unix seconds.
        now_s: Unix seconds.
    """
    if not boot or boot != boot_digest() or not t <= now_s <= t + MAX_AGE_S:
        return False
    try:
        return path.stat().st_ctime <= t + SETTLING_S
    except OSError:
        return False
