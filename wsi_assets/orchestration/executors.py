"""Where work runs: on this machine, or on a Dask cluster when ``WSI_SCHEDULER`` names its scheduler.

The one module that knows Dask. Whoever hands out work takes any ``concurrent.futures.Executor``; what the
work is belongs to the rooms.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, InvalidStateError, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from wsi_assets.errors import WsiAssetsError, one_line

ONE_ENVIRONMENT = ("wsi-assets", "numpy", "opencv-python", "imagecodecs", "openslide-bin", "shapely")
"""Packages whose version can show in a result: with others, workers would make other bytes."""

_ADDRESS = re.compile(r"(?:(?:tcp|tls|ucx|wss?)://)?[^\s/]+:\d+")
_CONNECT_SECONDS = 5.0
_COUNT_SECONDS = 5.0
_AHEAD = 2
"""Results that are fetched while one is in use: enough for the network to be as busy as the disk."""

_AT_LEAST = 8
"""Workers that are assumed where there are fewer: a cluster that grows on demand must see a demand."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class ClusterError(WsiAssetsError):
    """The cluster cannot be reached, is not set up for this work, or was lost."""


@contextlib.contextmanager
def open_executor(scheduler: str | None, workers: int = 0) -> Iterator[ClusterExecutor | None]:
    """The cluster's executor, or None without one: work then runs as it does on one machine.

    Args:
        scheduler: address (``tcp://host:8786``), or the JSON file that ``dask scheduler --scheduler-file``
            writes. None or "" is no cluster.
        workers: for how many workers tasks are kept ready; 0 is as many as the cluster has threads.

    Raises:
        ClusterError: ``distributed`` is not installed, the scheduler does not answer within seconds, or a
            worker has other versions than this process.
    """
    if not scheduler:
        yield None
        return
    executor = ClusterExecutor(scheduler, workers)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


