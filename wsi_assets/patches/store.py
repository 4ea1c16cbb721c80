"""Read patch stores: one handle for LMDB, HDF5 and PNG folders, which other processes open again by path."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.errors import StoreError
from wsi_assets.files import recover
from wsi_assets.patches.backends import backend_classes
from wsi_assets.patches.backends.base import StoreReader, UnusableStoreError, damaged
from wsi_assets.patches.options import Backend
from wsi_assets.slides.closing import Closing

STORE_NAMES = {"lmdb": "patches_lmdb", "hdf5": "patches.h5", "fs": "image_patches"}
"""The name of each kind of store inside a level's folder."""


class PatchStore(Closing):
    """A complete store of patches, all of one level and one size.

    The handle opens its files on first use in each process. Threads may share it. It pickles as its path and
    digest. When the store is replaced by a new one, an open handle still reads the old one; a handle on a PNG
    folder, whose files are gone, and a handle that must open its files again raise StoreError.
    """

    def __init__(self, path: str | Path, digest: str | None = None):
        self.path = Path(path)
        self._digest = digest
        self._reader: StoreReader | None = None
        self._process = 0
        self._rows: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self._opened().metadata.keys)

    @property
    def info(self) -> dict[str, Any]:
        """Facts about the store, see :class:`wsi_assets.patches.backends.base.StoreMetadata`."""
        return self._opened().metadata.info

    @property
    def keys(self) -> list[str]:
        """``{slide_id}_{count:06d}`` of each patch, in index order."""
        return self._opened().metadata.keys

    @property
    def labels(self) -> np.ndarray:
        """uint8 (n,): 1 is tumor, 0 normal, 255 a patch that was not read or whose class the store lacks."""
        return self._opened().metadata.labels

    @property
    def coords(self) -> np.ndarray | None:
        """int32 (n, 2), (y, x) of each patch in pixels of the target level; None if the store lacks them."""
        origins = self._opened().metadata.origins
        return None if origins is None else origins[:, 1:]

    @property
    def origins(self) -> list[tuple[str, int, int]]:
        """(slide id, y, x) of each patch; StoreError if the store lacks them, as those of other programs."""
        metadata = self._opened().metadata
        if metadata.origins is None:
            what = "does not hold the coordinates of its patches"
            raise StoreError(what, path=self.path, remedy="Take them from the index")
        names = [slide["slide_id"] for slide in metadata.info["slides"]]
        return [(names[number], y, x) for number, y, x in metadata.origins.tolist()]

    def key_index(self, key: str) -> int:
        """The row of a key; KeyError if the store lacks it.

        In a store without keys (an HDF5 file of another program) the row is the count at the end of the key.
        """
        keys = self.keys
        if self._rows is None:
            self._rows = {key: row for row, key in enumerate(keys)}
        row = self._rows.get(key)
        return self._rows[key.rpartition("_")[2]] if row is None else row

    def get(self, index: int) -> np.ndarray:
        """One patch as a new uint8 (P, P, 3) RGB array.

        Raises:
            IndexError: there is no such patch.
            StoreError: its bytes are damaged or missing.
        """
        size = self.info["patch_size"]
        return self._pixels(index, np.empty((size, size, 3), np.uint8))

    def get_many(self, indices: Sequence[int], out: np.ndarray | None = None) -> np.ndarray:
        """Several patches in the order of ``indices``: uint8 (k, P, P, 3) RGB, a new array or ``out``."""
        if out is None:
            size = self.info["patch_size"]
            out = np.empty((len(indices), size, size, 3), np.uint8)
        for index, patch in zip(indices, out, strict=True):
            pixels = self._pixels(index, patch)
            if pixels is not patch:
                patch[:] = pixels
        return out

    def _pixels(self, index: int, out: np.ndarray) -> np.ndarray:
        reader = self._opened()
        if not 0 <= index < len(reader.metadata.keys):
            raise IndexError(f"patch {index} of {len(reader.metadata.keys)}")
        try:
            return reader.pixels(index, out)
        except StoreError:
            raise
        except Exception as error:  # each image library has its own errors
            raise damaged(self.path, f"{reader.metadata.keys[index]}: {error}") from error

    def encoded(self, index: int) -> bytes:
        """The stored bytes of one patch: a JPEG or PNG image, or in HDF5 the pixels."""
        return bytes(self._opened().read(index))

    def problems(self) -> list[str]:
        """Damage that LMDB's checker finds, or missing files of a PNG folder, one line each; slow."""
        return self._opened().problems()

    def __getitem__(self, index: int) -> np.ndarray:
        return self.get(index)

    def close(self) -> None:
        """Close all files; a later use opens them again."""
        if self._reader is not None and self._process == os.getpid():
            self._reader.close()
        self._reader = None

    def __reduce__(self):
        return type(self), (self.path, self._digest)

    def _opened(self) -> StoreReader:
        reader = self._reader
        if reader is not None and self._process == os.getpid():
            return reader
        with _opening:
            if self._reader is None or self._process != os.getpid():
                if self._reader is not None:
                    self._reader.close()  # inherited from the parent at a fork
                    self._reader = None
                reader = open_reader(self.path)
                digest = reader.metadata.info.get("digest")
                if self._digest not in (None, digest):
                    reader.close()
                    what = "was replaced by a new store since it was opened"
                    raise StoreError(what, path=self.path, remedy="Open it again")
                self._digest, self._process, self._reader = digest, os.getpid(), reader
            return self._reader


_opening = threading.Lock()


def _after_fork() -> None:
    global _opening  # another thread of the parent may have held it
    _opening = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def open_store(path: str | Path) -> PatchStore:
    """Open a patch store of any kind, of this package or of another program.

    Raises:
        StoreError: there is none, or it is unfinished or damaged.
    """
    store = PatchStore(path)
    store._opened()
    return store


def open_reader(path: Path) -> StoreReader:
    """The backend's reader of the store at ``path``; :func:`open_store` is for reading patches."""
    try:
        kind = _kind_of(path)
    except OSError as error:
        what = f"cannot be read ({error.strerror or error})"
        raise StoreError(what, path=path, remedy="Check its permissions") from error
    return backend_classes(kind)[0](path)


def partial_folder(path: Path) -> Path:
    """The folder in which the store at ``path`` is built; its fixed name lets the next build continue it."""
    return path.with_name(f".{path.name}.partial")


def _kind_of(path: Path) -> Backend:
    if not path.exists():
        recover(path)
    if path.is_dir():
        if (path / "data.mdb").is_file():
            return "lmdb"
        if any((path / name).exists() for name in ("manifest.json", "normal", "tumor")):
            return "fs"
    elif path.exists():
        with path.open("rb") as stream:
            start = stream.read(32)
        if start.startswith(b"\x89HDF\r\n\x1a\n"):
            return "hdf5"
        if (0xBEEFC0DE).to_bytes(4, "little") in start:  # an LMDB in a single file
            return "lmdb"
    elif partial_folder(path).exists():
        what, remedy = "is unfinished: its build did not end", "Run the build again; it continues"
        raise UnusableStoreError(what, path=path, remedy=remedy)
    else:
        raise StoreError("does not exist", path=path, remedy="Build the store first")
    raise StoreError("is not a patch store", path=path, remedy="Check the path, or build it again")
