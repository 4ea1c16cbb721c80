"""Reach the files of slides and annotations, with one-line errors where that fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from wsi_assets.errors import SlideError

_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


def stat_or_none(path: Path) -> os.stat_result | None:
    """``path.stat()``, following links; None if there is no such file.

    Raises:
        SlideError: the path cannot be reached, e.g. in a folder without permission.
    """
    try:
        return path.stat()
    except ValueError:  # a name with a null byte, which no file has
        return None
    except OSError as error:
        if error.errno in _MISSING:
            return None
        raise SlideError(
            f"cannot be reached ({error.strerror or error})",
            path=path,
            remedy="Check its permissions and those of the folders it lies in",
        ) from error


def unreadable(path: Path, error: OSError) -> SlideError:
    """The error of a file that is missing or cannot be read."""
    if isinstance(error, FileNotFoundError):
        return SlideError("does not exist", path=path, remedy="Check the path, or that its disk is mounted")
    return SlideError(
        f"cannot be read ({error.strerror or error})", path=path, remedy="Check its permissions and its disk"
    )
