"""The PNG folder: ``normal/`` and ``tumor/`` hold ``{key}.png``, an ImageFolder as torchvision reads it.

``manifest.json`` and ``patches.csv`` stand beside the two; ImageFolder looks at folders only. A class without
patches has no folder, because ImageFolder refuses an empty one. What to extract is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.errors import StoreError
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

MANIFEST = "manifest.json"
_TABLE = "patches.csv"
_JOURNAL = "journal.jsonl"
_CLASSES = ("normal", "tumor")


class FolderShelf:
    """A complete PNG folder, open for reading in this process.

    Files are opened relative to the folder's own handle: when a new store takes the folder's place, this one
    never reads the new one's patches under the old keys.
    """

    def __init__(self, path: Path):
        self.path = path
        self._handle: int | None = None
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            info = json.loads(self._read(MANIFEST))
            rows = list(csv.reader(io.StringIO(self._read(_TABLE).decode("utf-8"), newline="")))[1:]
            numbers = {slide["slide_id"]: number for number, slide in enumerate(info["slides"])}
            origins = [(numbers[slide_id], int(y), int(x)) for _, _, slide_id, y, x in rows]
            self.contents = Contents(
                info=info,
                keys=[row[0] for row in rows],
                labels=np.array([int(row[1]) for row in rows], np.uint8),
                origins=np.array(origins, np.int32).reshape(-1, 3),
            )
            self.contents.check(path)
        except StoreError:
            self.close()
            raise
        except FileNotFoundError as error:
            self.close()
            raise incomplete(path) from error
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, csv.Error) as error:
            self.close()
            raise damaged(path, error) from error

    def raw(self, index: int) -> bytes:
        """See :class:`wsi_assets.patches.contract.Shelf`."""
        name = self.name(index)
        try:
            return self._read(name)
        except FileNotFoundError as error:
            raise StoreError(f"{name} is gone", path=self.path, remedy="Open the store again") from error

    def tidy(self) -> None:
        """See :class:`wsi_assets.patches.contract.Shelf`; an update is made beside it."""

    def name(self, index: int) -> str:
        """The patch's file, relative to the folder."""
        return f"{_CLASSES[self.contents.labels[index]]}/{self.contents.keys[index]}.png"

    def close(self) -> None:
        """See :class:`wsi_assets.patches.contract.Shelf`."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _read(self, name: str) -> bytes:
        handle = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._handle)
        with open(handle, "rb", buffering=0) as stream:  # noqa: PTH123  (a descriptor, not a path)
            return stream.read()


class FolderSource(ShelfSource):
    """A complete PNG folder as a source: it gives files to link, not bytes."""

    def take(self, locator: int) -> Path:
        """See :class:`wsi_assets.patches.contract.Source`."""
        return self.shelf.path / self.shelf.name(locator)


class _Unfinished(IndexedSource):
    """What an unfinished build wrote; locators are file names."""

    def __init__(self, folder: Path, records: list[Any]):
        self._folder = folder
        items = [((f, y, x), name) for record in records for f, y, x, name in record["items"]]
        super().__init__(tables_of(items))

    def take(self, locator: str) -> Path:
        return self._folder / locator


class FolderWriter:
    """See :class:`wsi_assets.patches.contract.Writer`.

    A continued build starts afresh and links the files the unfinished one left, which costs no pixels and no
    space.
    """

    def __init__(self, path: Path, content: dict[str, Any], old: FolderShelf | None):
        self.path = path
        self.sources: list[_Unfinished | FolderSource] = []
        self._folder = aside.building_folder(path)
        if self._folder.exists():
            aside.set_aside(path)
        for folder in aside.salvage_folders(path):
            records = aside.Journal.read(folder / _JOURNAL)
            if records and records[0] == content:
                self.sources.append(_Unfinished(folder, records[1:]))
        if old is not None:
            self.sources.append(FolderSource(old))
        self._folder.mkdir(parents=True)
        self._journal = aside.Journal(self._folder / _JOURNAL)
        self._journal.write(content)
        self._items: list[tuple[str, int, int, str]] = []

    def add(
        self,
        position: int,
        key: str,
        label: int,
        identity: Identity,
        value: bytes | None,
        reuse: Path | None,
    ) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        name = f"{_CLASSES[label]}/{key}.png"
        target = self._folder / name
        if not self._items:
            for kind in _CLASSES:
                (self._folder / kind).mkdir(exist_ok=True)
        if reuse is not None:
            _link(reuse, target)
        else:
            target.write_bytes(value)
        self._items.append((*identity, name))

    def commit(self) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        self._journal.write({"items": self._items})
        self._items = []

    def finish(self, contents: Contents) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        names = [slide["slide_id"] for slide in contents.info["slides"]]
        with (self._folder / _TABLE).open("w", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(["key", "label", "slide_id", "y", "x"])
            rows = zip(contents.keys, contents.labels.tolist(), contents.origins.tolist(), strict=True)
            table.writerows((key, label, names[number], y, x) for key, label, (number, y, x) in rows)
        self._journal.close()
        (self._folder / _JOURNAL).unlink()
        for kind in _CLASSES:
            with contextlib.suppress(OSError):  # not empty, or never made
                (self._folder / kind).rmdir()
        text = json.dumps(contents.info, indent=1, sort_keys=True) + "\n"
        (self._folder / MANIFEST).write_text(text, encoding="utf-8")
        os.sync()  # a call a file would take longer than the files
        aside.publish(self._folder, self.path)
        aside.forget(self.path)

    def close(self) -> None:
        """See :class:`wsi_assets.patches.contract.Writer`."""
        self._journal.close()


def _link(file: Path, target: Path) -> None:
    """A second name for the same bytes, or a copy where the file system has no such thing."""
    try:
        target.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, target)
