"""The storage folder, as a resource."""

from __future__ import annotations

import dagster as dg

from wsi_assets.orchestration.layout import StorageLayout


class Storage(dg.ConfigurableResource):
    """Everything the platform writes lies below ``storage_dir``."""

    storage_dir: str

    @property
    def layout(self) -> StorageLayout:
        return StorageLayout(self.storage_dir)
