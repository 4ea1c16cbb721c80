"""How long work tells how far it is, without knowing who listens.

The domain rooms call a :class:`Progress`; the command line shows it as a bar, Dagster logs it.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as work proceeds; calls are frequent, so a listener decides what it shows."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """``done`` of ``total`` units are finished; ``what`` names work and unit: "extracting patches"."""


def silent(done: int, total: int, what: str) -> None:
    """A :class:`Progress` nobody watches."""
