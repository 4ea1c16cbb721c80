"""The plan of a patch store, made from a slide index: which patches it holds, with their keys and order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.errors import SlideError, SlideIndexError
from wsi_assets.files import digest
from wsi_assets.patches.backends.base import FORMAT, MAX_STORED_PATCH_SIZE
from wsi_assets.slides.fingerprints import fingerprint

if TYPE_CHECKING:
    from wsi_assets.patches.options import Backend, ExtractionOptions

BATCH_PIXELS = 1024 * 256 * 256
"""Pixels of the patches in a batch, about half a second of work."""

DEFAULT_PATCH_SIZE = 256
"""Patch size of an index that does not state it."""

_MAX_COORDINATE = 2**31 - 1
_MAX_ID_BYTES = 200


def patch_key(slide_id: str, count: int) -> str:
    """The key of a patch; ``count`` runs from 0 over all patches of all slides in index order."""
    return f"{slide_id}_{count:06d}"


def source_of(fingerprint: str, level: int, step: float) -> str:
    """A text that identifies the pixels of a slide's patches: equal texts mean equal pixels."""
    return f"{fingerprint} level {level} step {step!r}"


@dataclass(frozen=True)
class SlidePlan:
    """The patches of one slide.

    Attributes:
        indexed_fingerprint: the slide's fingerprint in the index, None if the index lacks it.
        first: count of the slide's first patch.
        level, step: the level that is read, and how many of its pixels, each way, are averaged to one.
        coords: int32 (n, 2), top-left corners (y, x) in averaged pixels.
        labels: uint8 (n,), 1 is tumor.
        scale: downsample, mpp and magnification in the index, None where it lacks them.
    """

    slide_id: str
    path: str
    indexed_fingerprint: str | None
    first: int
    level: int
    step: float
    coords: np.ndarray
    labels: np.ndarray
    scale: Mapping[str, float | None]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint in the index, else the file's present one; "" if the file cannot be read."""
        if self.indexed_fingerprint is not None:
            return self.indexed_fingerprint
        try:
            return fingerprint(self.path)
        except SlideError:
            return ""

    @property
    def source(self) -> str:
        """Identifies the pixels of the patches, see :func:`source_of`."""
        return source_of(self.fingerprint, self.level, self.step)


@dataclass(frozen=True)
class PatchPlan:
    """The patches of all slides at one level, magnification or pixel size, in index order."""

    slides: tuple[SlidePlan, ...]
    options: ExtractionOptions
    level: int | str
    patch_size: int
    stride: int

    def __len__(self) -> int:
        return sum(map(len, self.slides))

    @cached_property
    def labels(self) -> np.ndarray:
        """uint8 (n,), 1 is tumor."""
        return np.concatenate([slide.labels for slide in self.slides])

    @cached_property
    def origins(self) -> np.ndarray:
        """int32 (n, 3): slide number in :attr:`slides`, y, x."""
        columns = [
            np.column_stack([np.full(len(slide), number, np.int32), slide.coords])
            for number, slide in enumerate(self.slides)
        ]
        return np.concatenate(columns)

    def keys(self) -> Iterator[str]:
        """Keys in index order."""
        for slide in self.slides:
            for count in range(slide.first, slide.first + len(slide)):
                yield patch_key(slide.slide_id, count)

    def content(self, backend: Backend) -> dict[str, Any]:
        """What the stored bytes of a patch depend on, except its slide and its coordinates."""
        codec, quality = self.options.encoding(backend)
        return {
            "format": FORMAT,
            "level": self.level,
            "patch_size": self.patch_size,
            "max_no_data": self.options.max_no_data,
            "codec": codec,
            "quality": quality,
        }

    def digest(self, backend: Backend = "lmdb") -> str:
        """A digest of the plan: equal digests give equal stores, if all patches can be read."""
        slides = [
            (s.slide_id, s.source, dict(s.scale), s.coords.tobytes(), s.labels.tobytes()) for s in self.slides
        ]
        return digest(self.content(backend), self.stride, slides)


