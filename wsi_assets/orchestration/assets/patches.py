"""The patches themselves, in the store of the user's choice."""

from typing import Any

import dagster as dg

from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.config import ExtractionConfig
from wsi_assets.orchestration.io_managers.patch_stores import PatchStoreIOManager
from wsi_assets.orchestration.lineage import CODE_VERSIONS, made, recorded_version
from wsi_assets.orchestration.partitions import LEVELS
from wsi_assets.orchestration.reporting import clear_failures
from wsi_assets.orchestration.resources.library import SlideLibrary


@dg.asset(
    partitions_def=LEVELS,
    group_name=catalog.GROUP_PATCHES,
    io_manager_key="patch_io",
    kinds={"lmdb", "hdf5", "png"},
    owners=catalog.OWNERS,
    pool=catalog.POOL_EXTRACTION,
    code_version=CODE_VERSIONS["patch_store"],
    description="The sampled patches, read from the slides and encoded: LMDB, HDF5 or a PNG folder "
    "(WSI_PATCH_BACKEND, or resource patch_io in the Launchpad). What is unchanged is not decoded again.",
)
def patch_store(
    context: dg.AssetExecutionContext,
    config: ExtractionConfig,
    library: SlideLibrary,
    patch_io: dg.ResourceParam[PatchStoreIOManager],
    sampled_index: dict[str, Any],
) -> dg.MaterializeResult:
    from wsi_assets.patches import plan_patches

    upstream = recorded_version(context.instance, "sampled_index", context.partition_key)
    with clear_failures():
        plan = plan_patches(library.at_home(sampled_index), config)
    return made("patch_store", plan, config=config, made_from=[upstream, patch_io.backend])
