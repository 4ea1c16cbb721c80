"""Reports: a folder a level with ``report.html``, figures and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.files import publish_folder, size_of
from wsi_assets.orchestration.layout import StorageLayout


class ReportIOManager(dg.ConfigurableIOManager):
    """Publishes ``report/`` of a level whole; downstream gets the folder's path.

    The asset returns a callable that writes the report into the empty folder it is given.
    """

    storage_dir: str

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        target = StorageLayout(self.storage_dir).level_artefact("evaluation", context.asset_partition_key)
        with publish_folder(target) as aside:
            obj(aside)
        context.add_output_metadata(
            {
                "path": dg.MetadataValue.path(str(target / "report.html")),
                "report": dg.MetadataValue.url((target / "report.html").as_uri()),
                "size": size_of(target),
                "count": sum(1 for file in target.rglob("*") if file.is_file()),
            }
        )

    def load_input(self, context: dg.InputContext) -> Path:
        return StorageLayout(self.storage_dir).level_artefact("evaluation", context.asset_partition_key)
