"""The HDF5 store: ``images`` (n, P, P, 3) uint8, ``labels``, ``keys``, ``origins`` and ``info`` (JSON).

Plain h5py reads it, one patch a chunk. An HDF5 file does not survive a kill while it is written, so new
patches first go to a spool that does, and the file is put together at the end. Here it is read by the place
of its chunks in the file: HDF5's library is neither fast at single chunks nor safe across a fork. What to
extract is decided elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wsi_assets.patches import aside
from wsi_assets.patches.contract import (
    Contents,
    Identity,
    IndexedSource,
    ShelfSource,
    damaged,
    incomplete,
    tables_of,
)

_JOURNAL, _SPOOL = "journal.jsonl", "patches.bin"


class Hdf5Shelf:
    """A complete HDF5 store, open for reading in this process."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with h5py.File(path, "r", locking="best-effort") as file:
                if "info" not in file:
                    raise incomplete(path)
                self.contents = Contents(
                    info=json.loads(file["info"][()]),
                    keys=[key.decode() for key in file["keys"][:].tolist()],
                    labels=file["labels"][:],
                    origins=file["origins"][:],
                )
                self._places = _places(file["images"], path.stat().st_size)
            self.contents.check()
        except (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError, RuntimeError) as error:
            raise damaged(path, error) from error  # HDF5's library has its errors from all over
        self._handle: int | None = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def raw(self, index: int) -> memoryview:
        """See :class:`wsi_assets.patches.contract.Shelf`; the view is writable, its memory the caller's."""
        offset, length = self._places[index].tolist()
        buffer = np.empty(length, np.uint8)
        if os.preadv(self._handle, [buffer], offset) != length:
            raise damaged(self.path, "the file ends early")
        return buffer.data

    def close(self) -> None:
        """See :class:`wsi_assets.patches.contract.Shelf`."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class Hdf5Source(ShelfSource):
    """A complete HDF5 store as a source: patches are fetched only when the new file is put together."""

    def take(self, locator: int) -> Callable[[], memoryview]:
        """See :class:`wsi_assets.patches.contract.Source`."""
        return partial(self.shelf.raw, locator)


class _Unfinished(IndexedSource):
    """The spool of an unfinished build; locators are (offset, length)."""

    def __init__(self, folder: Path, records: list[Any]):
        self._handle = os.open(folder / _SPOOL, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        items = [((f, y, x), (offset, length)) for record in records for f, y, x, offset, length in record]
        super().__init__(tables_of(items))

    def take(self, locator: tuple[int, int]) -> tuple[int, int]:
        return locator

    def read(self, place: tuple[int, int]) -> bytes:
        offset, length = place
        return os.pread(self._handle, length, offset)

    def close(self) -> None:
        os.close(self._handle)


class Hdf5Writer:
    """See :class:`wsi_assets.patches.contract.Writer`."""

    def __init__(self, path: Path, digest: str, content: dict[str, Any]):
        self.path = path
        self.parts_done, self.lost = 0, {}
        self._content = content
        self._folder = aside.building_folder(path)
        records = aside.Journal.read(self._folder / _JOURNAL)
        if self._folder.exists() and (not records or records[0] != content):
            shutil.rmtree(self._folder)
            records = []
        self._folder.mkdir(parents=True, exist_ok=True)
        self.sources = [_Unfinished(self._folder, records[1:])]
        self._spool = (self._folder / _SPOOL).open("ab")
        self._journal = aside.Journal(self._folder / _JOURNAL)
        if not records:
            self._journal.write(content)
        self._rows: dict[str, Any] = {}
        self._items: list[tuple[str, int, int, int, int]] = []

    def add(self, key: str, label: int, identity: Identity, value: bytes | None, reuse: Any) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        if value is None:
            self._rows[key] = reuse
            return
        place = (self._spool.tell(), len(value))
        self._spool.write(value)
        self._rows[key] = place
        self._items.append((*identity, *place))

    def commit(self, parts_done: int, lost: Sequence[tuple[int, str]]) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        if self._items:
            self._spool.flush()
            os.fsync(self._spool.fileno())
            self._journal.write(self._items)
            self._items = []

    def finish(self, contents: Contents) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        self.commit(0, ())
        finished = self._folder / "finished.h5"
        size, gzip = contents.info["patch_size"], contents.info["codec"] == "gzip"
        (spool,) = self.sources
        with h5py.File(finished, "w", libver="earliest", track_order=False, locking=False) as file:
            images = file.create_dataset(
                "images",
                shape=(len(contents.keys), size, size, 3),
                maxshape=(None, size, size, 3),
                dtype=np.uint8,
                chunks=(1, size, size, 3),
                compression="gzip" if gzip else None,
                compression_opts=contents.info["quality"] if gzip else None,
                fillvalue=None,
            )
            for row, key in enumerate(contents.keys):
                place = self._rows[key]
                value = spool.read(place) if isinstance(place, tuple) else place()
                images.id.write_direct_chunk((row, 0, 0, 0), value)
            width = max((len(key.encode()) for key in contents.keys), default=1)
            keys = np.array([key.encode() for key in contents.keys], dtype=f"S{width}")
            file.create_dataset("keys", data=keys)
            file.create_dataset("labels", data=contents.labels)
            file.create_dataset("origins", data=contents.origins)
            file.create_dataset("info", data=json.dumps(contents.info, sort_keys=True))
        aside.sync(finished)
        aside.publish(finished, self.path)
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        for source in self.sources:
            source.close()
        self.sources = []
        self._spool.close()
        self._journal.close()


def _places(images: h5py.Dataset, size: int) -> np.ndarray:
    """int64 (n, 2): offset and length of each patch's chunk in a file of ``size`` bytes."""
    if len(images) > size:
        raise ValueError(f"{len(images)} patches in {size} bytes")
    places = np.zeros((len(images), 2), np.int64)

    def note(chunk: Any) -> None:
        places[chunk.chunk_offset[0]] = (chunk.byte_offset, chunk.size)

    if len(images):
        images.id.chunk_iter(note)
    if not places.all():
        raise ValueError("patches are missing")
    if (places < 0).any() or (places.max(axis=1, initial=0) > size).any():
        raise ValueError("patches lie beyond its end")
    return places
