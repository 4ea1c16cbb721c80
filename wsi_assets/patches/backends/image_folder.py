"""PNG folder: ``normal/{key}.png`` and ``tumor/{key}.png``, an ImageFolder as torchvision reads it.

``manifest.json`` and ``patches.csv`` beside the two folders are ours; ImageFolder reads folders only.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np

from wsi_assets.errors import StoreError
from wsi_assets.patches.backends.base import (
    StoreMetadata,
    StoreReader,
    damaged,
    foreign_info,
    no_patch_store,
)
from wsi_assets.patches.codecs import codec_of, decode

MANIFEST = "manifest.json"
CLASSES = ("normal", "tumor")
_TABLE = "patches.csv"
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_ERRORS = (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError, csv.Error)
"""What reading a damaged manifest or table can raise."""


class ImageFolderReader:
    """A published folder, open for reading.

    Files are opened relative to the folder's own handle: when a new store takes the folder's place, this one
    never reads the new one's patches under the old keys.
    """

    def __init__(self, path: Path):
        self.path = path
        self._handle: int | None = None
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            ours = (path / MANIFEST).exists()
            self._files, self.metadata = self._ours() if ours else self._foreign()
        except StoreError:
            self.close()
            raise
        except _ERRORS as error:
            self.close()
            raise damaged(path, error) from error

    def _ours(self) -> tuple[list[str], StoreMetadata]:
        info = json.loads(self._read(MANIFEST))
        rows = list(csv.DictReader(io.StringIO(self._read(_TABLE).decode("utf-8"), newline="")))
        labels = np.array([int(row["label"]) for row in rows], np.uint8)
        origins = None
        if "slides" in info:
            numbers = {slide["slide_id"]: number for number, slide in enumerate(info["slides"])}
            places = [(numbers[row["slide_id"]], int(row["y"]), int(row["x"])) for row in rows]
            origins = np.array(places, np.int32).reshape(-1, 3)
        metadata = StoreMetadata(info, [row["key"] for row in rows], labels, origins)
        metadata.check(self.path)
        return [file_of(key, label) for key, label in zip(metadata.keys, labels, strict=True)], metadata

    def _foreign(self) -> tuple[list[str], StoreMetadata]:
        found: list[tuple[str, int, str]] = []
        for label, name in enumerate(CLASSES):
            for file in (self.path / name).glob("*"):
                if file.suffix.lower() in _IMAGE_SUFFIXES:
                    found.append((file.name, label, f"{name}/{file.name}"))
        if not found:
            raise no_patch_store(self.path, "its folders normal and tumor have no PNG or JPEG images")
        found.sort()
        value = self._read(found[0][2])
        keys = [Path(name).stem for name, _, _ in found]
        labels = np.array([label for _, label, _ in found], np.uint8)
        info = foreign_info("fs", codec_of(value), decode(value).shape[0])
        return [file for _, _, file in found], StoreMetadata(info, keys, labels, None)

    def read(self, row: int) -> bytes:
        try:
            return self._read(self._files[row])
        except (OSError, ValueError) as error:  # a damaged table may hold names that no file can have
            raise StoreError(
                f"{self._files[row]} is gone or does not read ({error})",
                path=self.path,
                remedy="Open the store again",
            ) from error

    def file(self, row: int) -> Path:
        """The patch's file."""
        return self.path / self._files[row]

    def problems(self) -> list[str]:
        return [f"{file} is missing" for file in self._files if not (self.path / file).is_file()]

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _read(self, name: str) -> bytes:
        handle = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._handle)
        with open(handle, "rb", buffering=0) as stream:  # noqa: PTH123  (a descriptor, not a path)
            return stream.read()


class ImageFolderWriter:
    """See :class:`StoreWriter`. Kept patches are second names of the old store's files."""

    def __init__(self, path: Path, count: int | None, patch_size: int):
        self._path = path
        for name in CLASSES:
            (path / name).mkdir(parents=True)

    def write(self, row: int, key: str, label: int, value: bytes) -> None:
        (self._path / file_of(key, label)).write_bytes(value)

    def keep(self, row: int, key: str, label: int, old: StoreReader, old_row: int) -> None:
        source, target = old.file(old_row), self._path / file_of(key, label)
        try:
            os.link(source, target)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, target)

    def finish(self, metadata: StoreMetadata) -> None:
        columns = [metadata.keys, metadata.labels.tolist()]
        header = ["key", "label"]
        if metadata.origins is not None:
            names = [slide["slide_id"] for slide in metadata.info["slides"]]
            slides, ys, xs = metadata.origins.T.tolist()
            columns += [[names[number] for number in slides], ys, xs]
            header += ["slide_id", "y", "x"]
        with (self._path / _TABLE).open("w", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(header)
            table.writerows(zip(*columns, strict=True))
        text = json.dumps(metadata.info, indent=1, sort_keys=True) + "\n"
        (self._path / MANIFEST).write_text(text, encoding="utf-8")
        os.sync()  # a call a file would take longer than the files

    def close(self) -> None:
        pass


def file_of(key: str, label: int) -> str:
    """The file of a patch, relative to the folder."""
    return f"{CLASSES[label]}/{key}.png"
