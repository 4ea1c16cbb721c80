"""One handle for every kind of store: light, sent to other processes as its path, opened there when used.

How each kind keeps its patches, and how stores are built, belong elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.errors import StoreError
from wsi_assets.patches import aside
from wsi_assets.patches.codecs import decoder
from wsi_assets.patches.contract import Shelf, damaged, incomplete, replaced

STORE_NAMES = {"lmdb": "patches_lmdb", "hdf5": "patches.h5", "fs": "image_patches"}
"""The name of each kind of store inside a level's folder."""

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class PatchStore:
    """A complete store of patches, all of one level and size.

    The handle opens its files on first use in each process and pickles as its path and digest. It never
    mixes two stores: when a new one takes its place, an open handle goes on with the old one (a PNG folder's
    raises StoreError, since its files are gone), and one that must open again raises StoreError.
    """

    def __init__(self, path: str | Path, digest: str | None = None):
        self.path = Path(path)
        self._digest = digest
        self._shelf: Shelf | None = None
        self._owner = 0
        self._decode = None

    def __len__(self) -> int:
        return len(self._opened().contents.keys)

    @property
    def info(self) -> dict[str, Any]:
        """What the store says of itself: see :class:`wsi_assets.patches.contract.Contents`."""
        return self._opened().contents.info

    @property
    def keys(self) -> list[str]:
        """``{slide_id}_{count:06d}`` of each patch, in index order."""
        return self._opened().contents.keys

    @property
    def labels(self) -> np.ndarray:
        """uint8 (n,), 1 is tumour."""
        return self._opened().contents.labels

    @property
    def slide_ids(self) -> list[str]:
        """The slide of each patch."""
        names = [slide["slide_id"] for slide in self.info["slides"]]
        return [names[number] for number in self._opened().contents.origins[:, 0].tolist()]

    @property
    def coords(self) -> np.ndarray:
        """int32 (n, 2), (y, x) of each patch's top-left corner in pixels of the store's level."""
        return self._opened().contents.origins[:, 1:]

    @property
    def origins(self) -> list[tuple[str, int, int]]:
        """(slide id, y, x) of each patch."""
        return [(name, y, x) for name, (y, x) in zip(self.slide_ids, self.coords.tolist(), strict=True)]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self.keys)}

    def key_index(self, key: str) -> int:
        """The number of a key's patch; KeyError if the store lacks it."""
        return self._numbers[key]

    def get(self, index: int) -> np.ndarray:
        """One patch, uint8 (P, P, 3) RGB, the caller's own.

        Raises:
            IndexError: there is no such patch.
            StoreError: its bytes are damaged or gone.
        """
        shelf = self._opened()
        if not 0 <= index < len(shelf.contents.keys):
            raise IndexError(f"patch {index} of {len(shelf.contents.keys)}")
        try:
            return self._decode(shelf.raw(index))
        except StoreError:
            raise
        except Exception as error:  # each image library has its own errors
            raise damaged(self.path, f"{shelf.contents.keys[index]}: {error}") from error

    def get_many(self, indices: Iterable[int]) -> np.ndarray:
        """Several patches, uint8 (k, P, P, 3) RGB, in the order asked for."""
        indices = [int(index) for index in indices]
        size = self.info["patch_size"]
        patches = np.empty((len(indices), size, size, 3), np.uint8)
        for row, index in enumerate(indices):
            patches[row] = self.get(index)
        return patches

    def encoded(self, index: int) -> bytes:
        """The stored bytes of one patch, as ``info["codec"]`` wrote them."""
        return bytes(self._opened().raw(index))

    def __getitem__(self, index: int) -> np.ndarray:
        return self.get(index)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.get(index) for index in range(len(self)))

    def close(self) -> None:
        """Let go of all files; a later use opens them again."""
        if self._shelf is not None and self._owner == os.getpid():
            self._shelf.close()
        self._shelf = None

    def __enter__(self) -> PatchStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self):
        return type(self), (self.path, self._digest)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def _opened(self) -> Shelf:
        if self._shelf is None or self._owner != os.getpid():
            # A shelf from before a fork is the parent's: it is let go, and this process opens its own.
            shelf = open_shelf(self.path)
            if self._digest not in (None, shelf.contents.info["digest"]):
                shelf.close()
                raise replaced(self.path)
            self._digest = shelf.contents.info["digest"]
            self._decode = decoder(shelf.contents.info["codec"], shelf.contents.info["patch_size"])
            self._shelf, self._owner = shelf, os.getpid()
        return self._shelf


def open_store(path: str | Path) -> PatchStore:
    """Open a store of any kind, recognised by what lies at ``path``.

    Raises:
        StoreError: there is none, it is half-built, or it is damaged.
    """
    store = PatchStore(path)
    store._opened()
    return store


def open_shelf(path: Path) -> Shelf:
    """The store at ``path`` as its format gives it; use :func:`open_store` to read patches."""
    kind = _kind_of(path)
    if kind == "lmdb":
        from wsi_assets.patches.lmdb_store import LmdbShelf as Kind
    elif kind == "hdf5":
        from wsi_assets.patches.hdf5_store import Hdf5Shelf as Kind
    else:
        from wsi_assets.patches.folder_store import FolderShelf as Kind
    return Kind(path)


def _kind_of(path: Path) -> str:
    if not path.exists():
        if aside.building_folder(path).exists():
            raise incomplete(path)
        raise StoreError("does not exist", path=path, remedy="Build the store first")
    if path.is_dir():
        if (path / "data.mdb").is_file():
            return "lmdb"
        if (path / "manifest.json").is_file():
            return "fs"
        raise StoreError("is not a patch store", path=path, remedy="Check the path")
    with path.open("rb") as stream:
        if stream.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE:
            return "hdf5"
    raise StoreError("is not a patch store", path=path, remedy="Check the path, or build it again")
