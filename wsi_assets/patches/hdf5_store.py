"""The HDF5 store: ``images`` (n, P, P, 3) uint8, ``labels``, ``keys``, ``origins`` and ``info`` (JSON).

Plain h5py reads it, one patch a chunk. Here it is read by the place of its chunks in the file: HDF5's library
is neither fast at single chunks nor safe across a fork. How the file grows, and what to extract, is decided
elsewhere.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from wsi_assets.errors import StoreError
from wsi_assets.patches.appended import AppendedShelf, AppendingWriter
from wsi_assets.patches.contract import Contents, damaged, incomplete, replaced
from wsi_assets.patches.hdf5_pages import SUPERBLOCK, Chunks, finished


class Hdf5Shelf(AppendedShelf):
    """A complete HDF5 store, open for reading in this process."""

    def __init__(self, path: Path):
        super().__init__(path, path)
        try:
            with h5py.File(path, "r", locking="best-effort") as file:
                if not os.path.samestat(os.fstat(self.handle), path.stat()):
                    # The library opens files by name only, and a new one took this name meanwhile.
                    raise replaced(path)
                if "info" not in file:
                    raise incomplete(path)
                self.contents = Contents(
                    info=json.loads(file["info"][()]),
                    keys=[key.decode() for key in file["keys"][:].tolist()],
                    labels=file["labels"][:],
                    origins=file["origins"][:],
                )
                self.end = _end_of(self.handle)
                # Another program may have left the file with any end; we append at multiples of 8.
                self.grows = self.end % 8 == 0
                self.places = _places(file["images"], self.end)
            self.contents.check(path)
        except StoreError:
            self.close()
            raise
        except (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError, RuntimeError) as error:
            self.close()
            raise damaged(path, error) from error  # HDF5's library has its errors from all over


class Hdf5Writer(AppendingWriter):
    """See :class:`wsi_assets.patches.contract.Writer`."""

    head = 4096
    """The superblock needs less, but so patches of 256 pixels begin at pages of the disk."""
    before = 0

    def __init__(self, path: Path, content: dict[str, Any], old: Hdf5Shelf | None):
        super().__init__(path, content, old)
        self._gzip = int(content["quality"] or 0) if content["codec"] == "gzip" else 0

    @staticmethod
    def file_of(path: Path) -> Path:
        """See :class:`AppendingWriter`."""
        return path

    @staticmethod
    def taken(lengths: Any) -> Any:
        """A chunk's own bytes and up to 7 zeros."""
        return lengths + -lengths % 8

    @staticmethod
    def header(offset: int, length: int) -> bytes:
        """There is none."""
        return b""

    def index(self, places: np.ndarray, contents: Contents) -> tuple[bytes, tuple[int, bytes]]:
        """See :class:`AppendingWriter`."""
        size = contents.info["patch_size"]
        keys = [key.encode() for key in contents.keys]
        plain = {
            "keys": np.array(keys, dtype=f"S{max(map(len, keys), default=1)}"),
            "labels": contents.labels,
            "origins": contents.origins,
            "info": json.dumps(contents.info, sort_keys=True).encode(),
        }
        images = Chunks((size, size, 3), places, self._gzip)
        tail, superblock = finished({"images": images}, plain, self.end)
        return tail, (0, superblock)


def _end_of(handle: int) -> int:
    """Bytes of the file that are the store's; a killed update may have left more."""
    superblock = os.pread(handle, SUPERBLOCK, 0)
    size = os.fstat(handle).st_size
    # A file that another program wrote anew may have another superblock; then all of it is the store's.
    end = int.from_bytes(superblock[40:48], "little") if superblock[8:9] == b"\0" else size
    return min(end, size)


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
