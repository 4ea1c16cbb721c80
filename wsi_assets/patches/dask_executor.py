"""A Dask cluster as a ``concurrent.futures`` executor, with one-line errors."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from concurrent.futures import CancelledError, Executor
from pathlib import Path
from typing import Any

from wsi_assets.errors import WsiAssetsError, one_line

SAME_PACKAGES = ("wsi-assets", "numpy", "opencv-python", "imagecodecs", "openslide-bin", "shapely")
"""Packages whose version may change the bytes of a result; workers must have the same ones."""

_ADDRESS = re.compile(r"(?:(?:tcp|tls|ucx|wss?)://)?[^\s/]+:\d+")
_CONNECT_SECONDS = 5.0
_ONE_ENVIRONMENT = "Give workers and this process one environment"

_MIN_WORKERS = 8
"""Least number of workers for which tasks are submitted, so that a cluster that scales on demand grows."""


class ClusterError(WsiAssetsError):
    """The cluster cannot be reached, is not set up for this work, or was lost."""


class DaskExecutor(Executor):
    """An executor on the cluster of a Dask ``client``. If a worker dies, Dask runs its task on another."""

    def __init__(self, client: Any):
        self._client = client
        self.submit = client.get_executor(pure=False).submit

    def __str__(self) -> str:
        return f"Dask cluster at {self._client.scheduler.address} ({self._threads()} worker threads now)"

    def workers(self) -> int:
        """For how many workers to keep tasks ready: the worker threads there are now, at least 8."""
        return max(self._threads(), _MIN_WORKERS)

    def _threads(self) -> int:
        return sum(self._client.nthreads().values())


@contextlib.contextmanager
def open_executor(scheduler: str | None) -> Iterator[DaskExecutor | None]:
    """Connect to a cluster and yield its executor; yields None without a cluster.

    Errors of the cluster within the context become one-line errors; errors of the tasks pass unchanged.

    Args:
        scheduler: address (``tcp://host:8786``), or the JSON file that ``dask scheduler --scheduler-file``
            writes; None or "" for no cluster.

    Raises:
        ClusterError: ``distributed`` is not installed, the scheduler does not answer within seconds, a worker
            has other package versions than this process, or the connection to the cluster was lost.
    """
    if not scheduler:
        yield None
        return
    client = _connect(scheduler)
    from distributed.comm import CommClosedError
    from distributed.scheduler import KilledWorker

    try:
        _check_versions(client)
        yield DaskExecutor(client)
    except (KilledWorker, ImportError, CancelledError, CommClosedError) as error:
        raise ClusterError(
            f"the work on the Dask cluster at {scheduler} was lost ({one_line(error) or type(error)})",
            remedy="Check that the cluster runs, and in its workers' logs that they have this process's "
            "environment and enough memory, then run again; it continues",
        ) from error
    finally:
        with contextlib.suppress(Exception, CancelledError):  # the scheduler may be gone
            client.close(timeout=_CONNECT_SECONDS)


def _connect(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError(
            f"WSI_SCHEDULER is {scheduler}, but the package distributed is not installed here",
            remedy="Run: pip install 'wsi-assets[cluster]', or unset WSI_SCHEDULER",
        ) from error
    is_file = scheduler.endswith(".json")
    # A client with a malformed address hangs when it is deleted.
    if not (Path(scheduler).is_file() if is_file else _ADDRESS.fullmatch(scheduler)):
        raise ClusterError(
            f"WSI_SCHEDULER is {scheduler!r}, which is not an address or does not exist",
            remedy="Give it as tcp://host:8786, or the file that dask scheduler --scheduler-file wrote",
        )
    # It would log tracebacks about a lost cluster, which is raised as one line.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    where = {"scheduler_file" if is_file else "address": scheduler}
    try:
        return Client(**where, timeout=_CONNECT_SECONDS, set_as_default=False, direct_to_workers=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {scheduler} ({one_line(error)[:200]})",
            remedy="Start one, correct WSI_SCHEDULER, or unset it to run on this machine",
        ) from error


def _check_versions(client: Any) -> None:
    found = client.get_versions(check=False, packages=list(SAME_PACKAGES))
    here = found["client"]["packages"]
    for address, worker in found["workers"].items():
        there = worker["packages"] if worker else {}
        for name in SAME_PACKAGES:
            if there.get(name) != here[name]:
                raise ClusterError(
                    f"worker {address} has {name} {there.get(name) or 'not installed'}, this process has "
                    f"{here[name] or 'none'}",
                    remedy=_ONE_ENVIRONMENT,
                )
