"""Read and encode patches in worker processes, or on any executor."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.errors import SlideError
from wsi_assets.patches.codecs import encoder
from wsi_assets.patches.reuse import write_part
from wsi_assets.running import start_worker
from wsi_assets.slides.fingerprints import fingerprint, signature


@dataclass(frozen=True)
class ExtractTask:
    """Patches of one slide to read and encode; it pickles.

    Attributes:
        rows: numbers of the patches in the plan.
        fingerprint: what the slide must still have; "" takes it as it is.
        coords: int32 (n, 2) of (y, x) in pixels of the content's level.
        content: level, patch size, codec and the like, as of :meth:`PatchPlan.content`.
        direct: whether the slide's tiles may be decoded directly; None if nobody found out yet.
    """

    rows: np.ndarray
    slide_path: str
    fingerprint: str
    coords: np.ndarray
    content: dict[str, Any]
    direct: bool | None = None


@dataclass(frozen=True)
class BatchResult:
    """What became of a task.

    Attributes:
        reasons: number of a patch that could not be read -> why.
        values: ((y, x), encoded patch) of the others; empty where they went to a part file.
        unseen_by: the machine that did not even find the slide's file, None if it did.
    """

    reasons: dict[int, str]
    values: list[tuple[tuple[int, int], bytes]] = field(default_factory=list)
    unseen_by: str | None = None


def extract_to_part(task: ExtractTask, folder: Path) -> BatchResult:
    """Read and encode into a part file in ``folder``.

    An unreadable slide or patch is a reason in the result, never an exception.
    """
    reasons: dict[int, str] = {}
    write_part(folder, task.content, task.fingerprint, _encoded(task, reasons))
    return BatchResult(reasons)


def extract_values(task: ExtractTask) -> BatchResult:
    """As :func:`extract_to_part`, for workers that share no disk with the store: the values are returned."""
    reasons: dict[int, str] = {}
    values = list(_encoded(task, reasons))
    unseen_by = None if os.access(task.slide_path, os.R_OK) else platform.node()
    return BatchResult(reasons, values, unseen_by)


def run_tasks(
    tasks: Iterable[ExtractTask], folder: Path, executor: Executor | None, workers: int
) -> Iterator[tuple[ExtractTask, BatchResult]]:
    """Do the tasks and have their patches in part files in ``folder``; each task with its result, as done.

    Args:
        executor: does them elsewhere; None does them here: in this process, or in several ``workers``.
        workers: how many tasks are done at once; as many wait.

    Raises:
        BrokenExecutor: a worker process died.
        SlideError: a worker of the executor does not see a slide that this process sees.
    """
    if executor is not None:
        for task, result in _as_completed(executor, tasks, extract_values, 2 * workers):
            _check_seen(task, result)
            write_part(folder, task.content, task.fingerprint, result.values)
            yield task, result
    elif workers > 1:
        # Fresh processes: what this one has open, or its threads hold, is not theirs.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=start_worker) as processes:
            try:
                work = partial(extract_to_part, folder=folder)
                yield from _as_completed(processes, tasks, work, 2 * workers)
            finally:
                processes.shutdown(cancel_futures=True)
    else:
        try:
            for task in tasks:
                yield task, extract_to_part(task, folder)
        finally:
            close_reader()


def _as_completed(
    executor: Executor, tasks: Iterable[ExtractTask], work: Callable[..., BatchResult], ahead: int
) -> Iterator[tuple[ExtractTask, BatchResult]]:
    tasks = iter(tasks)
    waiting: dict[Future, ExtractTask] = {}
    try:
        while True:
            for task in itertools.islice(tasks, ahead - len(waiting)):
                waiting[executor.submit(work, task)] = task
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    finally:
        for future in waiting:
            future.cancel()


_open = threading.local()


def close_reader() -> None:
    """Let go of the slide that this thread holds open between tasks."""
    held = getattr(_open, "held", None)
    _open.held = None
    if held is not None:
        held[1].close()


def _encoded(task: ExtractTask, reasons: dict[int, str]) -> Iterator[tuple[tuple[int, int], bytes]]:
    """((y, x), encoded patch) of those that can be read; why not, of the rest, into ``reasons``.

    A patch that is just one of the slide's JPEG tiles is not encoded again under the codec ``jpeg``: the tile
    is smaller, its pixels are exactly the slide's, and it costs no time. Parts of a tile are not cut out so:
    jpegtran's lossless crop, 1.5 to 3 times as fast as coding again, loses what color at half resolution
    (4:2:0, as most scanners write) takes from beyond the cut, in one pixel of 300.
    """
    waiting = set(range(len(task.coords)))
    places = list(map(tuple, task.coords.tolist()))
    content = task.content
    encode = encoder(content["codec"], content["quality"])
    try:
        reader = _reader(task)
        patches = reader.read(task.coords, content["patch_size"], jpeg=content["codec"] == "jpeg")
        for number, patch in patches:
            waiting.remove(number)
            reason = patch.fault or _too_little(patch.missing, content)
            if reason is None:
                yield places[number], patch.jpeg or encode(patch.pixels)
            else:
                reasons[number] = sys.intern(reason)  # one text for many patches: results stay small
    except SlideError as error:
        close_reader()
        reasons.update(dict.fromkeys(waiting, error.fault))


def _too_little(missing: int, content: dict[str, Any]) -> str | None:
    """The reason to leave out a patch of which the slide lacks so many pixels; None to take it."""
    pixels = content["patch_size"] ** 2
    if missing > content["max_no_data"] * pixels or missing == pixels:
        return f"the slide has no pixels for {missing / pixels:.0%} of it"
    return None


def _reader(task: ExtractTask):
    """The slide, kept open from task to task: consecutive tasks are mostly of one slide."""
    from wsi_assets.patches.patch_reader import PatchReader

    level = task.content["level"]
    wanted = (task.slide_path, level, task.fingerprint, signature(task.slide_path))
    held = getattr(_open, "held", None)
    if held is not None and held[0] == wanted:
        return held[1]
    close_reader()
    if task.fingerprint and fingerprint(task.slide_path) != task.fingerprint:
        raise SlideError("changed since it was indexed", path=task.slide_path, remedy="Index it again")
    reader = PatchReader(task.slide_path, level, direct=task.direct)
    _open.held = (wanted, reader)
    return reader


def fingerprint_now(path: str) -> str:
    """The slide's fingerprint, empty if it does not read; for an index that lacks it."""
    with contextlib.suppress(SlideError):
        return fingerprint(path)
    return ""


def _check_seen(task: ExtractTask, result: BatchResult) -> None:
    if result.unseen_by is not None and fingerprint_now(task.slide_path):
        # Not the slide's fault: to quarantine its patches would hide that the worker lacks the folder.
        why = next(iter(result.reasons.values()))
        raise SlideError(
            f"is seen here but not by the worker on {result.unseen_by}: {why}",
            path=task.slide_path,
            remedy="Mount the slide folder at the same path on every worker, then run again; it continues",
        )
