"""Pickles of plain types, one file a partition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.files import read_plain_pickle, size_of, write_plain_pickle
from wsi_assets.orchestration.io_managers.partitioned import (
    folder_of,
    load_partitions,
    partition_to_write,
    takes_many,
)
from wsi_assets.orchestration.layout import LEVEL_ARTEFACTS, StorageLayout
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.reporting import clear_failures


class LazyPickles(Mapping[str, Any]):
    """Partition key -> value, read on access and not kept; keys are the partitions that have a file.

    A level takes the regions of thousands of slides: this way only one is in memory at a time. It pickles as
    its paths.

    Attributes:
        missing: partitions that were asked for and have no file.
    """

    def __init__(self, paths: Mapping[str, Path]):
        self._paths = {key: path for key, path in paths.items() if path.is_file()}
        self.missing = tuple(sorted(set(paths) - set(self._paths)))

    def __getitem__(self, key: str) -> Any:
        return read_plain_pickle(self._paths[key])

    def __contains__(self, key: object) -> bool:
        return key in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


class PlainPickleIOManager(dg.ConfigurableIOManager):
    """Writes plain values to ``slides/<slide_id>/<asset>.pkl``, ``level_N/<artefact>`` or ``<asset>.pkl``.

    A pickle that names any class or function is refused on reading, so no file can run code. Several
    upstream partitions load as a :class:`LazyPickles`, one as its bare value; which of the two is decided by
    the partition mapping, never by how many partitions there happen to be.
    """

    storage_dir: str

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        if obj is None and context.has_asset_partitions and len(context.asset_partition_keys) > 1:
            return  # each was written as it was made
        with clear_failures():
            stored = write_artefact(self._path(context, partition_to_write(context)), obj)
        context.add_output_metadata(stored)

    def load_input(self, context: dg.InputContext) -> Any:
        with clear_failures():
            if takes_many(context):
                return LazyPickles({key: self._path(context, key) for key in context.asset_partition_keys})
            return load_partitions(context, lambda key: self._path(context, key), read_plain_pickle)

    def _path(self, context: dg.InputContext | dg.OutputContext, partition: str | None) -> Path:
        layout = StorageLayout(self.storage_dir)
        asset = "__".join(context.asset_key.path)
        if partition is None:
            return layout.root / f"{asset}.pkl"
        if _is_by_slide(context):
            return layout.slide_artefact(asset, partition)
        if asset in LEVEL_ARTEFACTS:
            return layout.level_artefact(asset, partition)
        return folder_of(layout, context, partition) / f"{asset}.pkl"


def write_artefact(path: Path, value: Any) -> dict[str, Any]:
    """Write one value and return what to record of its file."""
    write_plain_pickle(path, value)
    return {
        "path": dg.MetadataValue.path(str(path)),
        "size_bytes": size_of(path),
        "count": len(value) if isinstance(value, (list, dict)) else 1,
    }


def _is_by_slide(context: dg.InputContext | dg.OutputContext) -> bool:
    partitions = context.asset_partitions_def
    return isinstance(partitions, dg.DynamicPartitionsDefinition) and partitions.name == SLIDES.name
