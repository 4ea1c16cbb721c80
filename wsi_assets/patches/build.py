"""Build a store of patches from a plan: take over what is unchanged, extract the rest, publish it whole.

One process, the caller's, owns the store; reading and encoding go out in tasks to an executor. Formats of
stores, and how pixels are read, belong elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.errors import SlideError, StoreError, one_line
from wsi_assets.files import size_of
from wsi_assets.patches import aside
from wsi_assets.patches.contract import Contents, Source, UnusableStore, Writer
from wsi_assets.patches.extract import Encoded, Task, close_reader, extract
from wsi_assets.patches.options import Backend
from wsi_assets.patches.plan import PatchPlan, SlidePlan, part_positions, patch_key
from wsi_assets.patches.store import open_shelf
from wsi_assets.progress import Progress, silent

_COMMIT_BYTES = 32 << 20
_WORTH_A_POOL = 512
"""Patches under which starting processes takes longer than it saves."""


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        patches, tumor, normal: how many the store holds now.
        bytes: size of the store on disk.
        decoded, reused: how many of them were read from slides, and taken over from an earlier build.
        quarantined: (key, slide id, y, x, reason) of each patch that could not be read.
    """

    path: Path
    backend: Backend
    patches: int
    tumor: int
    normal: int
    bytes: int
    seconds: float
    decoded: int
    reused: int
    quarantined: list[tuple[str, str, int, int, str]]

    @property
    def patches_per_second(self) -> float:
        """Patches decoded and stored a second; 0 when none was."""
        return self.decoded / self.seconds if self.seconds > 0 else 0.0

    @property
    def quarantined_share(self) -> float:
        """Share of the planned patches that could not be read, 0 to 1."""
        planned = self.patches + len(self.quarantined)
        return len(self.quarantined) / planned if planned else 0.0


@dataclass(frozen=True)
class _Part:
    """One step of a build. ``positions``: numbers in the plan. ``taken``: what a source gives, or None.
    ``task``: reads those that no source has; None if there are none."""

    slide: SlidePlan
    fingerprint: str
    offset: int
    positions: np.ndarray
    taken: list[Any]
    task: Task | None


