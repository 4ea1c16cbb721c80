"""Tell a file that is not there from one that may not be reached; the system's own words for it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from wsi_assets.errors import SlideError

_NOTHING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


def reached(path: Path) -> os.stat_result | None:
    """What the system tells of a file or folder, links followed; None if there is nothing.

    Raises:
        SlideError: it cannot be reached, e.g. lies in a folder that may not be entered.
    """
    try:
        return path.stat()
    except ValueError:  # a name with a null byte, which no file has
        return None
    except OSError as error:
        if error.errno in _NOTHING:
            return None
        raise SlideError(
            f"cannot be reached ({error.strerror or error})",
            path=path,
            remedy="Check its permissions and those of the folders it lies in",
        ) from error
