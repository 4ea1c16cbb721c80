"""Patch stores: the asset says which patches, the IO manager builds them into the backend of its choice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from wsi_assets.files import write_json
from wsi_assets.orchestration.io_managers.partitioned import (
    folder_of,
    load_partitions,
    partition_to_write,
)
from wsi_assets.orchestration.layout import LEVEL_ARTEFACTS, StorageLayout, store_named_by
from wsi_assets.orchestration.reporting import clear_failures, picture, progress_to, table
from wsi_assets.patches.dask_executor import open_executor

if TYPE_CHECKING:
    from wsi_assets.patches import BuildReport, PatchPlan, PatchStore

POINTER = LEVEL_ARTEFACTS["patch_store"]
"""The file in a level's folder that names its store."""


class PatchStoreIOManager(dg.ConfigurableIOManager):
    """Builds a :class:`PatchPlan` into ``level_N`` and hands a lazy :class:`PatchStore` downstream.

    What is unchanged since the last build is taken over without decoding. ``patch_store.json`` names the
    store in use, so a reader opens the right one whatever backend its own run is set to. Where ``scheduler``
    names a Dask cluster, its workers read the slides; the store is written by the run itself.
    """

    storage_dir: str
    backend: Literal["lmdb", "hdf5", "fs"] = "lmdb"
    scheduler: str | None = None

    def handle_output(self, context: dg.OutputContext, obj: PatchPlan) -> None:
        from wsi_assets.patches import STORE_NAMES, build_store, mosaic_png, open_store

        folder = folder_of(StorageLayout(self.storage_dir), context, partition_to_write(context))
        with clear_failures():
            with open_executor(self.scheduler) as executor:
                workers = obj.options.extraction_workers or None
                if executor is not None:
                    context.log.info(f"patches are read by the {executor}")
                    workers = workers or executor.workers()
                report = build_store(
                    obj,
                    folder / STORE_NAMES[self.backend],
                    self.backend,
                    executor=executor,
                    workers=workers,
                    progress=progress_to(context.log),
                )
            write_json(folder / POINTER, {"store": report.path.name, "backend": self.backend})
            with open_store(report.path) as store:
                mosaic = picture(mosaic_png(store), "patches by class")
        others = [name for kind, name in STORE_NAMES.items() if kind != self.backend]
        context.add_output_metadata(
            {
                "mosaic": mosaic,
                **_figures(report),
                # Not removed: a store may have taken days. Nothing of the graph reads it any more.
                "older_stores_of_other_backends": [name for name in others if (folder / name).exists()],
            }
        )

    def load_input(self, context: dg.InputContext) -> PatchStore | dict[str, PatchStore]:
        from wsi_assets.patches import open_store

        layout = StorageLayout(self.storage_dir)
        with clear_failures():
            return load_partitions(
                context,
                lambda level: folder_of(layout, context, level) / POINTER,
                lambda pointer: open_store(store_named_by(pointer)),
            )


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
    """The patch store of a level.

    Raises:
        StoreError: there is none.
    """
    return store_named_by(layout.level_artefact("patch_store", level))


def _figures(report: BuildReport) -> dict[str, Any]:
    quarantined = [
        dict(zip(("key", "slide_id", "y", "x", "reason"), row, strict=True)) for row in report.quarantined
    ]
    return {
        "path": dg.MetadataValue.path(str(report.path)),
        "backend": report.backend,
        "size_bytes": report.bytes,
        "count": report.patches,
        "tumor": report.tumor,
        "normal": report.normal,
        "decoded": report.decoded,
        "reused": report.reused,
        "seconds": round(report.seconds, 2),
        "patches_per_second": round(report.patches_per_second, 1),
        "quarantined": len(quarantined),
        "quarantine": table(quarantined[:200], ("key", "slide_id", "y", "x", "reason")),
    }
