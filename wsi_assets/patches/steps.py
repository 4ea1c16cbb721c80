"""The steps of a build in their order: what is taken over, what is read, and by whom.

Nothing is written here. Steps come out in the plan's order whoever finishes first, and only so many tasks are
under way as workers can use, so neither timing nor the cohort's size shows in the store or in memory.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from wsi_assets.errors import SlideError
from wsi_assets.patches.contract import Source
from wsi_assets.patches.extract import Encoded, Task, close_reader, extract, extract_into, fetch
from wsi_assets.patches.handover import Room, Rooms
from wsi_assets.patches.options import Backend
from wsi_assets.patches.plan import PatchPlan, SlidePlan, part_positions
from wsi_assets.patches.processes import process_pool

_WORTH_A_POOL = 512
"""Patches under which starting processes takes longer than it saves."""


@dataclass(frozen=True)
class Step:
    """Some patches of one slide.

    Attributes:
        before: patches in the steps before this one.
        positions: the patches' numbers in the plan.
        coords: int32 (n, 2), their (y, x).
        taken: for each (source, locator), or None if it must be read.
        task: reads those without a source; None if there are none.
    """

    before: int
    slide: SlidePlan
    fingerprint: str
    positions: np.ndarray
    coords: np.ndarray
    taken: list[tuple[Source, Any] | None]
    task: Task | None


def steps(plan: PatchPlan, backend: Backend, sources: Sequence[Source]) -> Iterator[Step]:
    """The plan's steps, in its order."""
    content = plan.content(backend)
    before, count = 0, 0
    for slide in plan.slides:
        fingerprint: str | None = None
        for chosen in part_positions(slide, plan.patch_size):
            before, count = before + count, len(chosen)
            if fingerprint is None:
                fingerprint = slide.fingerprint or fingerprint_now(slide.path)
            coords = slide.coords[chosen]
            taken = _taken(sources, fingerprint, coords)
            missing = np.array([item is None for item in taken], bool)
            task = None
            if missing.any():
                task = Task(
                    slide_path=slide.path,
                    fingerprint=fingerprint or None,
                    level=plan.level,
                    patch_size=plan.patch_size,
                    coords=coords[missing],
                    codec=content["codec"],
                    quality=content["quality"],
                    max_no_data=plan.options.max_no_data,
                )
            yield Step(before, slide, fingerprint, chosen + slide.first, coords, taken, task)


def carried_out(
    planned: Iterator[Step], plan: PatchPlan, executor: Executor | None
) -> Iterator[tuple[Step, Encoded | None]]:
    """Steps in order, each with what its task gave; that is good until the next step is asked for.

    Without an ``executor`` a process pool starts if there is enough to do. This process reads too while the
    others are supplied and nothing is ready to be taken: with two workers, that is half of the work. Of the
    results, three a worker and one are under way or wait here, however long the first of them takes.

    Raises:
        SlideError: a worker of the ``executor`` does not see a slide that this process sees.
    """
    workers = plan.options.extraction_workers or len(os.sched_getaffinity(0))
    window: deque[tuple[Step, Future, Room | None]] = deque()

    def full() -> bool:
        # Workers of an executor may come while the work goes on.
        return len(window) > 3 * getattr(executor, "_max_workers", workers)

    def supplied() -> bool:
        return sum(not work.done() for _, work, _ in window) >= 2 * (workers - 1)

    def taken() -> Iterator[tuple[Step, Encoded | None]]:
        step, work, room = window.popleft()
        encoded = work.result() if room is None else fetch(room, work.result())
        if executor is not None:
            _check_seen(step, encoded)
        yield step, encoded
        if room is not None:
            rooms.give_back(room)

    with Rooms() as rooms, contextlib.ExitStack() as stack:
        stack.callback(close_reader)
        stack.callback(lambda: [work.cancel() for _, work, _ in window])
        pool: Executor | None = None
        for step in planned:
            while full() or (window and window[0][1].done() and (pool is None or supplied())):
                yield from taken()
            if executor is None and pool is None and workers > 1 and len(plan) - step.before > _WORTH_A_POOL:
                pool = stack.enter_context(process_pool(workers - 1))
            room = None
            if step.task is None:
                work = _done(None)
            elif executor is not None:
                work = executor.submit(extract, step.task)
            elif pool is None or supplied():
                work = _done(extract(step.task))
            else:
                room = rooms.take()
                work = pool.submit(extract_into, room.path, step.task)
            window.append((step, work, room))
        while window:
            yield from taken()


def fingerprint_now(path: str) -> str:
    """The slide's fingerprint, empty if it does not read; for an index that lacks it."""
    from wsi_assets.slides.fingerprints import fingerprint

    try:
        return fingerprint(path)
    except SlideError:
        return ""


def _taken(
    sources: Sequence[Source], fingerprint: str, coords: np.ndarray
) -> list[tuple[Source, Any] | None]:
    taken: list[tuple[Source, Any] | None] = [None] * len(coords)
    missing = np.arange(len(coords))
    for source in sources:
        found = source.find(fingerprint, coords[missing])
        for at, locator in zip(missing.tolist(), found, strict=True):
            if locator is not None:
                taken[at] = (source, locator)
        missing = missing[np.array([locator is None for locator in found], bool)]
    return taken


def _done(result: Encoded | None) -> Future:
    work: Future = Future()
    work.set_result(result)
    return work


def _check_seen(step: Step, encoded: Encoded | None) -> None:
    """Raise where a worker elsewhere does not find a slide that is found here."""
    if encoded is not None and encoded.unseen_by is not None and fingerprint_now(step.slide.path):
        # Not the slide's fault: to quarantine its patches would hide that the worker lacks the folder.
        raise SlideError(
            f"is seen here but not by the worker on {encoded.unseen_by}: {encoded.reasons[0]}",
            path=step.slide.path,
            remedy="Mount the slide folder at the same path on every worker, then run again; it continues",
        )
