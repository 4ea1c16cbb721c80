"""A store that is one file and only ever grows: patches as they come, then what makes them a store.

A new store is built aside and takes its place by a rename. One that is brought up to date grows where it
lies: what it has stays untouched, whatever its keys are now, and a last write of the file's head turns the
old store into the new. So an update costs what is new, a kill leaves the old store, and a reader goes on with
the one it opened. A file of which much is no longer used is built anew.

Formats do not belong here; neither does what to extract.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from wsi_assets.patches import aside
from wsi_assets.patches.contract import Contents, Identity, IndexedSource, ShelfSource, damaged, tables_of

MOST_UNUSED = 1 / 3
"""Share of a file that may belong to no patch before it is built anew."""

UNCOMPRESSED = frozenset({"raw", "pixels"})

_JOURNAL = "journal.jsonl"
_BUFFER = 1 << 20


class AppendedShelf:
    """A complete store in one file, open for reading in this process; kinds of store fill ``contents``.

    Attributes:
        file: the file.
        places: int64 (n, 2): offset and length of each patch in it.
        end: bytes of the file that are the store's.
    """

    contents: Contents
    places: np.ndarray
    end: int

    def __init__(self, path: Path, file: Path):
        self.path, self.file = path, file
        self.handle: int | None = None
        self._map: memoryview | None = None
        try:
            self.handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise damaged(path, error) from error

    def raw(self, index: int) -> bytes | memoryview:
        """See :class:`wsi_assets.patches.contract.Shelf`."""
        offset, length = self.places[index].tolist()
        if self.contents.info["codec"] in UNCOMPRESSED:
            # Nothing is left to do but to copy the pixels; reading them first would copy them twice.
            if self._map is None:
                self._map = memoryview(mmap.mmap(self.handle, self.end, prot=mmap.PROT_READ))
            return self._map[offset : offset + length]
        # One read of just these bytes: a map is read ahead in larger pieces, which random access wastes.
        data = os.pread(self.handle, length, offset)
        if len(data) != length:
            raise damaged(self.path, "the file ends early")
        return data

    def close(self) -> None:
        """See :class:`wsi_assets.patches.contract.Shelf`."""
        self._map = None
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


class _Grown(ShelfSource):
    """The store that grows: its patches stay where they are."""

    def take(self, locator: int) -> tuple[int, int]:
        return tuple(self.shelf.places[locator].tolist())


class _Unfinished(IndexedSource):
    """What an unfinished build appended to the file; locators are places."""

    def take(self, locator: tuple[int, int]) -> tuple[int, int]:
        return locator


class AppendingWriter(ABC):
    """See :class:`wsi_assets.patches.contract.Writer`."""

    head: ClassVar[int]
    """Bytes kept free at the beginning of a new file."""

    def __init__(self, path: Path, content: dict[str, Any], old: AppendedShelf | None):
        self.path = path
        self._folder = aside.building_folder(path)
        self._old = old if old is not None and self._may_grow(old) else None
        self._aside = self._folder / "store"
        if self._old is None:
            self._file, begin, base = self.file_of(self._aside), self.head, None
        else:
            self._file, begin = self._old.file, self._old.end
            base = [self._old.contents.info["digest"], begin]
        records = self._continued([content, base], begin)
        self._handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        items = [tuple(item) for record in records for item in record]
        self._end = max([begin, *(self.frame_end(offset, length) for *_, offset, length in items)])
        # What a killed build wrote after its last commit goes.
        os.ftruncate(self._handle, self._end)
        self._stream = os.fdopen(self._handle, "wb", buffering=_BUFFER)
        self._stream.seek(self._end)
        self._items: list[tuple[str, int, int, int, int]] = []
        self._places: dict[int, tuple[int, int]] = {}
        self.sources = [_Unfinished(tables_of([(item[:3], item[3:]) for item in items]))]
        if old is not None:
            self.sources.append(ShelfSource(old) if self._old is None else _Grown(old))

    @staticmethod
    @abstractmethod
    def file_of(path: Path) -> Path:
        """The file of the store at ``path``."""

    @staticmethod
    @abstractmethod
    def frame(offset: int, length: int) -> tuple[bytes, bytes]:
        """What stands before and after a value of ``length`` bytes when both begin at ``offset``."""

    @abstractmethod
    def index(self, places: np.ndarray, contents: Contents) -> tuple[bytes, tuple[int, bytes]]:
        """What makes the appended patches a store: bytes to append, then (offset, bytes) of the head.

        Args:
            places: int64 (n, 2): offset and length of each patch, in the order of ``contents``.
        """

    @classmethod
    def frame_end(cls, offset: int, length: int) -> int:
        """Where what follows a value at ``offset`` begins."""
        return offset + length + len(cls.frame(offset - len(cls.frame(0, length)[0]), length)[1])

    def add(
        self, position: int, key: str, label: int, identity: Identity, value: bytes | None, reuse: Any
    ) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        if isinstance(reuse, tuple):
            self._places[position] = reuse
            return
        place = self.append(reuse if value is None else value)
        self._places[position] = place
        self._items.append((*identity, *place))

    def append(self, value: bytes | memoryview) -> tuple[int, int]:
        """Write a value at the end; its place."""
        before, after = self.frame(self._end, len(value))
        place = self._end + len(before), len(value)
        for part in (before, value, after):
            self._stream.write(part)
        self._end = place[0] + place[1] + len(after)
        return place

    def commit(self) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        if self._items:
            self._sync()
            self._journal.write(self._items)
            self._items = []

    def finish(self, contents: Contents) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        self.commit()
        places = np.array([self._places[position] for position in sorted(self._places)], np.int64)
        tail, (offset, head) = self.index(places.reshape(-1, 2), contents)
        self._stream.write(tail)
        self._sync()
        os.pwrite(self._handle, head, offset)
        os.fsync(self._handle)
        self.close()
        if self._old is None:
            aside.publish(self._aside, self.path)
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        self._journal.close()
        # After a full disk there is nothing more to be written.
        with contextlib.suppress(OSError):
            self._stream.close()

    @classmethod
    def _may_grow(cls, old: AppendedShelf) -> bool:
        status = old.file.stat()
        if status.st_nlink > 1:
            return False  # a second name is somebody's snapshot
        used = sum(cls.frame_end(offset, length) - offset for offset, length in old.places.tolist())
        return used >= (1 - MOST_UNUSED) * (old.end - cls.head)

    def _continued(self, base: list[Any], begin: int) -> list[Any]:
        """Open the journal; what it has if it is of this build, else it begins anew."""
        journal = self._folder / _JOURNAL
        records = aside.Journal.read(journal)
        least = max((offset + length for record in records[1:] for *_, offset, length in record), default=0)
        whole = self._file.exists() and self._file.stat().st_size >= least
        if self._folder.exists() and not (records and records[0] == base and whole):
            shutil.rmtree(self._folder)
            records = []
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._journal = aside.Journal(journal)
        if not records:
            self._journal.write(base)
        return records[1:]

    def _sync(self) -> None:
        self._stream.flush()
        os.fsync(self._handle)
