"""Build a store of patches from a plan: take over what is unchanged, extract the rest, publish it whole.

One process, the caller's, owns the store; reading and encoding go out in tasks to an executor. Formats of
stores, and how pixels are read, belong elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.errors import StoreError, WsiAssetsError, one_line
from wsi_assets.files import digest, size_of
from wsi_assets.patches import aside
from wsi_assets.patches.contract import Contents, Shelf, UnusableStoreError, Writer
from wsi_assets.patches.extract import Encoded
from wsi_assets.patches.options import Backend
from wsi_assets.patches.plan import PatchPlan, patch_key
from wsi_assets.patches.steps import Step, carried_out, fingerprint_now, steps
from wsi_assets.patches.store import open_shelf
from wsi_assets.progress import Progress, silent

_COMMIT_BYTES = 32 << 20
"""Work is made safe against a kill in commits of about this size, counted in bytes put, not in time: so a
store has the same history, hence the same bytes, however fast it was built."""


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
            if old is not None and old.is_of(plan, backend):
                old.tidy(path)
                old.close()
                return _report(path, old.info, 0, started)
            info, decoded = _build(plan, path, backend, old, executor, progress)
            return _report(path, info, decoded, started)
    except BrokenExecutor as error:
        raise StoreError(
            f"a worker process died ({one_line(error) or 'killed'})",
            path=path,
            remedy="Give it more memory or fewer extraction_workers, then run again; it continues",
        ) from error
    except WsiAssetsError:
        raise
    except Exception as error:
        fault = _disk_error(path, error)
        if fault is None:
            raise
        raise fault from error


class _Old:
    """The store a build replaces; ``usable``: its patches are of the plan's kind."""

    def __init__(self, shelf: Shelf, usable: bool):
        self.shelf = shelf
        self.usable = usable
        self.info = shelf.contents.info

    def is_of(self, plan: PatchPlan, backend: Backend) -> bool:
        """Whether it is the plan's store, and nothing is left to try again."""
        if self.info["plan_digest"] != plan.digest(backend) or self.info["quarantined"]:
            return False
        # An index without fingerprints does not tell when a slide changed.
        pairs = zip(plan.slides, self.info["slides"], strict=True)
        return all(s.fingerprint or stored["fingerprint"] == fingerprint_now(s.path) for s, stored in pairs)

    def tidy(self, path: Path) -> None:
        """Remove what killed builds of other plans left: this store is what is asked for now."""
        if aside.building_folder(path).exists():
            self.shelf.tidy()
        aside.forget(path)

    def close(self) -> None:
        self.shelf.close()


def _old_store(path: Path, backend: Backend, plan: PatchPlan) -> _Old | None:
    if not path.exists():
        return None
    try:
        shelf = open_shelf(path)
    except UnusableStoreError:
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
    return _Old(shelf, all(info.get(name) == value for name, value in content.items()))


def _build(
    plan: PatchPlan,
    path: Path,
    backend: Backend,
    old: _Old | None,
    executor: Executor | None,
    progress: Progress,
) -> tuple[dict[str, Any], int]:
    """Build and publish; what the new store says of itself, and how many patches were decoded."""
    usable = old.shelf if old is not None and old.usable else None
    writer = _writer_class(backend)(path, plan.content(backend), usable)
    try:
        lost: dict[int, str] = {}
        decoded = waiting = 0
        for step, encoded in carried_out(steps(plan, backend, writer.sources), plan, executor):
            read, size = _add(writer, plan, step, encoded, lost)
            decoded += read
            waiting += size
            if waiting >= _COMMIT_BYTES:
                writer.commit()
                waiting = 0
            progress(step.before + len(step.positions), len(plan), "extracting patches")
        contents = _contents(plan, backend, lost)
        writer.finish(contents)
    finally:
        writer.close()
        if old is not None:
            old.close()
    return contents.info, decoded


def _add(
    writer: Writer, plan: PatchPlan, step: Step, encoded: Encoded | None, lost: dict[int, str]
) -> tuple[int, int]:
    """Put a step's patches into the store; the unreadable go to ``lost``. Patches decoded, and bytes put."""
    read = iter(()) if encoded is None else iter(enumerate(encoded.values))
    decoded = size = 0
    places = zip(step.positions.tolist(), step.coords.tolist(), step.taken, strict=True)
    for position, (y, x), taken in places:
        value = reuse = None
        if taken is None:
            at, value = next(read)
            if value is None:
                lost[position] = encoded.reasons[at]
                continue
            decoded += 1
            size += len(value)
        else:
            source, locator = taken
            reuse = source.take(locator)
            size += len(reuse) if isinstance(reuse, (bytes, memoryview)) else 0
        key = patch_key(step.slide.slide_id, position)
        writer.add(position, key, int(plan.labels[position]), (step.fingerprint, y, x), value, reuse)
    return decoded, size


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
            "fingerprint": slide.fingerprint or fingerprint_now(slide.path),
            "patches": int(np.count_nonzero(keep[slide.first : slide.first + len(slide)])),
            **slide.scale,
        }
        for slide in plan.slides
    ]
    asked = plan.digest(backend)
    info = {
        **plan.content(backend),
        "backend": backend,
        "stride": plan.stride,
        "plan_digest": asked,
        "digest": digest(asked, sorted(lost), [slide["fingerprint"] for slide in slides]),
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


def _report(path: Path, info: dict[str, Any], decoded: int, started: float) -> BuildReport:
    return BuildReport(
        path=path,
        backend=info["backend"],
        patches=info["patches"],
        tumor=info["tumor"],
        normal=info["normal"],
        bytes=size_of(path),
        seconds=time.perf_counter() - started,
        decoded=decoded,
        reused=info["patches"] - decoded,
        quarantined=[
            (row["key"], row["slide_id"], row["y"], row["x"], row["reason"]) for row in info["quarantined"]
        ],
    )


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


def _disk_error(path: Path, error: Exception) -> StoreError | None:
    """The one line for a disk's fault, which every library words its own way; None if it is another fault."""
    text = str(error)
    if any(os.strerror(code) in text for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)):
        return StoreError(
            "the disk is full", path=path, remedy="Free some space, then run again; the build continues"
        )
    for code in (errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ENOTDIR):
        if os.strerror(code) in text:
            return StoreError(
                f"cannot be written ({os.strerror(code)})", path=path, remedy="Check its disk and permissions"
            )
    return None
