"""Build a store of patches from a plan: extract what is new, then assemble the store beside the old one."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.errors import StoreError, WsiAssetsError, one_line
from wsi_assets.files import digest, disk_fault, file_lock, publish, recover, remove, size_of
from wsi_assets.patches.backends.base import (
    FORMAT,
    UNKNOWN_LABEL,
    StoreMetadata,
    StoreReader,
    StoreWriter,
    UnusableStoreError,
)
from wsi_assets.patches.codecs import encoder
from wsi_assets.patches.extraction import ExtractTask, fingerprint_now, run_tasks
from wsi_assets.patches.options import Backend, ExtractionOptions
from wsi_assets.patches.plan import PatchPlan, patch_key, read_batches
from wsi_assets.patches.reuse import NOWHERE, ReusablePatches
from wsi_assets.patches.store import open_reader, partial_folder
from wsi_assets.progress import Progress, silent

_WORTH_A_POOL = 512
"""Patches under which starting processes takes longer than it saves."""

_PARTS = "parts"
_QUARANTINE = ("key", "slide_id", "y", "x", "reason")


@dataclass(frozen=True)
class ExtractedPatches:
    """Patches of a plan on their way into a store: new ones wait in part files beside it.

    Attributes:
        fingerprints: of each slide of the plan; "" for one that does not read.
        lost: number of a patch in the plan -> why it could not be read.
        decoded: patches read from slides.
        seconds: what it took.
    """

    plan: PatchPlan
    path: Path
    backend: Backend
    fingerprints: list[str]
    lost: dict[int, str] = field(default_factory=dict)
    decoded: int = 0
    seconds: float = 0.0

    @property
    def labels(self) -> np.ndarray:
        """uint8 (n,): 1 is tumor, of the patches that could be read."""
        return np.delete(self.plan.labels, sorted(self.lost))

    @property
    def patches(self) -> int:
        """How many patches the store will hold."""
        return len(self.plan) - len(self.lost)

    @property
    def reused(self) -> int:
        """How many of them come from an earlier build."""
        return self.patches - self.decoded

    @property
    def quarantined(self) -> list[tuple[str, str, int, int, str]]:
        """(key, slide id, y, x, reason) of each patch that could not be read."""
        found = []
        for row in sorted(self.lost):
            number, y, x = self.plan.origins[row].tolist()
            slide_id = self.plan.slides[number].slide_id
            found.append((patch_key(slide_id, row), slide_id, y, x, self.lost[row]))
        return found

    @property
    def digest(self) -> str:
        """Identity of the store that comes of it: equal ones have equal keys, labels and patches."""
        return digest(self.plan.digest(self.backend), sorted(self.lost), self.fingerprints)


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        patches, tumor, normal: how many the store holds now.
        bytes: size of the store on disk.
        decoded, reused, quarantined: as of :class:`ExtractedPatches`.
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


def build_store(
    plan: PatchPlan,
    path: str | Path,
    backend: Backend,
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> BuildReport:
    """Build the store of ``plan`` at ``path``, or bring the one there up to date.

    Patches whose slide, place, size and encoding are unchanged are copied without reading a slide, whatever
    their count is now. The old store stays readable until the new one takes its place. A killed build is
    continued by the next one. The store depends on the plan only, not on its history or on who did the work.
    A patch or slide that cannot be read, or a slide that changed since it was indexed, is quarantined with
    the reason; the next build tries it again.

    Args:
        executor: reads and encodes; by default processes of this machine, or this process if there is
            little to do.
        workers: how many tasks are done at once; by default ``plan.options.extraction_workers``, or one a
            CPU core.
        progress: called with patches done.

    Raises:
        StoreError: another process builds this store, the disk is full or not writable, or what lies at
            ``path`` is not a store of ours.
    """
    extracted = extract_patches(plan, path, backend, executor=executor, workers=workers, progress=progress)
    return write_store(extracted, progress=progress)


def extract_patches(
    plan: PatchPlan,
    path: str | Path,
    backend: Backend,
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> ExtractedPatches:
    """The first half of :func:`build_store`: read and encode what the store at ``path`` lacks."""
    started = time.perf_counter()
    fingerprints = [slide.fingerprint or fingerprint_now(slide.path) for slide in plan.slides]
    lost: dict[int, str] = {}
    with _building(path) as path:
        with _reusable(path, backend, plan) as reusable:
            if _is_current(reusable.old, plan, backend, fingerprints):
                return ExtractedPatches(plan, path, backend, fingerprints)
            missing = [
                np.flatnonzero(reusable.find(mark, slide.coords)[:, 0] == NOWHERE)
                for slide, mark in zip(plan.slides, fingerprints, strict=True)
            ]
        count = sum(map(len, missing))
        workers = workers or plan.options.extraction_workers or len(os.sched_getaffinity(0))
        if executor is None and count <= _WORTH_A_POOL:
            workers = 1
        folder = partial_folder(path) / _PARTS
        folder.mkdir(parents=True, exist_ok=True)
        done = len(plan) - count
        tasks = _tasks(plan, plan.content(backend), fingerprints, missing)
        for task, result in run_tasks(tasks, folder, executor, workers):
            lost.update((int(task.rows[number]), reason) for number, reason in result.reasons.items())
            done += len(task.rows)
            progress(done, len(plan), "extracting patches")
    seconds = time.perf_counter() - started
    return ExtractedPatches(plan, path, backend, fingerprints, lost, count - len(lost), seconds)


def write_store(extracted: ExtractedPatches, *, progress: Progress = silent) -> BuildReport:
    """The second half of :func:`build_store`: assemble the store and put it in the old one's place."""
    started = time.perf_counter()
    plan, backend, fingerprints = extracted.plan, extracted.backend, extracted.fingerprints
    keys, labels = list(plan.keys()), plan.labels.tolist()
    rows = [row for row in range(len(plan)) if row not in extracted.lost]
    if backend == "lmdb":
        rows.sort(key=keys.__getitem__)
    with _building(extracted.path) as path:
        with _reusable(path, backend, plan) as reusable:
            if _is_current(reusable.old, plan, backend, fingerprints):
                remove(partial_folder(path))
                return _report(path, reusable.old.metadata.info, extracted.decoded, extracted.seconds)
            slides = zip(plan.slides, fingerprints, strict=True)
            places = np.concatenate([reusable.find(mark, slide.coords) for slide, mark in slides])
            if gone := np.count_nonzero(places[rows, 0] == NOWHERE):
                raise StoreError(f"{gone} extracted patches are gone", path=path, remedy="Extract them again")
            metadata = _metadata(extracted)
            with _writer(backend, path, len(plan), plan.patch_size) as writer:
                for done, row in enumerate(rows):
                    reusable.copy(places[row].tolist(), writer, row, keys[row], labels[row])
                    if done % 256 == 0:
                        progress(done, len(plan), "storing patches")
                writer.finish(metadata)
        _publish(path)
    progress(len(plan), len(plan), "storing patches")
    seconds = extracted.seconds + time.perf_counter() - started
    return _report(path, metadata.info, extracted.decoded, seconds)


