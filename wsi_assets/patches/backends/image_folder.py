"""PNG folder: ``normal/{key}.png`` and ``tumor/{key}.png``, which torchvision's ImageFolder reads.

``manifest.json`` beside the two folders holds :class:`StoreMetadata`; ImageFolder ignores it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from wsi_assets.errors import StoreError
from wsi_assets.patches.backends.base import (
    StoreMetadata,
    StoreReader,
    StoreWriter,
    foreign_info,
    no_patch_store,
)
from wsi_assets.patches.codecs import codec_of, decode

MANIFEST = "manifest.json"
CLASSES = ("normal", "tumor")
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


class ImageFolderReader(StoreReader):
    """Reader of a folder.

    Files are opened relative to the open folder, so that after the folder was replaced by a new store, no
    patch of the new store is read under an old key.
    """

    _handle: int | None = None

    def open(self) -> StoreMetadata:
        self._handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if (self.path / MANIFEST).exists():
            metadata = StoreMetadata.from_json(self._read(MANIFEST))
            rows = zip(metadata.keys, metadata.labels.tolist(), strict=True)
            self._files = [_file_of(key, label) for key, label in rows]
            return metadata.check(self.path, len(self._files))
        found = sorted(
            (file.name, label, f"{name}/{file.name}")
            for label, name in enumerate(CLASSES)
            for file in (self.path / name).glob("*")
            if file.suffix.lower() in _IMAGE_SUFFIXES
        )
        if not found:
            raise no_patch_store(self.path, "its folders normal and tumor have no PNG or JPEG images")
        names, labels, self._files = zip(*found, strict=True)
        value = self._read(self._files[0])
        info = foreign_info("fs", codec_of(value), len(decode(value)))
        return StoreMetadata(info, [Path(name).stem for name in names], np.array(labels, np.uint8), None)

    def read(self, row: int) -> bytes:
        try:
            return self._read(self._files[row])
        except (OSError, ValueError) as error:  # ValueError: a damaged manifest can hold impossible names
            what = f"{self._files[row]} is missing or cannot be read ({error})"
            raise StoreError(what, path=self.path, remedy="Open the store again") from error

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


class ImageFolderWriter(StoreWriter):
    """Writer of a folder; patches of the old store become hard links to its files."""

    def __init__(self, path: Path, count: int | None, patch_size: int):
        self._path = path
        for name in CLASSES:
            (path / name).mkdir(parents=True)

    def write(self, row: int, key: str, label: int, value: bytes) -> None:
        (self._path / _file_of(key, label)).write_bytes(value)

    def keep(self, row: int, key: str, label: int, old: ImageFolderReader, old_row: int) -> None:
        source, target = old.file(old_row), self._path / _file_of(key, label)
        try:
            os.link(source, target)
        except OSError:  # the file system has no hard links
            shutil.copyfile(source, target)

    def finish(self, metadata: StoreMetadata) -> None:
        (self._path / MANIFEST).write_bytes(metadata.to_json())
        os.sync()  # fsync for each file would take longer than writing them

    def close(self) -> None:
        pass


def _file_of(key: str, label: int) -> str:
    """The file of a patch, relative to the folder."""
    return f"{CLASSES[label]}/{key}.png"
