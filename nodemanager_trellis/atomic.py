"""Files that readers, and a crash, see whole: the old text or the new one, never a part."""

from __future__ import annotations

import os
import pathlib
import tempfile


def write_text(path: pathlib.Path, text: str, mode: int = 0o600) -> None:
    """The file at ``path`` holds ``text`` (UTF-8) and has ``mode``; on failure it is as it was.

    :raises OSError: the directory is missing, full or closed to us
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
