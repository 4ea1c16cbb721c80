"""Errors that a user can cause, each printed as one line: which file, what is wrong, what to do.

Any other exception is a bug of this package and keeps its traceback.
"""

from __future__ import annotations

from os import PathLike, fspath

OK, FAILED, LEFT_OUT, USAGE = 0, 1, 2, 64
"""Exit statuses of commands; a failure outweighs a slide that was left out.

A command line that is not understood ends with the system's EX_USAGE, since 2 means slides left out."""


class WsiAssetsError(Exception):
    """A fault in the input, the configuration or the machine that a user can mend.

    These errors are permanent: the same input gives the same error again, so nothing retries them.

    Args:
        fault: what is wrong, without a final full stop.
        path: the file or folder at fault, if any.
        remedy: what to do, as an instruction.
    """

    def __init__(self, fault: str, *, path: str | PathLike[str] | None = None, remedy: str | None = None):
        self.fault = one_line(fault)
        self.path = None if path is None else fspath(path)
        self.remedy = None if remedy is None else one_line(remedy)
        super().__init__(self.fault)

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        then = f". {self.remedy}" if self.remedy else ""
        return f"{where}{self.fault}{then}"

    def __reduce__(self):
        # Exceptions with keyword arguments do not survive a process pool by default.
        return _rebuild, (type(self), self.fault, self.path, self.remedy)


class ConfigError(WsiAssetsError):
    """A parameter has an unknown name or an impossible value."""


class DiskError(WsiAssetsError):
    """A disk that is written to is full, read-only or failing: no fault of a slide."""


class SlideError(WsiAssetsError):
    """A slide does not open, or part of it cannot be read."""


class AnnotationError(WsiAssetsError):
    """An annotation file is damaged, or its content is not understood."""


class SlideIndexError(WsiAssetsError):
    """A slide index cannot be made, or a file does not hold one."""


class StoreError(WsiAssetsError):
    """A patch store is missing, incomplete, damaged, in use, or another than the one expected."""


class ModelError(WsiAssetsError):
    """A model cannot be trained, loaded or applied to this store."""


class EvaluationError(WsiAssetsError):
    """Predictions cannot be evaluated."""


def one_line(text: object) -> str:
    """Any text, e.g. another library's error, as one line without a final full stop."""
    return " ".join(str(text).split()).rstrip(".")


def _rebuild(kind: type[WsiAssetsError], fault: str, path: str | None, remedy: str | None) -> WsiAssetsError:
    return kind(fault, path=path, remedy=remedy)
