"""Progress callbacks: the command line shows them as bars, Dagster logs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Progress(Protocol):
    """A callback for the progress of work; it is called often, and decides itself how much to show."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """``done`` of ``total`` units are finished; ``what`` is work and unit, e.g. "extracting patches"."""


def silent(done: int, total: int, what: str) -> None:
    """A :class:`Progress` that does nothing."""


@contextmanager
def progress_bars(console: Console) -> Iterator[Progress]:
    """A :class:`Progress` that draws a bar on a terminal for each kind of work."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    tasks: dict[str, Any] = {}
    with Bars(*columns, console=console) as bars:

        def listen(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            elif done < bars.tasks[tasks[what]].completed:  # the same work began again, on the next slide
                bars.reset(tasks[what], total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield listen
