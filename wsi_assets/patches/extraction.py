"""Read and encode patches in worker processes, or on any executor such as a cluster."""

from __future__ import annotations

import io
import itertools
import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
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
from wsi_assets.running import worker_pool
from wsi_assets.slides.fingerprints import fingerprint, signature


@dataclass(frozen=True)
class ExtractTask:
    """Patches of one slide to read and encode.

    Attributes:
        rows: numbers of the patches in the plan.
        seen: whether the building process can read the slide's file.
        fingerprint: the slide's fingerprint when it was indexed, which it must still have.
        level, step: the level that is read, and how many of its pixels, each way, are averaged to one.
        coords: int32 (n, 2) of (y, x), in averaged pixels.
        content: patch size, codec and so on, see :meth:`PatchPlan.content`.
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
    """Read and encode the patches of a task.

    Args:
        folder: folder for the part file; None on workers of other machines, which return its bytes instead.

    Returns:
        Position in the task -> reason, for each patch that could not be read; and the bytes of the part if
        there is no folder.

    Raises:
        SlideError: the building process can read the slide, but this machine cannot. Quarantining its patches
            would hide that. Any other patch or slide that cannot be read is in the result, with the reason.
    """
    reasons: dict[int, str] = {}
    if folder is not None:
        with new_part(folder) as stream:
            write_part(stream, task.content, _source(task), _encoded(task, reasons))
        return reasons, b""
    if task.seen and not os.access(task.slide_path, os.R_OK):
        raise SlideError(
            f"can be read by the building process but not by the worker on {platform.node()}",
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
    """Run tasks, which write part files in ``folder``; yields each finished task with the reasons of
    :func:`extract`.

    Args:
        executor: runs the tasks; None runs them in this process, or in ``workers`` processes.
        workers: how many tasks run at once; as many more are submitted.

    Raises:
        BrokenExecutor: a worker process died.
        SlideError: a worker of the executor cannot read a slide that this process can.
    """
    if executor is not None:
        for task, (reasons, part) in _as_completed(executor, tasks, partial(extract, folder=None), workers):
            with new_part(folder) as stream:
                stream.write(part)
            yield task, reasons
    elif workers > 1:
        with worker_pool(workers) as processes:
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
    """((y, x), encoded patch) of each patch that can be read; the reasons of the others go into ``reasons``.

    With the codec ``jpeg``, a patch that is exactly one of the slide's JPEG tiles is not encoded again.
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
    """The slide of a task, kept open between tasks, because consecutive tasks are mostly of one slide."""
    wanted = (task.slide_path, task.level, task.fingerprint, signature(task.slide_path))
    if getattr(_held, "wanted", None) != wanted:
        close_reader()
        if fingerprint(task.slide_path) != task.fingerprint:
            raise SlideError("changed since it was indexed", path=task.slide_path, remedy="Index it again")
        _held.reader = PatchReader(task.slide_path, task.level)
        _held.wanted = wanted
    return _held.reader


def close_reader() -> None:
    """Close the slide that this thread keeps open between tasks."""
    if getattr(_held, "wanted", None) is not None:
        _held.reader.close()
    _held.wanted = _held.reader = None
