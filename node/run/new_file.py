"""Write a file for its owner alone, where there is none: it is there whole or not at all, however the process ends.

It does not know what is written. Runs in a command, on its main thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path


def write_new(path: Path, text: str) -> None:
    """Write ``text`` to a file that is not there yet, with mode 0600.

    Raises:
        FileExistsError: Something has that name.
        OSError: It could not be written; it names ``path``.
    """
    draft = path.with_name(f".{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _name(draft, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _name(draft: Path, path: Path) -> None:
    """Give a file its name, if nothing has it; a memory stick may know no second names."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        draft.rename(path)
