"""A Dask cluster as a standard executor: its own ``Client.get_executor()``, with clear errors around it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, InvalidStateError
from pathlib import Path
from typing import Any

from wsi_assets.errors import WsiAssetsError, one_line

SAME_PACKAGES = ("wsi-assets", "numpy", "opencv-python", "imagecodecs", "openslide-bin", "shapely")
"""Packages whose version can show in a result: with others, workers would make other bytes."""

_ADDRESS = re.compile(r"(?:(?:tcp|tls|ucx|wss?)://)?[^\s/]+:\d+")
_CONNECT_SECONDS = 5.0

_MIN_WORKERS = 8
"""Workers that are assumed where there are fewer: a cluster that grows on demand must see a demand."""


class ClusterError(WsiAssetsError):
    """The cluster cannot be reached, is not set up for this work, or was lost."""


@contextlib.contextmanager
def open_executor(scheduler: str | None) -> Iterator[DaskExecutor | None]:
    """The cluster's executor, or None without one: work then runs as it does on one machine.

    Args:
        scheduler: address (``tcp://host:8786``), or the JSON file that ``dask scheduler --scheduler-file``
            writes. None or "" is no cluster.

    Raises:
        ClusterError: ``distributed`` is not installed, the scheduler does not answer within seconds, or a
            worker has other versions than this process.
    """
    if not scheduler:
        yield None
        return
    executor = DaskExecutor(scheduler)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


class DaskExecutor(Executor):
    """The cluster at ``scheduler``; what befalls it is a :class:`ClusterError` of the future it hit.

    If a worker dies, Dask runs its task again on another.
    """

    def __init__(self, scheduler: str):
        self._client = _connect(scheduler)
        self.address = self._client.scheduler.address
        try:
            self._check_versions()
            self._executor = self._client.get_executor(pure=False)
        except BaseException:
            self._client.close()
            raise

    def __str__(self) -> str:
        threads = self._threads()
        what = f"{threads} worker threads" if threads else "no workers yet; tasks wait for the first"
        return f"Dask cluster at {self.address} ({what})"

    def workers(self) -> int:
        """For how many workers to keep tasks ready: as many as there are threads now, 8 at the least."""
        return max(self._threads(), _MIN_WORKERS)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` on a worker; everything given and returned must pickle."""
        with self._clear_faults():
            task = self._executor.submit(fn, *args, **kwargs)
        future = _Future(task)
        task.add_done_callback(lambda done: self._settle(done, future))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; what it still does for this executor is cancelled."""
        # A scheduler that is gone hears nothing.
        with contextlib.suppress(Exception, CancelledError):
            self._client.close(timeout=_CONNECT_SECONDS)

    def _settle(self, task: Future[Any], future: _Future) -> None:
        future.task = None
        with contextlib.suppress(InvalidStateError):  # cancelled meanwhile: nobody asks any more
            try:
                with self._clear_faults():
                    result = task.result()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

    def _threads(self) -> int:
        with self._clear_faults():
            return sum(self._client.nthreads().values())

    def _check_versions(self) -> None:
        with self._clear_faults():
            found = self._client.get_versions(check=False, packages=list(SAME_PACKAGES))
        here = found["client"]["packages"]
        for address, worker in found["workers"].items():
            there = worker["packages"] if worker else {}
            for name in SAME_PACKAGES:
                if there.get(name) != here[name]:
                    raise ClusterError(
                        f"worker {address} has {name} {there.get(name) or 'not installed'}, this process has "
                        f"{here[name] or 'none'}",
                        remedy="Give workers and this process one environment",
                    )

    @contextlib.contextmanager
    def _clear_faults(self) -> Iterator[None]:
        """Say in one line what befell the cluster; what a task itself raised passes."""
        from distributed.comm import CommClosedError
        from distributed.scheduler import KilledWorker

        try:
            yield
        except KilledWorker as error:
            raise ClusterError(
                f"{error.allowed_failures + 1} workers in turn died on one task, the last at "
                f"{error.last_worker.address}",
                remedy="Give workers more memory or read their logs, then run again; it continues",
            ) from error
        except ImportError as error:
            raise ClusterError(
                f"a worker cannot load the task ({one_line(error)})",
                remedy="Give workers and this process one environment",
            ) from error
        except (CancelledError, CommClosedError) as error:
            raise ClusterError(
                f"the Dask scheduler at {self.address} was lost, or cancelled the work ({one_line(error)})",
                remedy="Start it and its workers, then run again; it continues",
            ) from error


class _Future(Future):
    """A future of ours around Dask's, which it lets go once that is done: a worker keeps a result as long."""

    def __init__(self, task: Future[Any]):
        super().__init__()
        self.task: Future[Any] | None = task

    def cancel(self) -> bool:
        task = self.task
        return super().cancel() and (task is None or task.cancel() or True)


def _connect(scheduler: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise ClusterError(
            f"WSI_SCHEDULER names {scheduler}, and the package distributed is not installed here",
            remedy="Run: pip install 'wsi-assets[cluster]', or unset WSI_SCHEDULER",
        ) from error
    # What it logs of a lost cluster as tracebacks is raised here as one line.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    where: dict[str, Any] = {"address": scheduler}
    if scheduler.endswith(".json"):
        if not Path(scheduler).is_file():
            raise ClusterError(
                "WSI_SCHEDULER names this file, and it does not exist",
                path=scheduler,
                remedy="Start the scheduler with --scheduler-file, or unset WSI_SCHEDULER",
            )
        where = {"scheduler_file": scheduler}
    elif not _ADDRESS.fullmatch(scheduler):
        # A client that is given a false address hangs when it is thrown away.
        raise ClusterError(
            f"WSI_SCHEDULER is {scheduler!r}, which is not an address",
            remedy="Write it as tcp://host:8786, or name the scheduler's .json file",
        )
    try:
        return Client(
            **where,
            timeout=_CONNECT_SECONDS,
            set_as_default=False,
            direct_to_workers=True,
            name=f"wsi-assets-{os.getpid()}",
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {scheduler} ({one_line(error)[:200]})",
            remedy="Start one, correct WSI_SCHEDULER, or unset it to run on this machine",
        ) from error
