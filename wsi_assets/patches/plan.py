"""Which patches a store shall hold: a pure value made of index entries.

Keys, order and the content digest are decided here. Reading slides and writing stores are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.errors import SlideIndexError
from wsi_assets.files import digest
from wsi_assets.patches.contract import FORMAT, MOST_PIXELS
from wsi_assets.patches.options import Backend, ExtractionOptions

if TYPE_CHECKING:
    from wsi_assets.index import Index

PART_PIXELS = 256 * 256 * 256
"""Pixels of the patches one task reads: 48 MiB decoded, whatever the slide's width."""

MOST_COORDINATE = 2**31 - 1
"""What fits a store's int32 columns; slides are far smaller."""


def patch_key(slide_id: str, count: int) -> str:
    """The key of a patch; ``count`` runs from 0 over all patches of all slides in index order."""
    return f"{slide_id}_{count:06d}"


@dataclass(frozen=True)
class SlidePlan:
    """The patches of one slide.

    Attributes:
        fingerprint: content fingerprint of the slide when it was indexed; None in an index that lacks one.
        first: count of the slide's first patch.
        coords: int32 (n, 2), top-left (y, x) in pixels of the plan's level.
        labels: uint8 (n,), 1 is tumour.
        scale: downsample, mpp and magnification as the index gives them.
    """

    slide_id: str
    path: str
    fingerprint: str | None
    first: int
    coords: np.ndarray
    labels: np.ndarray
    scale: Mapping[str, float | None]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class PatchPlan:
    """The patches of one level of all slides, in index order."""

    slides: tuple[SlidePlan, ...]
    options: ExtractionOptions
    level: int
    patch_size: int
    stride: int

    def __len__(self) -> int:
        return sum(map(len, self.slides))

    @cached_property
    def labels(self) -> np.ndarray:
        """uint8 (n,), 1 is tumour."""
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
        """All that decides what bytes a patch becomes, or that it is left out, except its slide and place."""
        options = self.options
        encoding: dict[str, Any] = {"codec": options.codec, "quality": None}
        if backend == "fs":
            encoding["codec"] = "png"
        elif backend == "hdf5":
            encoding.update(
                codec="gzip" if options.hdf5_gzip else "pixels", quality=options.hdf5_gzip or None
            )
        elif options.codec == "jpeg":
            encoding["quality"] = options.jpeg_quality
        return {
            "format": FORMAT,
            "level": self.level,
            "patch_size": self.patch_size,
            "max_no_data": options.max_no_data,
            **encoding,
        }

    def digest(self, backend: Backend = "lmdb") -> str:
        """Identity of what is asked for: equal digests make equal stores, if all patches can be read."""
        slides = [
            (s.slide_id, s.fingerprint, dict(s.scale), s.coords.tobytes(), s.labels.tobytes())
            for s in self.slides
        ]
        return digest(self.content(backend), self.stride, slides)


def plan_patches(index: Index, options: ExtractionOptions) -> PatchPlan:
    """Plan the patches of an index, in its order.

    Raises:
        SlideIndexError: no index, no patches, mixed levels or patch sizes, or a field missing.
    """
    from wsi_assets.index.slide_index import check_index

    slides: list[SlidePlan] = []
    geometry: set[tuple[int, int, int]] = set()
    first = 0
    for slide_id, entry in check_index(index).items():
        path = ""
        try:
            path = str(entry["slide_path"])
            size = int(entry["patch_size"])
            geometry.add((int(entry["level"]), size, int(entry.get("stride") or size)))
            rows = np.array(entry["patches"], dtype=np.int64).reshape(-1, 3)
            if not 0 < size <= MOST_PIXELS or np.abs(rows).max(initial=0) > MOST_COORDINATE:
                raise ValueError("a size or place is not possible")
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise SlideIndexError(
                f"an index entry is damaged: {error!r}", path=path or None, remedy="Make the index again"
            ) from error
        if slide_id.startswith("__"):
            raise SlideIndexError(
                "a slide's name may not begin with two underscores", path=path, remedy="Rename it"
            )
        slides.append(
            SlidePlan(
                slide_id=slide_id,
                path=path,
                fingerprint=entry.get("fingerprint"),
                first=first,
                coords=np.ascontiguousarray(rows[:, :2], dtype=np.int32),
                labels=(rows[:, 2] != 0).astype(np.uint8),
                scale={name: entry.get(name) for name in ("downsample", "mpp", "magnification")},
            )
        )
        first += len(rows)
    if len(geometry) > 1:
        raise SlideIndexError(
            "the index mixes levels, patch sizes or strides", remedy="Make it again with one set of options"
        )
    if first == 0:
        raise SlideIndexError(
            "the index has no patches",
            remedy="See why in left_out of slide_index; often a lower level, or a smaller patch_size, helps",
        )
    level, size, stride = geometry.pop()
    return PatchPlan(tuple(slides), options, level, size, stride)


def part_positions(slide: SlidePlan, patch_size: int) -> list[np.ndarray]:
    """Cut a slide's patches into tasks: arrays of positions in the slide, in file order.

    Patches are gathered over squares aligned to 1,024 pixels, so that tasks seldom share a tile, and squares
    with little tissue are put together. The cut depends on the plan only, never on who does the work.
    """
    per_part = max(1, PART_PIXELS // patch_size**2)
    side = max(1024, round(per_part**0.5 * patch_size / 1024) * 1024)
    blocks = slide.coords // side
    order = np.lexsort((slide.coords[:, 1], slide.coords[:, 0], blocks[:, 1], blocks[:, 0]))
    borders = np.flatnonzero(np.any(np.diff(blocks[order], axis=0), axis=1)) + 1
    parts: list[np.ndarray] = []
    waiting: list[np.ndarray] = []
    for block in np.split(order, borders):
        if waiting and sum(map(len, waiting)) + len(block) > per_part:
            parts.append(np.concatenate(waiting))
            waiting = []
        for start in range(0, len(block), per_part):
            piece = block[start : start + per_part]
            if len(piece) == per_part:
                parts.append(piece)
            else:
                waiting.append(piece)
    if waiting and sum(map(len, waiting)):
        parts.append(np.concatenate(waiting))
    return parts