def build_store(
    plan: PatchPlan,
    path: str | Path,
    backend: Backend,
    *,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> BuildReport:
    """Build the store of ``plan`` at ``path``, or bring the one there up to date.

    Patches whose slide, place, size and encoding are unchanged are taken over without reading a slide,
    whatever their number is now. The old store stays readable until the new one is complete and takes its
    place. A build that was killed is continued and ends in the same bytes; these do not depend on the number
    of workers either. A patch or slide that cannot be read, or a slide that changed since it was indexed, is
    quarantined with the reason; the next build tries it again.

    Args:
        executor: runs the tasks; by default a process pool of ``plan.options.extraction_workers``, or this
            process if there is little to do.
        progress: told of patches done.

    Raises:
        StoreError: another process builds this store, the disk is full or not writable, or what lies at
            ``path`` is not a store.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100  (resolve() would follow links)
    started = time.perf_counter()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.locked(path):
            aside.recover(path)
            old = _old_store(path, backend, plan)
            if old is not None and old.complete_for(plan, backend):
                old.close()
                return _report(plan, path, backend, old.quarantined, 0, len(plan), started)
            quarantined, decoded, reused = _build(plan, path, backend, old, executor, progress)
            return _report(plan, path, backend, quarantined, decoded, reused, started)
    except BrokenExecutor as error:
        raise StoreError(
            f"a worker process died ({one_line(error) or 'killed'})",
            path=path,
            remedy="Give it more memory or fewer extraction_workers, then run again; it continues",
        ) from error
    except OSError as error:
        raise _disk_error(path, error) from error


class _Old:
    """The store a build replaces."""

    def __init__(self, source: Any, usable: bool):
        self.source = source
        self.usable = usable
        self.info = source.shelf.contents.info

    @property
    def quarantined(self) -> list[tuple[str, str, int, int, str]]:
        return [
            (row["key"], row["slide_id"], row["y"], row["x"], row["reason"])
            for row in self.info["quarantined"]
        ]

    def complete_for(self, plan: PatchPlan, backend: Backend) -> bool:
        return self.info["digest"] == plan.digest(backend) and not self.info["quarantined"]

    def close(self) -> None:
        self.source.close()


def _old_store(path: Path, backend: Backend, plan: PatchPlan) -> _Old | None:
    if not path.exists():
        return None
    try:
        shelf = open_shelf(path)
    except UnusableStore:
        return None
    info = shelf.contents.info
    if info["backend"] != backend:
        shelf.close()
        raise StoreError(
            f"is a store of another kind ({info['backend']})",
            path=path,
            remedy="Move it away, or build elsewhere",
        )
    content = plan.content(backend)
    return _Old(
        _source_class(backend)(shelf), all(info.get(name) == value for name, value in content.items())
    )


def _build(
    plan: PatchPlan,
    path: Path,
    backend: Backend,
    old: _Old | None,
    executor: Executor | None,
    progress: Progress,
) -> tuple[list[tuple[str, str, int, int, str]], int, int]:
    writer = _writer_class(backend)(path, plan.digest(backend), plan.content(backend))
    decoded = reused = 0
    try:
        sources = list(writer.sources)
        if old is not None and old.usable:
            sources.append(old.source)
        lost = dict(writer.lost)
        new_lost: list[tuple[int, str]] = []
        first_part = writer.parts_done
        done = waiting = 0
        labels = plan.labels
        parts = _parts(plan, backend, sources, first_part)
        for number, part, encoded in _carried_out(parts, plan, executor):
            if part is None:  # committed by the build this one continues
                done += encoded
                continue
            read = iter(()) if encoded is None else iter(enumerate(encoded.values))
            for position, taken in zip(part.positions.tolist(), part.taken, strict=True):
                value = None
                if taken is None:
                    at, value = next(read)
                    if value is None:
                        new_lost.append((position, encoded.reasons[at]))
                        continue
                    decoded += 1
                    waiting += len(value)
                else:
                    source, locator = taken
                    taken = source.take(locator)
                    reused += 1
                    waiting += memoryview(taken).nbytes if isinstance(taken, (bytes, memoryview)) else 0
                y, x = part.slide.coords[position - part.offset].tolist()
                key = patch_key(part.slide.slide_id, position)
                writer.add(key, int(labels[position]), (part.fingerprint, y, x), value, taken)
            done += len(part.positions)
            if waiting >= _COMMIT_BYTES:
                writer.commit(number + 1, new_lost)
                lost.update(new_lost)
                new_lost, waiting = [], 0
            progress(done, len(plan), "extracting patches")
        writer.commit(number + 1, new_lost)
        lost.update(new_lost)
        kept_before = done - decoded - reused - len(lost)
        contents = _contents(plan, backend, lost)
        writer.finish(contents)
    finally:
        writer.close()
        if old is not None:
            old.close()
    rows = contents.info["quarantined"]
    quarantined = [(row["key"], row["slide_id"], row["y"], row["x"], row["reason"]) for row in rows]
    return quarantined, decoded, reused + kept_before


def _parts(
    plan: PatchPlan, backend: Backend, sources: list[Source], first: int
) -> Iterator[tuple[int, _Part | None, int]]:
    """(number, part, patches) in the plan's order; the part is None before ``first``."""
    codec = plan.content(backend)
    number = 0
    for slide in plan.slides:
        fingerprint: str | None = None
        for positions in part_positions(slide, plan.patch_size):
            if number < first:
                yield number, None, len(positions)
            else:
                if fingerprint is None:
                    fingerprint = slide.fingerprint or _fingerprint_now(slide.path)
                coords = slide.coords[positions]
                taken: list[Any] = [None] * len(positions)
                for source in sources:
                    for at, locator in enumerate(source.find(fingerprint, coords)):
                        if locator is not None and taken[at] is None:
                            taken[at] = (source, locator)
                missing = np.array([item is None for item in taken], bool)
                task = None
                if missing.any():
                    task = Task(
                        slide.path,
                        fingerprint or None,
                        plan.level,
                        plan.patch_size,
                        coords[missing],
                        codec["codec"],
                        codec["quality"],
                        plan.options.max_no_data,
                    )
                part = _Part(slide, fingerprint, slide.first, positions + slide.first, taken, task)
                yield number, part, len(positions)
            number += 1


def _carried_out(
    parts: Iterator[tuple[int, _Part | None, int]], plan: PatchPlan, executor: Executor | None
) -> Iterator[tuple[int, _Part | None, Any]]:
    """Parts in order, each with what its task gave; only so many tasks are under way as workers can use."""
    workers = plan.options.extraction_workers or os.cpu_count() or 1
    with contextlib.ExitStack() as stack:
        stack.callback(close_reader)
        pool = executor
        window: deque[tuple[int, _Part | None, Any]] = deque()
        stack.callback(lambda: [item.cancel() for _, _, item in window if isinstance(item, Future)])
        limit = 2 * getattr(executor, "_max_workers", workers) + 1
        seen = 0
        for number, part, count in parts:
            if part is None:
                window.append((number, None, count))
            elif part.task is None:
                window.append((number, part, None))
            else:
                seen += len(part.task.coords)
                if pool is None and workers > 1 and seen + _still_to_do(plan, part) > _WORTH_A_POOL:
                    pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn")))
                result = pool.submit(extract, part.task) if pool else extract(part.task)
                window.append((number, part, result))
            while window and (pool is None or len(window) > limit or _ready(window[0][2])):
                number_, part_, result_ = window.popleft()
                yield number_, part_, result_.result() if isinstance(result_, Future) else result_
        while window:
            number_, part_, result_ = window.popleft()
            yield number_, part_, result_.result() if isinstance(result_, Future) else result_


def _still_to_do(plan: PatchPlan, part: _Part) -> int:
    """Patches of the plan after this part, an upper bound of what is left to read."""
    return len(plan) - int(part.positions.max()) - 1


def _ready(result: Any) -> bool:
    return not isinstance(result, Future) or result.done()


def _contents(plan: PatchPlan, backend: Backend, lost: dict[int, str]) -> Contents:
    keep = np.ones(len(plan), bool)
    keep[list(lost)] = False
    keys = list(plan.keys())
    labels = plan.labels[keep]
    quarantined = []
    for position in sorted(lost):
        slide_number, y, x = plan.origins[position].tolist()
        slide_id = plan.slides[slide_number].slide_id
        quarantined.append(
            {"key": keys[position], "slide_id": slide_id, "y": y, "x": x, "reason": lost[position]}
        )
    slides = [
        {
            "slide_id": slide.slide_id,
            "fingerprint": slide.fingerprint or _fingerprint_now(slide.path),
            "patches": int(np.count_nonzero(keep[slide.first : slide.first + len(slide)])),
            **slide.scale,
        }
        for slide in plan.slides
    ]
    info = {
        **plan.content(backend),
        "backend": backend,
        "stride": plan.stride,
        "digest": plan.digest(backend),
        "complete": True,
        "patches": len(labels),
        "tumor": int(labels.sum()),
        "normal": int(len(labels) - labels.sum()),
        "slides": slides,
        "quarantined": quarantined,
        "versions": _versions(),
    }
    stored = [key for key, kept in zip(keys, keep.tolist(), strict=True) if kept]
    return Contents(info, stored, labels, plan.origins[keep])


def _report(
    plan: PatchPlan,
    path: Path,
    backend: Backend,
    quarantined: list[tuple[str, str, int, int, str]],
    decoded: int,
    reused: int,
    started: float,
) -> BuildReport:
    lost = {row[0] for row in quarantined}
    tumor = sum(
        int(label) for key, label in zip(plan.keys(), plan.labels.tolist(), strict=True) if key not in lost
    )
    patches = len(plan) - len(lost)
    seconds = time.perf_counter() - started
    return BuildReport(
        path, backend, patches, tumor, patches - tumor, size_of(path), seconds, decoded, reused, quarantined
    )


def _fingerprint_now(path: str) -> str:
    from wsi_assets.slides.fingerprints import fingerprint

    try:
        return fingerprint(path)
    except SlideError:
        return ""


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in (
        "wsi-assets",
        "numpy",
        "opencv-python",
        "imagecodecs",
        "tifffile",
        "openslide-python",
        "openslide-bin",
    ):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _writer_class(backend: Backend) -> type[Writer]:
    if backend == "lmdb":
        from wsi_assets.patches.lmdb_store import LmdbWriter as Kind
    elif backend == "hdf5":
        from wsi_assets.patches.hdf5_store import Hdf5Writer as Kind
    else:
        from wsi_assets.patches.folder_store import FolderWriter as Kind
    return Kind


def _source_class(backend: Backend) -> Any:
    if backend == "hdf5":
        from wsi_assets.patches.hdf5_store import Hdf5Source as Kind
    elif backend == "fs":
        from wsi_assets.patches.folder_store import FolderSource as Kind
    else:
        from wsi_assets.patches.contract import ShelfSource as Kind
    return Kind


def _disk_error(path: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreError(
            "the disk is full", path=path, remedy="Free some space, then run again; the build continues"
        )
    return StoreError(
        f"cannot be written ({error.strerror or one_line(error)})",
        path=path,
        remedy="Check disk and permissions",
    )
