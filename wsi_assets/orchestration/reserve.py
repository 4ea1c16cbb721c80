"""Room kept on the disk of Dagster's records, given up when the disk is full, so that Dagster can say so.

Without any room its database can be neither written nor read: the UI answers with errors, and no run can
record that it failed for want of space. `wsi-assets ui` keeps the room; a run that fails gives it up first.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

NAME = "room_for_records"
SHARE_OF_DISK = 0.05
MOST_BYTES = 128 << 20
"""A day's records take some megabytes."""

FULL_SHARE = 1 / 8
"""The disk is full when less than this share of the reserve is free beside it."""


class Reserve:
    """A file of no content in the Dagster home.

    Args:
        home: the folder of the records.
    """

    def __init__(self, home: Path):
        self._home = home
        self._file = home / NAME
        self._size = int(min(MOST_BYTES, SHARE_OF_DISK * shutil.disk_usage(home).total))
        self._told_low = False

    def look(self) -> str | None:
        """Give the room up when the disk is full, take it back later; returns a line when that changed."""
        low = self.is_full()
        if low:
            self.give_up()
        elif not self._file.exists():
            self._take()
        if low == self._told_low:
            return None
        self._told_low = low
        if low:
            return (
                f"error: {self._home}: the disk is full. Free some space; until then runs fail, and nothing "
                "that was made is lost"
            )
        return f"{self._home}: there is room again. Run again what failed; it continues"

    def is_full(self) -> bool:
        """Whether the disk is."""
        return is_low(shutil.disk_usage(self._home).free, self._size, self._file.exists())

    def give_up(self) -> None:
        """Remove the file."""
        self._file.unlink(missing_ok=True)

    def _take(self) -> None:
        piece = os.urandom(1 << 16)  # bytes that no file system makes smaller
        try:
            with self._file.open("wb") as file:
                for begin in range(0, self._size, len(piece)):
                    file.write(piece[: self._size - begin])
        except OSError:
            self.give_up()


def is_low(free: int, size: int, held: bool) -> bool:
    """Whether a disk with ``free`` bytes is full, where a reserve of ``size`` bytes is held or not.

    To take the reserve, as much again must be left beside it, lest it comes and goes.
    """
    return free < (FULL_SHARE * size if held else 2 * size)


def give_up_if_full() -> None:
    """For a run that fails: see to it that this can be recorded."""
    home = os.environ.get("DAGSTER_HOME")
    if home and (Path(home) / NAME).exists():
        reserve = Reserve(Path(home))
        if reserve.is_full():
            reserve.give_up()