def write_patches(
    path: str | Path,
    backend: Backend,
    items: Iterable[tuple[str, np.ndarray, int]],
    options: ExtractionOptions | None = None,
) -> BuildReport:
    """Write a store of patches that are at hand: (key, uint8 (P, P, 3) RGB, label) each.

    Raises:
        StoreError: as :func:`build_store`; patches of different sizes, a key twice, or no patch at all.
    """
    started = time.perf_counter()
    codec, quality = (options or ExtractionOptions()).encoding(backend)
    encode = encoder(codec, quality)
    labels: dict[str, int] = {}
    values = hashlib.blake2b(digest_size=16)
    with _building(path) as path:
        if (old := _open_old(path, backend)) is not None:
            old.close()
        items = iter(items)
        first = next(items, None)
        if first is None:
            raise StoreError("would have no patches", path=path)
        size = len(first[1])
        with _writer(backend, path, None, size) as writer:
            for key, image, label in itertools.chain([first], items):
                if image.shape != (size, size, 3) or image.dtype != np.uint8 or key in labels:
                    what = f"patch {key!r} is there twice, or is {image.dtype} {image.shape}"
                    raise StoreError(what, path=path, remedy=f"Give uint8 ({size}, {size}, 3) patches")
                value = encode(image)
                writer.write(len(labels), key, int(label), value)
                values.update(value)
                labels[key] = int(label)
            stored = np.array(list(labels.values()), np.uint8)
            info = {
                **_counts(backend, stored),
                **{"format": FORMAT, "patch_size": size, "codec": codec, "quality": quality},
                **{"digest": digest(list(labels.items()), values.hexdigest()), "quarantined": []},
            }
            writer.finish(StoreMetadata(info, list(labels), stored, None))
        _publish(path)
    return _report(path, info, len(stored), time.perf_counter() - started)


@contextlib.contextmanager
def _building(path: str | Path) -> Iterator[Path]:
    """Own the store at ``path``; what befalls the disk or the workers is one line."""
    path = Path(os.path.abspath(path))  # noqa: PTH100  (resolve() would follow links)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path.with_name(f".{path.name}.lock")):
            recover(path)
            remove(_staged(path))
            yield path
    except BlockingIOError as error:
        raise StoreError(
            "is being built by another process", path=path, remedy="Wait for it to end, then run again"
        ) from error
    except BrokenExecutor as error:
        raise StoreError(
            f"a worker process died ({one_line(error) or 'killed'})",
            path=path,
            remedy="Give it more memory or fewer extraction_workers, or begin your script's work below "
            "if __name__ == '__main__', then run again; it continues",
        ) from error
    except WsiAssetsError:
        raise
    except Exception as error:
        fault = disk_fault(error, path)
        if fault is None:
            raise
        remove(_staged(path))  # a full disk needs the space; the part files stay
        raise StoreError(fault.fault, path=path, remedy=fault.remedy) from error


