"""Which partitions an IO manager is asked for: one rule for all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.partitions import LEVELS


def partition_to_write(context: dg.OutputContext) -> str | None:
    """The one partition this run writes, None for an asset without partitions.

    Raises:
        Failure: the run has several.
    """
    if not context.has_asset_partitions:
        return None
    keys = context.asset_partition_keys
    if len(keys) != 1:
        raise dg.Failure(
            f"{context.asset_key.to_user_string()} writes one partition a run, not {len(keys)}",
            allow_retries=False,
        )
    return keys[0]


def takes_many(context: dg.InputContext) -> bool:
    """Whether this input is a mapping over upstream partitions, as its ``AssetIn`` declares.

    Decided by the mapping, never by how many partitions there happen to be. Inputs that declare nothing take
    one partition if it is the run's own, and a mapping otherwise.
    """
    if not context.has_asset_partitions:
        return False
    declared = (context.definition_metadata or {}).get("load")
    if declared is not None:
        return declared == "mapping"
    keys = list(context.asset_partition_keys)
    return not (context.has_partition_key and keys == [context.partition_key])


def load_partitions(
    context: dg.InputContext, place: Callable[[str | None], Path], load: Callable[[Path], Any]
) -> Any:
    """Load the one partition asked for, or a mapping of those of several that have been made.

    Args:
        place: partition (None without partitions) -> the file or folder that exists once it was made.
        load: that place -> a light handle.
    """
    if takes_many(context):
        places = {key: place(key) for key in context.asset_partition_keys}
        return {key: load(path) for key, path in places.items() if path.exists()}
    return load(place(context.asset_partition_key if context.has_asset_partitions else None))


def folder_of(
    layout: StorageLayout, context: dg.InputContext | dg.OutputContext, partition: str | None
) -> Path:
    """``level_N`` for a level, else ``<asset>`` or ``<asset>/<partition>`` under the storage folder."""
    asset = "__".join(context.asset_key.path)
    if partition is None:
        return layout.root / asset
    if context.asset_partitions_def == LEVELS:
        return layout.level_folder(partition)
    return layout.root / asset / partition
