"""Patch stores: the asset says which patches, the IO manager builds them into the backend of its choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from wsi_assets.errors import StoreError
from wsi_assets.files import write_json
from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.reporting import clear_failures, picture, progress_to, table

if TYPE_CHECKING:
    from wsi_assets.patches import BuildReport, PatchPlan, PatchStore


class PatchStoreIOManager(dg.ConfigurableIOManager):
    """Builds a :class:`PatchPlan` into ``level_N`` and hands a lazy :class:`PatchStore` downstream.

    What is unchanged since the last build is taken over without decoding. ``patch_store.json`` names the
    store in use, so a reader opens the right one whatever backend its own run is set to.
    """

    storage_dir: str
    backend: Literal["lmdb", "hdf5", "fs"] = "lmdb"

    def handle_output(self, context: dg.OutputContext, obj: PatchPlan) -> None:
        from wsi_assets.patches import STORE_NAMES, build_store, mosaic_png, open_store

        layout = StorageLayout(self.storage_dir)
        folder = layout.level_folder(context.asset_partition_key)
        with clear_failures():
            report = build_store(
                obj, folder / STORE_NAMES[self.backend], self.backend, progress=progress_to(context.log)
            )
            write_json(
                layout.level_artefact("patch_store", context.asset_partition_key),
                {"store": report.path.name, "backend": self.backend},
            )
            store = open_store(report.path)
            context.add_output_metadata({**_figures(report), "mosaic": picture(mosaic_png(store), "patches")})
            store.close()

    def load_input(self, context: dg.InputContext) -> PatchStore:
        from wsi_assets.patches import open_store

        with clear_failures():
            return open_store(current_store(StorageLayout(self.storage_dir), context.asset_partition_key))


class LmdbIOManager(PatchStoreIOManager):
    """One LMDB environment, ``patches_lmdb/``."""

    backend: Literal["lmdb"] = "lmdb"


class Hdf5IOManager(PatchStoreIOManager):
    """One HDF5 file, ``patches.h5``."""

    backend: Literal["hdf5"] = "hdf5"


class PngFolderIOManager(PatchStoreIOManager):
    """A folder of PNG files by class, ``image_patches/``."""

    backend: Literal["fs"] = "fs"


def current_store(layout: StorageLayout, level: int | str) -> Path:
    """The store that the last build of a level's patches wrote.

    Raises:
        StoreError: there is none.
    """
    pointer = layout.level_artefact("patch_store", level)
    try:
        return pointer.parent / json.loads(pointer.read_text())["store"]
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(
            "names no patch store", path=pointer, remedy=f"Materialize patch_store of level {level}"
        ) from error


def _figures(report: BuildReport) -> dict[str, Any]:
    quarantined = [
        dict(zip(("key", "slide_id", "y", "x", "reason"), row, strict=True)) for row in report.quarantined
    ]
    return {
        "path": dg.MetadataValue.path(str(report.path)),
        "backend": report.backend,
        "size": report.bytes,
        "count": report.patches,
        "tumor": report.tumor,
        "normal": report.normal,
        "decoded": report.decoded,
        "reused": report.reused,
        "seconds": round(report.seconds, 2),
        "patches_per_second": round(report.patches / report.seconds, 1) if report.seconds else 0.0,
        "quarantined": len(quarantined),
        "quarantine": table(quarantined[:200], ("key", "slide_id", "y", "x", "reason")),
    }