def plan_patches(
    index: Mapping[str, Mapping[str, Any]], options: ExtractionOptions, *, patch_size: int | None = None
) -> PatchPlan:
    """Plan the patches of a slide index, in its order.

    Args:
        index: slide id -> entry; entries of other programs need ``slide_path``, ``level`` and ``patches``.
        patch_size: patch size of entries that do not state it; 256 by default.

    Raises:
        SlideIndexError: no patches, mixed levels or patch sizes, or an entry is damaged.
    """
    from wsi_assets.index.slide_index import check_index, resolution_of

    slides: list[SlidePlan] = []
    geometry: set[tuple[int | str, int, int]] = set()
    first = 0
    for slide_id, entry in check_index(index).items():
        try:
            size = int(entry.get("patch_size") or patch_size or DEFAULT_PATCH_SIZE)
            geometry.add((resolution_of(entry), size, int(entry.get("stride") or size)))
            slides.append(_slide_plan(slide_id, entry, first))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise SlideIndexError(
                f"the index entry of {slide_id!r:.60} is damaged: {error!r:.200}",
                remedy="Make the index again",
            ) from error
        first += len(slides[-1])
    if len(geometry) > 1:
        raise SlideIndexError(
            "the index mixes levels, patch sizes or strides", remedy="Make it again with one set of options"
        )
    if first == 0:
        raise SlideIndexError(
            "the index has no patches",
            remedy="See left_out of slide_index for the reasons; often a lower level or a smaller patch_size "
            "helps",
        )
    level, size, stride = geometry.pop()
    if not 0 < size <= MAX_STORED_PATCH_SIZE or patch_size not in (None, size):
        raise SlideIndexError(
            f"the index has patches of {size} pixels, not {patch_size or f'1 to {MAX_STORED_PATCH_SIZE}'}",
            remedy="Give its patch size, or make the index again",
        )
    return PatchPlan(tuple(slides), options, level, size, stride)


def _slide_plan(slide_id: str, entry: Mapping[str, Any], first: int) -> SlidePlan:
    if slide_id.startswith(("__", ".")) or "/" in slide_id or len(slide_id.encode()) > _MAX_ID_BYTES:
        raise SlideIndexError(
            f"{slide_id!r:.60} cannot be used in file names and keys: it is too long, contains a slash, or "
            "begins with two underscores or a dot",
            remedy="Rename the slide",
        )
    rows = np.array(entry["patches"], dtype=np.int64).reshape(-1, 3)
    if np.abs(rows).max(initial=0) > _MAX_COORDINATE:
        raise ValueError("a coordinate is out of range")
    return SlidePlan(
        slide_id=slide_id,
        path=str(entry["slide_path"]),
        indexed_fingerprint=entry.get("fingerprint"),
        first=first,
        level=int(entry["level"]),
        step=float(entry.get("step", 1.0)),
        coords=np.ascontiguousarray(rows[:, :2], dtype=np.int32),
        labels=(rows[:, 2] != 0).astype(np.uint8),
        scale={name: entry.get(name) for name in ("downsample", "mpp", "magnification")},
    )


def read_batches(coords: np.ndarray, patch_size: int, step: float = 1.0) -> list[np.ndarray]:
    """Divide the patches of one slide into batches: arrays of positions in ``coords``.

    Patches are ordered by squares of 1,024 pixels within larger squares of about a batch, so that batches
    rarely share a tile.
    """
    coords, patch_size = (coords * step).astype(np.int64), round(patch_size * step)
    per_batch = max(1, BATCH_PIXELS // patch_size**2)
    side = max(1024, round(per_batch**0.5 * patch_size / 1024) * 1024)
    order = np.lexsort((*(coords // 1024).T[::-1], *(coords // side).T[::-1]))
    return [order[first : first + per_batch] for first in range(0, len(order), per_batch)]
