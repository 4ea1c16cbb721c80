"""The patch store: the pixels of the sampled patches, in LMDB, HDF5 or a folder of PNG files."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from wsi_assets.orchestration.artefact import Artefact
from wsi_assets.orchestration.assets.index import SAMPLED_INDEX
from wsi_assets.orchestration.automation import follow_index
from wsi_assets.orchestration.config import launchpad_config
from wsi_assets.orchestration.making import Making
from wsi_assets.orchestration.metadata import progress_to, table, user_errors_as_failures
from wsi_assets.orchestration.resources import SlideFolderResource, WorkersResource
from wsi_assets.orchestration.storage import STORE_POINTER, StorageResource
from wsi_assets.patches.options import Backend, ExtractionOptions

if TYPE_CHECKING:
    from wsi_assets.patches import StagedStore

POOL = "extraction"
"""Pool that limits Dagster to building one patch store at a time, because decoding uses every core."""


QUARANTINE = ("key", "slide_id", "y", "x", "reason")
"""Columns of the table of patches that could not be read, in the metadata."""


class StoreParameters(ExtractionOptions):
    """Parameters of ``patch_store``."""

    accepted_slides: list[str] = Field(
        default=[],
        description="Ids of slides whose names (tumor or normal) contradict their annotations; the "
        "annotations count. While any other slide has such a contradiction, no model is trained.",
    )

    backend: Backend = Field(
        "lmdb",
        description="Where patches are stored: one LMDB, one HDF5 file, or a folder of PNG files (fs).",
    )


PATCH_STORE = Artefact(
    name="patch_store",
    code_version="6",
    path=f"{{level}}/{STORE_POINTER}",
    options=StoreParameters,
    inputs=(SAMPLED_INDEX,),
    without_effect=frozenset({"extraction_workers", "max_quarantined", "accepted_slides"}),
    must_pass=(
        "store_equals_its_index",
        "few_patches_unreadable",
        "patches_show_their_slides",
        "names_agree_with_annotations",
    ),
    shown=("count", "tumor", "normal", "decoded", "reused"),
    automation=follow_index,
)

PatchStoreConfig = launchpad_config(PATCH_STORE)


@dg.asset(
    **PATCH_STORE.asset_arguments(io_manager_key="patch_io"),
    kinds={"lmdb", "hdf5", "png"},
    pool=POOL,
    description="The sampled patches, read from the slides and encoded: LMDB, HDF5 or a folder of PNG files "
    "(parameter backend). Unchanged patches are not decoded again.",
)
def patch_store(
    context: dg.AssetExecutionContext,
    config: PatchStoreConfig,
    folder: SlideFolderResource,
    storage: StorageResource,
    workers: WorkersResource,
    sampled_index: dict[str, Any],
) -> Iterator[dg.MaterializeResult]:
    from wsi_assets.patches import STORE_NAMES, plan_patches, staged_store

    with user_errors_as_failures():
        making = Making(context, storage, PATCH_STORE, config)
        options = making.options
        plan = plan_patches(folder.with_present_paths(sampled_index), options)
        level_folder = storage.level_folder(making.partition)
        with workers.open_cluster() as executor:
            if executor is not None:
                context.log.info(f"patches are read by the {executor}")
            with staged_store(
                plan,
                level_folder / STORE_NAMES[options.backend],
                options.backend,
                executor=executor,
                workers=options.extraction_workers or (executor.workers() if executor else None),
                progress=progress_to(context.log),
            ) as staged:
                # `yield`, because the IO manager publishes the store before this generator continues and
                # releases the lock on it.
                yield _result(making, staged)


def _result(making: Making, staged: "StagedStore") -> dg.MaterializeResult:
    return making.result(
        staged,
        facts={
            "backend": staged.backend,
            "count": staged.patches,
            "tumor": staged.tumor,
            "normal": staged.normal,
            "decoded": staged.decoded,
            "reused": staged.reused,
            "patches_per_second": round(staged.patches_per_second, 1),
            "quarantined": len(staged.quarantined),
        },
        metadata={"quarantine": table(staged.quarantined[:200], QUARANTINE)},
    )
