"""The store backends: LMDB, HDF5, and a folder of PNG files by class."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsi_assets.patches.backends.base import StoreReader, StoreWriter
    from wsi_assets.patches.options import Backend


def backend_classes(backend: Backend) -> tuple[type[StoreReader], type[StoreWriter]]:
    """Reader and writer class of a backend; imports its library."""
    if backend == "lmdb":
        from wsi_assets.patches.backends.lmdb import LmdbReader, LmdbWriter

        return LmdbReader, LmdbWriter
    if backend == "hdf5":
        from wsi_assets.patches.backends.hdf5 import Hdf5Reader, Hdf5Writer

        return Hdf5Reader, Hdf5Writer
    from wsi_assets.patches.backends.image_folder import ImageFolderReader, ImageFolderWriter

    return ImageFolderReader, ImageFolderWriter
