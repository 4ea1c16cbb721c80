"""Build a patch store from a plan: extract new patches, then write the new store beside the old one."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.errors import StoreError, WsiAssetsError, one_line
from wsi_assets.files import digest, disk_fault, file_lock, publish, recover, remove, size_of
from wsi_assets.patches.backends import backend_classes
from wsi_assets.patches.backends.base import (
    FORMAT,
    UNKNOWN_LABEL,
    StoreMetadata,
    StoreReader,
    StoreWriter,
    UnusableStoreError,
)
from wsi_assets.patches.codecs import encoder
from wsi_assets.patches.extraction import ExtractTask, run_tasks
from wsi_assets.patches.options import Backend, ExtractionOptions
from wsi_assets.patches.parts import EncodedPatches, Location
from wsi_assets.patches.plan import PatchPlan, read_batches
from wsi_assets.patches.store import open_reader, partial_folder
from wsi_assets.progress import Progress, silent

_WORTH_A_POOL = 512
"""Number of patches below which starting worker processes takes longer than it saves."""


@dataclass(frozen=True)
class StagedStore:
    """A store that is built under a temporary name; :meth:`publish` moves it to its path.

    Attributes:
        patches, tumor, normal: numbers of patches, in all and by class.
        decoded, reused: how many of them were read from slides now, or taken from earlier builds.
        quarantined: ``key, slide_id, y, x, reason`` of each patch that could not be read.
        seconds: time the build took.
    """

    path: Path
    backend: Backend
    patches: int
    tumor: int
    decoded: int
    quarantined: list[dict[str, Any]]
    seconds: float

    @property
    def normal(self) -> int:
        return self.patches - self.tumor

    @property
    def reused(self) -> int:
        return self.patches - self.decoded

    @property
    def bytes(self) -> int:
        """Size of the published store on disk."""
        return size_of(self.path)

    @property
    def patches_per_second(self) -> float:
        """Patches decoded and stored a second."""
        return self.decoded / max(self.seconds, 1e-9)

    def publish(self) -> StagedStore:
        """Replace the old store; does nothing if that was up to date.

        Raises:
            StoreError: the disk is full or not writable.
        """
        with _one_line_errors(self.path):
            if _staged(self.path).exists():
                publish(_staged(self.path), self.path)
            remove(partial_folder(self.path))
        return self


def build_store(
    plan: PatchPlan,
    path: str | Path,
    backend: Backend,
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> StagedStore:
    """Build the store of ``plan`` at ``path``, or bring the store there up to date.

    Patches whose slide, scale, coordinates, size and encoding are unchanged are copied from the old store
    without opening their slide, even if their key changed. The old store stays readable until the new one
    replaces it. A killed build is continued by the next one. Equal plans give equal stores, whatever was
    built before and on whatever machines.

    A patch that cannot be read, and all patches of a slide that changed since it was indexed, are quarantined
    with the reason; the next build tries them again.

    Args:
        backend: "lmdb", "hdf5" or "fs" (a folder of PNG files).
        executor: reads and encodes patches; by default processes of this machine, or this process if there
            are few patches.
        workers: how many tasks run at once; by default ``plan.options.extraction_workers``, or one for each
            CPU core.

    Raises:
        StoreError: another process builds this store, the disk is full or not writable, or there is something
            at ``path`` that this package did not write.
    """
    with staged_store(plan, path, backend, executor=executor, workers=workers, progress=progress) as staged:
        return staged.publish()


@contextlib.contextmanager
def staged_store(
    plan: PatchPlan,
    path: str | Path,
    backend: Backend,
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> Iterator[StagedStore]:
    """As :func:`build_store`, but the caller publishes. Within the context no other process can build
    there."""
    started = time.perf_counter()
    with _owned(path) as path, contextlib.closing(_Build(plan, path, backend, progress)) as build:
        info, decoded = build.old_info, 0
        if not build.is_current():
            decoded = build.extract(executor, workers)
            info = build.assemble().info
        counts = {name: info[name] for name in ("patches", "tumor", "quarantined")}
        yield StagedStore(path, backend, decoded=decoded, seconds=time.perf_counter() - started, **counts)


class _Build:
    """A build in progress; the caller holds the lock."""

    def __init__(self, plan: PatchPlan, path: Path, backend: Backend, progress: Progress):
        self._plan, self._path, self._backend, self._progress = plan, path, backend, progress
        self._content = plan.content(backend)
        self._lost: dict[int, str] = {}
        """Number of a patch in the plan -> why it could not be read."""
        self._old = _open_old(path, backend)
        self.old_info: dict[str, Any] = {} if self._old is None else self._old.metadata.info
        self._parts = partial_folder(path) / "parts"
        self._encoded = EncodedPatches(self._old, self._parts, self._content)

    def is_current(self) -> bool:
        """Whether the old store is that of the plan and has no quarantined patches."""
        same = self.old_info.get("plan_digest") == self._plan.digest(self._backend)
        return same and not self.old_info["quarantined"]

    def extract(self, executor: Executor | None, workers: int | None) -> int:
        """Extract the patches that are neither in the old store nor in part files; return how many were
        read."""
        total = len(self._plan)
        missing = [np.flatnonzero([place is None for place in places]) for places in self._places()]
        count = sum(map(len, missing))
        workers = workers or self._plan.options.extraction_workers or len(os.sched_getaffinity(0))
        if executor is None and count <= _WORTH_A_POOL:
            workers = 1
        self._parts.mkdir(parents=True, exist_ok=True)
        done = total - count
        for task, reasons in run_tasks(self._tasks(missing), self._parts, executor, workers):
            self._lost.update((int(task.rows[number]), why) for number, why in reasons.items())
            done += len(task.rows)
            self._progress(done, total, "extracting patches")
        self._encoded.find_parts()
        return count - len(self._lost)

    def assemble(self) -> StoreMetadata:
        """Write the new store from the old store and the part files."""
        plan, metadata = self._plan, self._metadata()
        keys, labels, total = list(plan.keys()), plan.labels.tolist(), len(plan)
        places = list(itertools.chain.from_iterable(self._places()))
        rows = [row for row in range(total) if row not in self._lost]
        if self._backend == "lmdb":
            rows.sort(key=keys.__getitem__)
        with _writer(self._backend, self._path, total, plan.patch_size) as writer:
            for done, row in enumerate(rows):
                self._encoded.put(places[row], writer, row, keys[row], labels[row])
                if done % 256 == 0:
                    self._progress(done, total, "storing patches")
            writer.finish(metadata)
        self._progress(total, total, "storing patches")
        return metadata

    def close(self) -> None:
        """Close the old store."""
        if self._old is not None:
            self._old.close()

    def _places(self) -> Iterator[list[Location]]:
        """Where the encoded patches of each slide are."""
        return (self._encoded.find(slide.source, slide.coords) for slide in self._plan.slides)

    def _tasks(self, missing: list[np.ndarray]) -> Iterator[ExtractTask]:
        """The extraction tasks of each slide; none for a slide without missing patches."""
        for slide, wanted in zip(self._plan.slides, missing, strict=True):
            coords, seen = slide.coords[wanted], os.access(slide.path, os.R_OK)
            source = slide.path, seen, slide.fingerprint, slide.level, slide.step
            for chosen in read_batches(coords, self._plan.patch_size, slide.step):
                yield ExtractTask(wanted[chosen] + slide.first, *source, coords[chosen], self._content)

    def _metadata(self) -> StoreMetadata:
        plan, backend = self._plan, self._backend
        keys, labels, origins = np.array(list(plan.keys()), object), plan.labels, plan.origins
        readable = np.ones(len(plan), bool)
        readable[list(self._lost)] = False
        quarantined = []
        for row in sorted(self._lost):
            number, y, x = origins[row].tolist()
            about = {"slide_id": plan.slides[number].slide_id, "y": y, "x": x, "reason": self._lost[row]}
            quarantined.append({"key": keys[row], **about})
        info = {
            **self._content,
            **_counts(backend, labels[readable]),
            "stride": plan.stride,
            "plan_digest": plan.digest(backend),
            "digest": digest(plan.digest(backend), sorted(self._lost)),
            "slides": [
                {
                    "slide_id": s.slide_id,
                    "fingerprint": s.fingerprint,
                    "level": s.level,
                    "step": s.step,
                    **s.scale,
                }
                for s in plan.slides
            ],
            "quarantined": quarantined,
        }
        if backend == "hdf5":  # row is count
            labels, readable = np.where(readable, labels, np.uint8(UNKNOWN_LABEL)), slice(None)
        return StoreMetadata(info, keys[readable].tolist(), labels[readable], origins[readable])


def write_patches(
    path: str | Path,
    backend: Backend,
    items: Iterable[tuple[str, np.ndarray, int]],
    options: ExtractionOptions | None = None,
) -> StagedStore:
    """Write a store of given patches.

    Args:
        items: (key, uint8 (P, P, 3) RGB, label) of each patch; label 1 is tumor.
        options: encoding; the defaults if None.

    Raises:
        StoreError: as :func:`build_store`; or patches of different sizes, a key twice, or no patch.
    """
    started = time.perf_counter()
    codec, quality = (options or ExtractionOptions()).encoding(backend)
    encode = encoder(codec, quality)
    labels: dict[str, int] = {}
    values = hashlib.blake2b(digest_size=16)
    with _owned(path) as path:
        if (old := _open_old(path, backend)) is not None:
            old.close()
        items = iter(items)
        first = next(items, None)
        if first is None:
            raise StoreError("is not written: there are no patches", path=path, remedy="Give at least one")
        size = len(first[1])
        with _writer(backend, path, None, size) as writer:
            for key, image, label in itertools.chain([first], items):
                if image.shape != (size, size, 3) or image.dtype != np.uint8 or key in labels:
                    what = f"patch {key!r} is given twice, or is {image.dtype} {image.shape}"
                    raise StoreError(what, path=path, remedy=f"Give uint8 ({size}, {size}, 3) patches")
                value = encode(image)
                writer.write(len(labels), key, int(label), value)
                values.update(value)
                labels[key] = int(label)
            stored = np.array(list(labels.values()), np.uint8)
            about = {"format": FORMAT, "patch_size": size, "codec": codec, "quality": quality}
            content = digest(list(labels.items()), values.hexdigest())
            info = {**about, **_counts(backend, stored), "digest": content, "quarantined": []}
            writer.finish(StoreMetadata(info, list(labels), stored, None))
        seconds = time.perf_counter() - started
        return StagedStore(path, backend, len(stored), info["tumor"], len(stored), [], seconds).publish()


@contextlib.contextmanager
def _owned(path: str | Path) -> Iterator[Path]:
    """Hold the lock on building the store at ``path``, and remove the unfinished store of a killed build."""
    path = Path(os.path.abspath(path))  # noqa: PTH100  (resolve() would follow links)
    with _one_line_errors(path), contextlib.ExitStack() as held:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.enter_context(file_lock(path.with_name(f".{path.name}.lock")))
        except BlockingIOError as error:
            raise StoreError(
                "is being built by another process", path=path, remedy="Wait for it to end, then run again"
            ) from error
        recover(path)
        remove(_staged(path))
        yield path


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Raise disk errors and dead workers as a one-line StoreError."""
    try:
        yield
    except BrokenExecutor as error:
        raise StoreError(
            f"a worker process died ({one_line(error) or 'killed'})",
            path=path,
            remedy="Use fewer extraction_workers or a machine with more memory, or put your script's code "
            "under if __name__ == '__main__', then run again; it continues",
        ) from error
    except WsiAssetsError:
        raise
    except Exception as error:
        fault = disk_fault(error, path)
        if fault is None:
            raise
        remove(_staged(path))  # frees space on a full disk; the part files stay for the next build
        raise StoreError(fault.fault, path=path, remedy=fault.remedy) from error


def _open_old(path: Path, backend: Backend) -> StoreReader | None:
    """The store that a build replaces; None if there is none, or it cannot be read.

    Raises:
        StoreError: there is a store of another kind or of another program.
    """
    if not path.exists():
        return None
    try:
        old = open_reader(path)
    except UnusableStoreError:
        return None
    found = old.metadata.info["backend"]
    ours = "format" in old.metadata.info
    if ours and found == backend:
        return old
    old.close()
    what = f"is a store of another kind ({found})" if ours else "was written by another program"
    raise StoreError(f"{what}, and is not overwritten", path=path, remedy="Move it away, or build elsewhere")


def _counts(backend: Backend, labels: np.ndarray) -> dict[str, Any]:
    tumor = int(np.count_nonzero(labels == 1))
    return {"backend": backend, "patches": len(labels), "tumor": tumor, "normal": len(labels) - tumor}


def _staged(path: Path) -> Path:
    return partial_folder(path) / path.name


def _writer(backend: Backend, path: Path, count: int | None, patch_size: int) -> StoreWriter:
    _staged(path).parent.mkdir(exist_ok=True)
    return backend_classes(backend)[1](_staged(path), count, patch_size)
