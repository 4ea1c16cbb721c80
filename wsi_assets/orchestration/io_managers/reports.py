"""Reports: folders of a page, figures and tables; one a level, and one that compares the levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.files import publish_folder, size_of
from wsi_assets.orchestration.io_managers.partitioned import (
    folder_of,
    load_partitions,
    partition_to_write,
)
from wsi_assets.orchestration.layout import LEVEL_ARTEFACTS, StorageLayout
from wsi_assets.orchestration.reporting import clear_failures


class ReportIOManager(dg.ConfigurableIOManager):
    """Publishes a report's folder whole: ``level_N/report/``, or ``<asset>/`` for an asset without levels.

    The asset returns a callable that writes the report into the empty folder it is given and returns the path
    of its page. Downstream gets the folder, or a mapping of level to folder for several levels.
    """

    storage_dir: str

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        target = self._folder(context, partition_to_write(context))
        with clear_failures(), publish_folder(target) as aside:
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
        return load_partitions(context, lambda level: self._folder(context, level), lambda folder: folder)

    def _folder(self, context: dg.InputContext | dg.OutputContext, level: str | None) -> Path:
        folder = folder_of(StorageLayout(self.storage_dir), context, level)
        return folder if level is None else folder / LEVEL_ARTEFACTS["evaluation"]
