"""A Dask cluster as a standard executor: its own ``Client.get_executor()``, with clear errors around it."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from pathlib import Path
from typing import Any

from wsi_assets.errors import WsiAssetsError, one_line

SAME_PACKAGES = ("wsi-assets", "numpy", "opencv-python", "imagecodecs", "openslide-bin", "shapely")
"""Packages whose version can show in a result: with others, workers would make other bytes."""

_ADDRESS = re.compile(r"(?:(?:tcp|tls|ucx|wss?)://)?[^\s/]+:\d+")
_CONNECT_SECONDS = 5.0
_ONE_ENVIRONMENT = "Give workers and this process one environment"

_MIN_WORKERS = 8
"""Workers that are assumed where there are fewer: a cluster that grows on demand must see a demand."""


class ClusterError(WsiAssetsError):
    """The cluster cannot be reached, is not set up for this work, or was lost."""


class DaskExecutor(Executor):
    """The cluster that ``client`` is connected to. If a worker dies, Dask runs its task on another."""

    def __init__(self, client: Any):
        self._client = client
        self._executor = client.get_executor(pure=False)
        self.address = client.scheduler.address

    def __str__(self) -> str:
        threads = self._threads()
        what = f"{threads} worker threads" if threads else "no workers yet; tasks wait for the first"
        return f"Dask cluster at {self.address} ({what})"

    def workers(self) -> int:
        """For how many workers to keep tasks ready: as many as there are threads now, 8 at the least."""
        return max(self._threads(), _MIN_WORKERS)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` on a worker; everything given and returned must pickle."""
        return self._executor.submit(fn, *args, **kwargs)

    def _threads(self) -> int:
        return sum(self._client.nthreads().values())


@contextlib.contextmanager
def open_executor(scheduler: str | None) -> Iterator[DaskExecutor | None]:
    """The cluster's executor, or None without one: work then runs as it does on one machine.

    What befalls the cluster in the block is raised as one line; what a task itself raised passes.

    Args:
        scheduler: address (``tcp://host:8786``), or the JSON file that ``dask scheduler --scheduler-file``
            writes. None or "" is no cluster.

    Raises:
        ClusterError: ``distributed`` is not installed, the scheduler does not answer within seconds, a worker
            has other versions than this process, or the cluster was lost.
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
    except KilledWorker as error:
        raise ClusterError(
            f"{error.allowed_failures + 1} workers in turn died on one task, the last at "
            f"{error.last_worker.address}",
            remedy="Give workers more memory or read their logs, then run again; it continues",
        ) from error
    except ImportError as error:
        raise ClusterError(
            f"a worker cannot load the task ({one_line(error)})", remedy=_ONE_ENVIRONMENT
        ) from error
    except (CancelledError, CommClosedError) as error:
        raise ClusterError(
            f"the Dask scheduler at {scheduler} was lost, or cancelled the work ({one_line(error)})",
            remedy="Start it and its workers, then run again; it continues",
        ) from error
    finally:
        with contextlib.suppress(Exception, CancelledError):  # a scheduler that is gone hears nothing
            client.close(timeout=_CONNECT_SECONDS)


def _connect(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError(
            f"WSI_SCHEDULER names {scheduler}, and the package distributed is not installed here",
            remedy="Run: pip install 'wsi-assets[cluster]', or unset WSI_SCHEDULER",
        ) from error
    is_file = scheduler.endswith(".json")
    # A client that is given a false address hangs when it is thrown away.
    if not (Path(scheduler).is_file() if is_file else _ADDRESS.fullmatch(scheduler)):
        raise ClusterError(
            f"WSI_SCHEDULER is {scheduler!r}, which is not an address or does not exist",
            remedy="Write it as tcp://host:8786, or name the file that dask scheduler --scheduler-file wrote",
        )
    # What it logs of a lost cluster as tracebacks is raised here as one line.
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
