"""Results of worker processes, handed over in memory that both sides reach.

A process pool sends results through one pipe: a worker killed in the middle of a long one leaves the reader
waiting for ever, and each copy on the way costs. A room is filled by the worker and read where it lies; only
two numbers go through the pipe, in one piece or not at all. What lies in a room belongs elsewhere.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

Place = tuple[int, int]
"""Where the values in a room end, and where all ends."""


class Room:
    """Memory for one result after the other; it grows to the largest and goes with this process.

    Attributes:
        path: where a worker of this machine finds it.
    """

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            # Of no folder and no disk: nothing is left behind, however this process ends.
            self._file = os.fdopen(os.memfd_create("wsi-assets"), "rb")
            self.path = f"/proc/{os.getpid()}/fd/{self._file.fileno()}"
        else:
            self._file = tempfile.NamedTemporaryFile(prefix="wsi-assets-")  # noqa: SIM115
            self.path = self._file.name
        self._map = memoryview(b"")

    def read(self, place: Place) -> tuple[list[memoryview | None], Any]:
        """What :class:`Filling` put here; the values are good until the room is filled again."""
        values_end, end = place
        if end > len(self._map):
            self._map = memoryview(mmap.mmap(self._file.fileno(), end, prot=mmap.PROT_READ))
        places, rest = pickle.loads(self._map[values_end:end])
        return [None if at is None else self._map[at[0] : at[1]] for at in places], rest

    def close(self) -> None:
        """Let go of the memory, once nobody has values of it."""
        self._map = memoryview(b"")
        self._file.close()


class Rooms:
    """As many rooms as are in use at once; leave the context when no process fills one any more."""

    def __init__(self) -> None:
        self._all: list[Room] = []
        self._free: list[Room] = []

    def take(self) -> Room:
        """A room nobody uses."""
        if not self._free:
            self._free.append(Room())
            self._all.append(self._free[-1])
        return self._free.pop()

    def give_back(self, room: Room) -> None:
        """Say that nobody looks at the room's values any more."""
        self._free.append(room)

    def __enter__(self) -> Rooms:
        return self

    def __exit__(self, *_: object) -> None:
        for room in self._all:
            room.close()


class Filling:
    """A room being filled: ``count`` values, set one after the other in any order, and None where none is.

    Each goes to the room as it comes. Kept together until all are there, the values made the heap grow and
    shrink with every task: the worker spent 5 % of its time in page faults.
    """

    def __init__(self, path: str, count: int):
        self._stream = Path(path).open("r+b")  # noqa: SIM115
        self._places: list[tuple[int, int] | None] = [None] * count
        self._end = 0

    def __setitem__(self, number: int, value: bytes) -> None:
        self._stream.write(value)
        self._places[number] = (self._end, self._end + len(value))
        self._end += len(value)

    def finish(self, rest: Any) -> Place:
        """Add a little else that pickles."""
        size = self._stream.write(pickle.dumps((self._places, rest)))
        self._stream.flush()
        return self._end, self._end + size

    def __enter__(self) -> Filling:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
