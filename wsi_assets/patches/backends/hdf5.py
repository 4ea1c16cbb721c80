"""HDF5: ``images`` (N, P, P, 3) uint8, one patch a chunk, and ``labels`` (N,); row = count in the index.

The datasets ``keys``, ``origins`` and ``info`` (JSON) hold :class:`StoreMetadata`. A patch that could not be
read keeps its row, as zeros with label 255.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import h5py
import numpy as np

from wsi_assets.files import fsync
from wsi_assets.patches.backends.base import (
    ERRORS,
    UNKNOWN_LABEL,
    StoreMetadata,
    StoreReader,
    StoreWriter,
    damaged,
    foreign_info,
    no_patch_store,
)


class Hdf5Reader(StoreReader):
    """Reader of an HDF5 file.

    A file of another program needs ``images``, and may have ``labels`` and ``keys``; without keys, the key of
    a patch is its row in six digits, like the count at the end of the usual keys.
    """

    _file: h5py.File | None = None

    def open(self) -> StoreMetadata:
        self._file = file = h5py.File(self.path, "r", locking="best-effort")
        self._images = images = file.get("images")
        if not isinstance(images, h5py.Dataset):
            raise no_patch_store(self.path, "it has no dataset 'images'")
        count, size = len(images), images.shape[1] if images.ndim == 4 else 0
        if images.shape[1:] != (size, size, 3) or not size or images.dtype != np.uint8:
            what = f"'images' is {images.dtype} {images.shape}, not uint8 (N, P, P, 3)"
            raise no_patch_store(self.path, what)
        named = file["keys"][:].tolist() if "keys" in file else []
        keys = [key.decode() if isinstance(key, bytes) else str(key) for key in named]
        if isinstance(file.get("info"), h5py.Dataset) and file["info"].dtype.kind == "S":
            origins = file["origins"][:] if "origins" in file else None
            info, labels = dict(json.loads(file["info"][()])), file["labels"][:].astype(np.uint8)
            return StoreMetadata(info, keys, labels, origins).check(self.path, count)
        if len(keys) != count:
            keys = [f"{row:06d}" for row in range(count)]
        labels = np.full(count, UNKNOWN_LABEL, np.uint8)
        if "labels" in file:
            labels = np.asarray(file["labels"][:]).reshape(-1)
            if labels.shape != (count,) or labels.dtype.kind not in "biuf":
                raise no_patch_store(self.path, f"{count} images and {labels.shape} {labels.dtype} labels")
        return StoreMetadata(foreign_info("hdf5", "pixels", size), keys, labels.astype(np.uint8), None)

    def read(self, row: int) -> memoryview:
        try:
            # read_direct_chunk would trust a damaged length.
            return memoryview(self._images[row]).cast("B")
        except ERRORS as error:
            raise damaged(self.path, error) from error

    def pixels(self, row: int, out: np.ndarray) -> np.ndarray:
        # read_direct into ``out`` takes 50 % longer.
        return self._images[row]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Hdf5Writer(StoreWriter):
    """Writer of an HDF5 file, which grows if ``count`` is not known."""

    def __init__(self, path: Path, count: int | None, patch_size: int):
        self._path = path
        shape = (patch_size, patch_size, 3)
        self._file = h5py.File(path, "w", libver="earliest", locking="best-effort")
        self._images = self._file.create_dataset(
            "images", (count or 0, *shape), maxshape=(None, *shape), dtype="u1", chunks=(1, *shape)
        )

    def write(self, row: int, key: str, label: int, value: bytes) -> None:
        if row >= len(self._images):
            self._images.resize(row + 256, 0)
        self._images.id.write_direct_chunk((row, 0, 0, 0), value)

    def finish(self, metadata: StoreMetadata) -> None:
        self._images.resize(len(metadata.keys), 0)
        self._file["keys"] = np.array([key.encode() for key in metadata.keys], dtype="S")
        self._file["labels"] = metadata.labels
        if metadata.origins is not None:
            self._file["origins"] = metadata.origins
        self._file["info"] = np.bytes_(json.dumps(metadata.info, sort_keys=True))
        self._file.close()
        fsync(self._path)

    def close(self) -> None:
        with contextlib.suppress(*ERRORS):  # on a full disk closing fails again
            self._file.close()
