"""Reports: folders of a page, figures and tables; one a level, and one that compares the levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.files import publish_folder, size_of
from wsi_assets.orchestration.io_managers.plain_pickle import takes_many
from wsi_assets.orchestration.layout import StorageLayout


class ReportIOManager(dg.ConfigurableIOManager):
    """Publishes a report's folder whole: ``level_N/report/``, or ``<asset>/`` for an asset without levels.

    The asset returns a callable that writes the report into the empty folder it is given and returns the path
    of its page. Downstream gets the folder, or a mapping of level to folder for several levels.
    """

    storage_dir: str

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        target = self._folder(context, context.asset_partition_key if context.has_asset_partitions else None)
        with publish_folder(target) as aside:
            page = target / obj(aside).relative_to(aside)
        context.add_output_metadata(
            {
                "path": dg.MetadataValue.path(str(page)),
                "page": dg.MetadataValue.url(page.as_uri()),
                "size": size_of(target),
                "count": sum(1 for file in target.rglob("*") if file.is_file()),
            }
        )

    def load_input(self, context: dg.InputContext) -> Path | dict[str, Path]:
        if not context.has_asset_partitions:
            return self._folder(context, None)
        if takes_many(context):
            folders = {level: self._folder(context, level) for level in context.asset_partition_keys}
            return {level: folder for level, folder in folders.items() if folder.is_dir()}
        return self._folder(context, context.asset_partition_key)

    def _folder(self, context: dg.InputContext | dg.OutputContext, level: str | None) -> Path:
        layout, asset = StorageLayout(self.storage_dir), context.asset_key.path[-1]
        return layout.root / asset if level is None else layout.level_artefact(asset, level)
