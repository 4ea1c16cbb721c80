"""Progress callbacks: the command line shows them as bars, Dagster logs them."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as work proceeds; calls are frequent, so a listener decides what it shows."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """``done`` of ``total`` units are finished; ``what`` names work and unit: "extracting patches"."""


def silent(done: int, total: int, what: str) -> None:
    """A :class:`Progress` that does nothing."""