def _tasks(
    plan: PatchPlan, content: dict[str, Any], fingerprints: list[str], missing: list[np.ndarray]
) -> Iterator[ExtractTask]:
    """What is to be read of each slide; one without any missing patch is not opened."""
    from wsi_assets.patches.patch_reader import tiles_are_openslides

    for slide, mark, wanted in zip(plan.slides, fingerprints, missing, strict=True):
        coords = slide.coords[wanted]
        batches = read_batches(coords, plan.patch_size)
        # Where a slide is read by several processes, only this one compares its tiles with OpenSlide's.
        direct = tiles_are_openslides(slide.path, plan.level) if len(batches) > 1 else None
        for chosen in batches:
            rows = wanted[chosen] + slide.first
            yield ExtractTask(rows, slide.path, mark, coords[chosen], content, direct)


@contextlib.contextmanager
def _reusable(path: Path, backend: Backend, plan: PatchPlan) -> Iterator[ReusablePatches]:
    reusable = ReusablePatches(_open_old(path, backend), partial_folder(path) / _PARTS, plan.content(backend))
    with contextlib.closing(reusable):
        yield reusable


def _is_current(old: StoreReader | None, plan: PatchPlan, backend: Backend, fingerprints: list[str]) -> bool:
    """Whether the old store is the plan's, and nothing is left to try again."""
    info = {} if old is None else old.metadata.info
    # An index without fingerprints does not say when a slide changed.
    return (
        info.get("plan_digest") == plan.digest(backend)
        and not info["quarantined"]
        and [slide["fingerprint"] for slide in info["slides"]] == fingerprints
    )


def _open_old(path: Path, backend: Backend) -> StoreReader | None:
    """The store that a build replaces; None if there is none that can be read.

    Raises:
        StoreError: what lies there is not a store of this kind that we wrote.
    """
    if not path.exists():
        return None
    try:
        old = open_reader(path)
    except UnusableStoreError:
        return None
    found = old.metadata.info["backend"]
    if old.metadata.ours and found == backend:
        return old
    old.close()
    what = f"is a store of another kind ({found})" if old.metadata.ours else "was written by another program"
    raise StoreError(f"{what}, and is not overwritten", path=path, remedy="Move it away, or build elsewhere")


def _metadata(extracted: ExtractedPatches) -> StoreMetadata:
    plan, backend = extracted.plan, extracted.backend
    keys, labels, origins = list(plan.keys()), plan.labels, plan.origins
    readable = np.ones(len(plan), bool)
    readable[list(extracted.lost)] = False
    info = {
        **plan.content(backend),
        **_counts(backend, extracted.labels),
        "stride": plan.stride,
        "plan_digest": plan.digest(backend),
        "digest": extracted.digest,
        "slides": [
            {
                "slide_id": slide.slide_id,
                "fingerprint": mark,
                "patches": int(np.count_nonzero(readable[slide.first : slide.first + len(slide)])),
                **slide.scale,
            }
            for slide, mark in zip(plan.slides, extracted.fingerprints, strict=True)
        ],
        "quarantined": [dict(zip(_QUARANTINE, row, strict=True)) for row in extracted.quarantined],
    }
    if backend == "hdf5":  # row is count
        return StoreMetadata(info, keys, np.where(readable, labels, UNKNOWN_LABEL).astype(np.uint8), origins)
    stored = [key for key, kept in zip(keys, readable.tolist(), strict=True) if kept]
    return StoreMetadata(info, stored, labels[readable], origins[readable])


def _counts(backend: Backend, labels: np.ndarray) -> dict[str, Any]:
    tumor = int(np.count_nonzero(labels == 1))
    return {"backend": backend, "patches": len(labels), "tumor": tumor, "normal": len(labels) - tumor}


def _staged(path: Path) -> Path:
    return partial_folder(path) / path.name


@contextlib.contextmanager
def _writer(backend: Backend, path: Path, count: int | None, patch_size: int) -> Iterator[StoreWriter]:
    if backend == "lmdb":
        from wsi_assets.patches.backends.lmdb import LmdbWriter as Writer
    elif backend == "hdf5":
        from wsi_assets.patches.backends.hdf5 import Hdf5Writer as Writer
    else:
        from wsi_assets.patches.backends.image_folder import ImageFolderWriter as Writer
    staged = _staged(path)
    staged.parent.mkdir(exist_ok=True)
    with contextlib.closing(Writer(staged, count, patch_size)) as writer:
        yield writer


def _publish(path: Path) -> None:
    publish(_staged(path), path)
    remove(partial_folder(path))


def _report(path: Path, info: dict[str, Any], decoded: int, seconds: float) -> BuildReport:
    return BuildReport(
        path=path,
        backend=info["backend"],
        patches=info["patches"],
        tumor=info["tumor"],
        normal=info["normal"],
        bytes=size_of(path),
        seconds=seconds,
        decoded=decoded,
        reused=info["patches"] - decoded,
        quarantined=[tuple(row[name] for name in _QUARANTINE) for row in info["quarantined"]],
    )
