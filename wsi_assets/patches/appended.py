"""A store that is one file and only ever grows: patches as they come, then what makes them a store.

A new store is built aside and takes its place by a rename. One that is brought up to date grows where it
lies: what it has stays untouched, whatever its keys are now, and a last write of the file's head turns the
old store into the new. So an update costs what is new, a kill leaves the old store, and a reader goes on with
the one it opened. A file of which much is no longer used is built anew.

Formats do not belong here; neither does what to extract.
"""

from __future__ import annotations

import mmap
import os
import shutil
from abc import ABC, abstractmethod
from array import array
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from wsi_assets.patches import aside
from wsi_assets.patches.contract import Contents, Identity, IndexedSource, ShelfSource, damaged, tables_of
from wsi_assets.patches.write_behind import WriteBehind

MOST_UNUSED = 1 / 3
"""Share of a file that may belong to no patch before it is built anew."""

UNCOMPRESSED = frozenset({"raw", "pixels"})

_JOURNAL = "journal.jsonl"


class AppendedShelf:
    """A complete store in one file, open for reading in this process; kinds of store fill ``contents``.

    Attributes:
        file: the file.
        places: int64 (n, 2): offset and length of each patch in it.
        end: bytes of the file that are the store's.
        grows: whether the file is laid out as the writer does it; another program may have changed it.
    """

    contents: Contents
    places: np.ndarray
    end: int
    grows: bool

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

    def tidy(self) -> None:
        """See :class:`wsi_assets.patches.contract.Shelf`."""
        os.truncate(self.file, self.end)

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

    before: ClassVar[int]
    """Bytes before each value."""

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
        records = self._continued([content, base])
        handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        items = [tuple(item) for record in records for item in record]
        end = max([begin, *(self._behind(offset, length) for *_, offset, length in items)])
        # What a killed build wrote after its last commit goes.
        os.ftruncate(handle, end)
        self._store = WriteBehind(handle, end)
        self._items: list[tuple[str, int, int, int, int]] = []
        self._rows = array("q")  # position, offset and length of one patch after the other
        unfinished = _Unfinished(tables_of([(item[:3], item[3:]) for item in items]))
        # Asked in the order in which the unfinished build took them: it appended only what the store it
        # grows lacked, or all there is to a new file. Copies of a slide then get the same places again.
        if old is None:
            self.sources = [unfinished]
        elif self._old is None:
            self.sources = [unfinished, ShelfSource(old)]
        else:
            self.sources = [_Grown(old), unfinished]

    @staticmethod
    @abstractmethod
    def file_of(path: Path) -> Path:
        """The file of the store at ``path``."""

    @staticmethod
    @abstractmethod
    def taken(lengths: Any) -> Any:
        """Bytes of the file, header and padding included, that a value of this length takes, or an array."""

    @staticmethod
    @abstractmethod
    def header(offset: int, length: int) -> bytes:
        """What stands at ``offset``, before a value of ``length`` bytes."""

    @abstractmethod
    def index(self, places: np.ndarray, contents: Contents) -> tuple[bytes, tuple[int, bytes]]:
        """What makes the appended patches a store: bytes to append, then (offset, bytes) of the head.

        Args:
            places: int64 (n, 2): offset and length of each patch, in the order of ``contents``.
        """

    def add(
        self, position: int, key: str, label: int, identity: Identity, value: bytes | None, reuse: Any
    ) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        place = reuse
        if not isinstance(reuse, tuple):
            place = self.append(reuse if value is None else value)
            self._items.append((*identity, *place))
        self._rows.extend((position, *place))

    @property
    def end(self) -> int:
        """Where the next value and its header begin."""
        return self._store.end

    def append(self, value: bytes | memoryview) -> tuple[int, int]:
        """Write a value at the end; its place."""
        offset, length = self.end, len(value)
        padding = bytes(self.taken(length) - self.before - length)
        self._store.append(self.header(offset, length), value, padding)
        return offset + self.before, length

    def commit(self) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        if self._items:
            self._store.then(self._make_safe, self._items)
            self._items = []

    def finish(self, contents: Contents) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        self.commit()
        rows = np.array(self._rows, np.int64).reshape(-1, 3)
        tail, (offset, head) = self.index(rows[np.argsort(rows[:, 0]), 1:], contents)
        self._store.append(tail)
        self._store.then(os.fsync, self._store.handle)
        self._store.then(os.pwrite, self._store.handle, head, offset)
        self._store.then(os.fsync, self._store.handle)
        self._store.wait()
        self.close()
        if self._old is None:
            aside.publish(self._aside, self.path)
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        self._store.close()
        self._journal.close()

    @classmethod
    def _may_grow(cls, old: AppendedShelf) -> bool:
        used = int(cls.taken(old.places[:, 1]).sum())
        worth = used >= (1 - MOST_UNUSED) * (old.end - cls.head)
        # A second name of the file is somebody's snapshot.
        return worth and old.grows and old.file.stat().st_nlink == 1

    @classmethod
    def _behind(cls, offset: int, length: int) -> int:
        """Where a value at ``offset`` and its padding end."""
        return offset - cls.before + cls.taken(length)

    def _continued(self, base: list[Any]) -> list[Any]:
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

    def _make_safe(self, items: list[tuple[str, int, int, int, int]]) -> None:
        """Journal these once the disk has them: before that, a power cut would leave a record of nothing."""
        os.fsync(self._store.handle)
        self._journal.write(items)