class ClusterExecutor(Executor):
    """A Dask cluster as a standard executor, for results too large to pile up here or at the scheduler.

    A result stays with its worker until ``result()`` asks for it, and then comes straight from there. So
    memory here and at the scheduler depends neither on the number of workers nor on who finishes first. If
    the worker dies before, Dask runs the task again on another. A function's name is its tasks' name on the
    dashboard.

    Args:
        scheduler, workers: as for :func:`open_executor`, which is the way to open one.
    """

    def __init__(self, scheduler: str, workers: int = 0):
        self._workers = workers
        self._client = _connect(scheduler)
        self.address = self._client.scheduler.address
        self._numbers = itertools.count()
        self._token = uuid.uuid4().hex[:12]
        self._last: Callable[[], _RemoteFuture | None] = lambda: None
        self.fetchers = ThreadPoolExecutor(1 + _AHEAD, thread_name_prefix="fetch")
        self._threads, self._counted = 0, float("-inf")
        try:
            self._check_versions()
        except BaseException:
            self._client.close()
            raise

    def __str__(self) -> str:
        threads = self.threads()
        what = f"{threads} worker threads" if threads else "no workers yet; tasks wait for the first"
        return f"Dask cluster at {self.address} ({what})"

    @property
    def _max_workers(self) -> int:
        # Pools of the standard library keep it under this name; the bound of work in flight follows it.
        return self._workers or max(self.threads(), _AT_LEAST)

    def threads(self) -> int:
        """Threads of all workers there are now."""
        if time.monotonic() - self._counted > _COUNT_SECONDS:
            with self.clear_faults():
                self._threads = sum(self._client.nthreads().values())
            self._counted = time.monotonic()
        return self._threads

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` on a worker; everything given and returned must pickle."""
        name = getattr(fn, "__name__", None) or getattr(getattr(fn, "func", None), "__name__", "task")
        # Dask groups tasks by what stands before the first number.
        key = f"{name}-{next(self._numbers)}-{self._token}"
        # Dask has keywords of its own.
        work = partial(fn, **kwargs) if kwargs else fn
        with self.clear_faults():
            future = _RemoteFuture(self, self._client.submit(work, *args, key=key, pure=False))
        last = self._last()
        if last is not None:
            last.following = future
        self._last = weakref.ref(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; what it still does for this executor is cancelled."""
        # A scheduler that is gone has nothing to be told.
        with contextlib.suppress(Exception, CancelledError):
            self._client.close(timeout=_CONNECT_SECONDS)
        self.fetchers.shutdown(wait=False, cancel_futures=True)

    def _check_versions(self) -> None:
        with self.clear_faults():
            found = self._client.get_versions(check=False, packages=list(ONE_ENVIRONMENT))
        here = found["client"]["packages"]
        for address, worker in found["workers"].items():
            there = worker["packages"] if worker else {}
            for name in ONE_ENVIRONMENT:
                if there.get(name) != here[name]:
                    raise ClusterError(
                        f"worker {address} has {name} {there.get(name) or 'not installed'}, this process has "
                        f"{here[name] or 'none'}",
                        remedy="Give workers and this process one environment",
                    )

    @contextlib.contextmanager
    def clear_faults(self) -> Iterator[None]:
        """Say in one line what befell the cluster; what a task itself raised passes."""
        from distributed.comm import CommClosedError
        from distributed.scheduler import KilledWorker

        try:
            yield
        except KilledWorker as error:
            raise ClusterError(
                f"{error.allowed_failures + 1} workers in turn died on one task, the last at "
                f"{error.last_worker.address}",
                remedy="Give workers more memory or look into their logs, then run again; it continues",
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


class _RemoteFuture(Future):
    """Done when its task is done; the result is fetched when it is asked for, and not kept.

    Results are mostly asked for in the order of submission: while one is being used the next few come in.
    """

    def __init__(self, executor: ClusterExecutor, task: Any):
        super().__init__()
        self._executor, self._task = executor, task
        self._coming: Future[Any] | None = None
        self.following: _RemoteFuture | None = None
        task.add_done_callback(self._settle)

    def result(self, timeout: float | None = None) -> Any:
        super().result(timeout)
        coming = self._fetch()
        following = self.following
        for _ in range(_AHEAD):
            if following is None or not following.done() or following.cancelled():
                break
            following._fetch()
            following = following.following
        self._coming = None
        with self._executor.clear_faults():
            return coming.result(timeout)

    def _fetch(self) -> Future[Any]:
        if self._coming is None:
            self._coming = self._executor.fetchers.submit(self._task.result)
        return self._coming

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            with contextlib.suppress(Exception):
                self._task.cancel()
        return cancelled

    def _settle(self, task: Any) -> None:
        fault: BaseException | None = None
        try:
            with self._executor.clear_faults():
                if task.status == "cancelled":
                    raise CancelledError("its task was cancelled")
                if task.status == "error":
                    raise task.exception()
        except BaseException as error:
            fault = error
        # Cancelled here meanwhile: nobody asks any more.
        with contextlib.suppress(InvalidStateError):
            if fault is None:
                self.set_result(None)
            else:
                self.set_exception(fault)


def in_order(
    executor: Executor | None, works: Iterable[tuple[Item, Callable[[], Result] | Exception]]
) -> Iterator[tuple[Item, Future[Result]]]:
    """Each item with its finished future, in the items' order, few of them under way at a time.

    Args:
        executor: runs the works; None runs each here when its turn comes.
        works: (item, what to call for it, or why there is nothing to call); consumed as work gets done.

    Yields:
        The item and a future that does not wait; its ``result()`` raises what befell this item's work.
    """
    window: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item, work in works:
            window.append((item, _begun(executor, work)))
            limit = 0 if executor is None else 2 * executor._max_workers
            while window and (window[0][1].done() or len(window) > limit):
                yield _finished(*window.popleft())
        while window:
            yield _finished(*window.popleft())
    finally:
        for _, future in window:
            future.cancel()


def _begun(executor: Executor | None, work: Callable[[], Result] | Exception) -> Future[Result]:
    future: Future[Result] = Future()
    try:
        if isinstance(work, Exception):
            raise work
        if executor is not None:
            return executor.submit(work)
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)
    return future


def _finished(item: Item, future: Future[Result]) -> tuple[Item, Future[Result]]:
    future.exception()
    return item, future


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
