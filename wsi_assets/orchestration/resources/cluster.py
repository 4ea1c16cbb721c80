"""The Dask cluster, as a resource."""

from __future__ import annotations

from contextlib import AbstractContextManager

import dagster as dg

from wsi_assets.patches.dask_executor import DaskExecutor, open_executor


class Cluster(dg.ConfigurableResource):
    """Does the work of slides where ``scheduler`` names one; without it, work is done by the run itself."""

    scheduler: str | None = None

    def open(self) -> AbstractContextManager[DaskExecutor | None]:
        """As :func:`open_executor`."""
        return open_executor(self.scheduler)
