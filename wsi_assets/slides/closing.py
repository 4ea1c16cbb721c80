"""Base class of objects that hold files open."""

from __future__ import annotations

from typing import Self


class Closing:
    """A context manager that calls its ``close`` at the end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        raise NotImplementedError
