"""HDF5: ``images`` (N, P, P, 3) uint8, one patch a chunk, and ``labels`` (N,); row = count in the index.

Datasets ``keys``, ``origins`` and ``info`` (JSON) are ours. A patch that could not be read keeps
its row: zeros, label 255.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import h5py
import numpy as np

from wsi_assets.errors import StoreError
from wsi_assets.files import fsync
from wsi_assets.patches.backends.base import (
    UNKNOWN_LABEL,
    StoreMetadata,
    StoreReader,
    damaged,
    foreign_info,
    no_patch_store,
)

_ERRORS = (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError, RuntimeError)
"""HDF5's library has its errors from all over."""


class Hdf5Reader:
    """A published file, open for reading.

    One that another program wrote has ``images`` and ``labels``, perhaps ``keys``; else a patch's key is its
    row with six digits, the count at the end of the usual keys.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: h5py.File | None = None
        try:
            self._file = h5py.File(path, "r", locking="best-effort")
            self._images = self._file.get("images")
            if not isinstance(self._images, h5py.Dataset):
                raise no_patch_store(path, "it has no dataset 'images'")
            self.metadata = self._ours() if self._is_ours() else self._foreign()
        except StoreError:
            self.close()
            raise
        except _ERRORS as error:
            self.close()
            raise damaged(path, error) from error

    def _is_ours(self) -> bool:
        info = self._file.get("info")
        return isinstance(info, h5py.Dataset) and info.shape == () and info.dtype.kind == "S"

    def _ours(self) -> StoreMetadata:
        file = self._file
        metadata = StoreMetadata(
            info=json.loads(file["info"][()]),
            keys=[key.decode() for key in file["keys"][:].tolist()],
            labels=file["labels"][:],
            origins=file["origins"][:] if "origins" in file else None,
        )
        metadata.check(self.path, len(file["images"]), len(file["labels"]))
        size = metadata.info["patch_size"]
        if self._images.shape[1:] != (size, size, 3) or self._images.dtype != np.uint8:
            raise ValueError(f"images of shape {self._images.shape}")
        return metadata

    def _foreign(self) -> StoreMetadata:
        images = self._images
        size = images.shape[1] if images.ndim == 4 else 0
        if images.shape[1:] != (size, size, 3) or not size or images.dtype != np.uint8:
            raise no_patch_store(
                self.path, f"'images' is {images.dtype} {images.shape}, not uint8 (N, P, P, 3)"
            )
        count = len(images)
        labels = np.full(count, UNKNOWN_LABEL, np.uint8)
        if "labels" in self._file:
            labels = np.asarray(self._file["labels"][:]).reshape(-1)
            if labels.shape != (count,) or labels.dtype.kind not in "biuf":
                raise no_patch_store(self.path, f"{count} images and {labels.shape} {labels.dtype} labels")
            labels = labels.astype(np.uint8)
        keys = [f"{row:06d}" for row in range(count)]
        if "keys" in self._file and self._file["keys"].shape == (count,):
            named = self._file["keys"][:].tolist()
            keys = [key.decode() if isinstance(key, bytes) else str(key) for key in named]
        return StoreMetadata(foreign_info("hdf5", "pixels", size), keys, labels, None)

    def read(self, row: int) -> memoryview:
        try:
            # Not read_direct_chunk: it trusts the length that a damaged file gives.
            return memoryview(self._images[row]).cast("B")
        except _ERRORS as error:
            raise damaged(self.path, error) from error

    def problems(self) -> list[str]:
        return []

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Hdf5Writer:
    """See :class:`StoreWriter`. Without a ``count`` the file grows."""

    def __init__(self, path: Path, count: int | None, patch_size: int):
        self._path = path
        self._fixed = count is not None
        shape = (patch_size, patch_size, 3)
        self._file = h5py.File(path, "w", libver="earliest", locking="best-effort")
        self._images = self._file.create_dataset(
            "images", (count or 0, *shape), maxshape=(None, *shape), dtype="u1", chunks=(1, *shape)
        )

    def write(self, row: int, key: str, label: int, value: bytes) -> None:
        if row >= len(self._images):
            self._images.resize(row + 256, 0)
        self._images.id.write_direct_chunk((row, 0, 0, 0), value)

    def keep(self, row: int, key: str, label: int, old: StoreReader, old_row: int) -> None:
        self.write(row, key, label, old.read(old_row))

    def finish(self, metadata: StoreMetadata) -> None:
        if not self._fixed:
            self._images.resize(len(metadata.keys), 0)
        keys = [key.encode() for key in metadata.keys]
        self._file["keys"] = np.array(keys, dtype=f"S{max(map(len, keys), default=1)}")
        self._file["labels"] = metadata.labels
        if metadata.origins is not None:
            self._file["origins"] = metadata.origins
        self._file["info"] = np.bytes_(json.dumps(metadata.info, sort_keys=True))
        self._file.close()
        fsync(self._path)

    def close(self) -> None:
        with contextlib.suppress(*_ERRORS):  # what a full disk did not take is not written now either
            self._file.close()
