"""Read and encode patches in worker processes, or on any executor."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.errors import SlideError
from wsi_assets.patches.codecs import encoder
from wsi_assets.patches.parts import new_part, write_part
from wsi_assets.patches.patch_reader import PatchReader
from wsi_assets.patches.plan import source_of
from wsi_assets.running import start_worker
from wsi_assets.slides.fingerprints import fingerprint, signature


@dataclass(frozen=True)
class ExtractTask:
    """Patches of one slide to read and encode.

    Attributes:
        rows: numbers of the patches in the plan.
        seen: whether the builder sees the slide's file.
        fingerprint: what the slide must still have.
        level, step: the level that is read, and how many of its pixels, each way, are averaged to one.
        coords: int32 (n, 2) of (y, x) in pixels so averaged.
        content: patch size, codec and the like, as of :meth:`PatchPlan.content`.
    """

    rows: np.ndarray
    slide_path: str
    seen: bool
    fingerprint: str
    level: int
    step: float
    coords: np.ndarray
    content: dict[str, Any]


def extract(task: ExtractTask, folder: Path | None) -> tuple[dict[int, str], bytes]:
    """Read and encode into a part file in ``folder``; None is for workers of other machines.

    Returns:
        Position in the task -> why, of each patch that could not be read; and the part where there is no
        folder.

    Raises:
        SlideError: the builder sees a slide and this machine does not. To quarantine its patches would hide
            that. Any other unreadable slide or patch is a reason in the result.
    """
    reasons: dict[int, str] = {}
    if folder is not None:
        with new_part(folder) as stream:
            write_part(stream, task.content, _source(task), _encoded(task, reasons))
        return reasons, b""
    if task.seen and not os.access(task.slide_path, os.R_OK):
        raise SlideError(
            f"is seen by the builder but not by the worker on {platform.node()}",
            path=task.slide_path,
            remedy="Mount the slide folder at the same path on every worker, then run again; it continues",
        )
    stream = io.BytesIO()
    write_part(stream, task.content, _source(task), _encoded(task, reasons))
    return reasons, stream.getvalue()


def _source(task: ExtractTask) -> str:
    return source_of(task.fingerprint, task.level, task.step)


def run_tasks(
    tasks: Iterable[ExtractTask], folder: Path, executor: Executor | None, workers: int
) -> Iterator[tuple[ExtractTask, dict[int, str]]]:
    """Do the tasks and have their patches in part files in ``folder``; each task with the reasons of
    :func:`extract`, as done.

    Args:
        executor: does them elsewhere; None does them here: in this process, or in several ``workers``.
        workers: how many tasks are done at once; as many wait.

    Raises:
        BrokenExecutor: a worker process died.
        SlideError: a worker of the executor does not see a slide that this process sees.
    """
    if executor is not None:
        for task, (reasons, part) in _as_completed(executor, tasks, partial(extract, folder=None), workers):
            with new_part(folder) as stream:
                stream.write(part)
            yield task, reasons
    elif workers > 1:
        # Fresh processes: what this one has open, or its threads hold, is not theirs.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, initializer=start_worker) as processes:
            try:
                for task, (reasons, _) in _as_completed(
                    processes, tasks, partial(extract, folder=folder), workers
                ):
                    yield task, reasons
            finally:
                processes.shutdown(cancel_futures=True)
    else:
        try:
            for task in tasks:
                yield task, extract(task, folder)[0]
        finally:
            close_reader()


def _as_completed(
    executor: Executor, tasks: Iterable[ExtractTask], work: Callable[[ExtractTask], Any], workers: int
) -> Iterator[tuple[ExtractTask, Any]]:
    tasks = iter(tasks)
    waiting: dict[Future, ExtractTask] = {}
    try:
        while True:
            for task in itertools.islice(tasks, 2 * workers - len(waiting)):
                waiting[executor.submit(work, task)] = task
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    finally:
        for future in waiting:
            future.cancel()


def _encoded(task: ExtractTask, reasons: dict[int, str]) -> Iterator[tuple[tuple[int, int], bytes]]:
    """((y, x), encoded patch) of those that can be read; why not, of the rest, into ``reasons``.

    A patch that is just one of the slide's JPEG tiles is not encoded again under the codec ``jpeg``.
    """
    content = task.content
    encode = encoder(content["codec"], content["quality"])
    waiting = set(range(len(task.coords)))
    try:
        patches = _reader(task).read(
            task.coords, content["patch_size"], task.step, jpeg=content["codec"] == "jpeg"
        )
        for number, patch in patches:
            waiting.remove(number)
            reason = patch.why_unusable(content["max_no_data"])
            if reason is None:
                yield tuple(task.coords[number].tolist()), patch.jpeg or encode(patch.pixels)
            else:
                reasons[number] = reason
    except SlideError as error:
        close_reader()
        reasons.update(dict.fromkeys(waiting, error.fault))


_held = threading.local()


def _reader(task: ExtractTask) -> PatchReader:
    """The slide, kept open from task to task: consecutive tasks are mostly of one slide."""
    wanted = (task.slide_path, task.level, task.fingerprint, signature(task.slide_path))
    if getattr(_held, "wanted", None) != wanted:
        close_reader()
        if fingerprint(task.slide_path) != task.fingerprint:
            raise SlideError("changed since it was indexed", path=task.slide_path, remedy="Index it again")
        _held.reader = PatchReader(task.slide_path, task.level)
        _held.wanted = wanted
    return _held.reader


def close_reader() -> None:
    """Let go of the slide that this thread holds open between tasks."""
    if getattr(_held, "wanted", None) is not None:
        _held.reader.close()
    _held.wanted = _held.reader = None
