"""Reports: folders of a page, figures and tables; one a level, and one that compares the levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg

from wsi_assets.files import publish_folder, size_of
from wsi_assets.orchestration.io_managers.partitioned import (
    folder_of,
    load_partitions,
    partition_to_write,
)
from wsi_assets.orchestration.layout import LEVEL_ARTEFACTS, StorageLayout
from wsi_assets.orchestration.reporting import clear_failures, picture


@dataclass(frozen=True)
class Report:
    """A report that is still to be written.

    Attributes:
        write: writes it into the empty folder it is given and returns the path of its page there.
        pictures: name -> file in that folder, for the UI to show; one that is not there is left out.
    """

    write: Callable[[Path], Path]
    pictures: Mapping[str, str] = field(default_factory=dict)


class ReportIOManager(dg.ConfigurableIOManager):
    """Publishes a report's folder whole: ``level_N/report/``, or ``<asset>/`` for an asset without levels.

    The asset returns a :class:`Report`. Downstream gets the folder, or a mapping of level to folder for
    several levels.
    """

    storage_dir: str

    def handle_output(self, context: dg.OutputContext, obj: Report) -> None:
        target = self._folder(context, partition_to_write(context))
        with clear_failures(), publish_folder(target) as aside:
            page = target / obj.write(aside).relative_to(aside)
        shown = {name: target / file for name, file in obj.pictures.items() if (target / file).is_file()}
        context.add_output_metadata(
            {
                **{name: picture(file.read_bytes(), name) for name, file in shown.items()},
                "path": dg.MetadataValue.path(str(page)),
                "page": dg.MetadataValue.url(page.as_uri()),
                "size_bytes": size_of(target),
                "count": sum(1 for file in target.rglob("*") if file.is_file()),
            }
        )

    def load_input(self, context: dg.InputContext) -> Path | dict[str, Path]:
        return load_partitions(context, lambda level: self._folder(context, level), lambda folder: folder)

    def _folder(self, context: dg.InputContext | dg.OutputContext, level: str | None) -> Path:
        folder = folder_of(StorageLayout(self.storage_dir), context, level)
        return folder if level is None else folder / LEVEL_ARTEFACTS["evaluation"]
