"""Make the slide index of a level or magnification: the patches of each slide with labels, in plain types."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsi_assets.errors import SlideIndexError
from wsi_assets.index.coverage import is_tumor, to_level, tumor_fractions
from wsi_assets.index.patch_grid import mask_fractions, starts
from wsi_assets.index.slide_index import Entry, Index
from wsi_assets.slides import Cohort, Place, Resolution, locate, patient_of
from wsi_assets.slides.resolution import ranges

if TYPE_CHECKING:
    import shapely
    from numpy.typing import NDArray

    from wsi_assets.annotations import TumorRegions
    from wsi_assets.index.options import IndexOptions
    from wsi_assets.index.tissue import TissueRegions

MOST_PLACES = 1 << 28
"""Places on a slide's tissue that are tried for a patch, some 20 s of work."""
MOST_PATCHES = 1 << 24
"""Patches of a slide's entry, which takes some 250 bytes for each."""
_BAND = 1 << 20
"""Places worked on at once: some 200 MB for the few arrays of twice as many cells each way."""


@dataclass(frozen=True)
class LevelIndex:
    """The index of a level.

    ``left_out`` says of each slide without an entry why; ``empty`` of each slide whose entry holds no patch.
    """

    index: Index
    left_out: dict[str, str] = field(default_factory=dict)
    empty: dict[str, str] = field(default_factory=dict)


def index_slide(
    tissue: TissueRegions,
    tumor: TumorRegions | None,
    level: int | str | Resolution,
    options: IndexOptions,
    annotation_path: str | Path | None = None,
) -> Entry:
    """The entry of one slide at a level, or at a magnification or pixel size such as "10x" or "0.5um".

    At the latter the target level is the level ``level`` averaged by ``step``, which is 1 where that level
    has the pixel size asked for, and ``resolution`` says what was asked for.

    ``patches`` are (y, x, is_tumor), top-left corners in pixels of the target level, row by row; none reaches
    into an ignored area. ``visualisation_coords`` are the same in pixels of the tissue mask, each
    ``work_downsample`` level-0 pixels wide, rounded down; ``mpp`` is of the target level; ``label`` is the
    patient as this id spells it.

    Raises:
        SlideIndexError: the slide has no such level, magnification or pixel size, or the stride is too small
            for a slide of its size.
    """
    wanted = _resolution(level)
    target = _place(tissue, wanted, options)
    size, stride = options.patch_size, options.stride or options.patch_size
    to_work = target.downsample / tissue.work_downsample
    ys, xs = (
        _near_tissue(starts(side, size, stride), tissue.mask.any(axis=1 - axis), size, to_work)
        for axis, side in enumerate((target.height, target.width))
    )
    if len(ys) * len(xs) > MOST_PLACES:
        raise _too_dense(tissue, wanted, stride, f"tries {len(ys) * len(xs)} places")
    geometry, ignored = (
        to_level(area, target.downsample) if area else None
        for area in (tumor and tumor.geometry, tumor and tumor.ignored)
    )
    rows, columns, shares, tumor_share = _on_tissue(tissue.mask, geometry, ignored, ys, xs, to_work, options)
    if len(rows) > MOST_PATCHES:
        raise _too_dense(tissue, wanted, stride, f"makes more than {MOST_PATCHES} patches")
    labels = np.zeros(len(rows), bool)
    if geometry is not None and len(rows):
        corners = np.stack([ys[rows], xs[columns]], axis=1)
        labels = is_tumor(options.label_rule, options.tumor_threshold, tumor_share, geometry, corners, size)
    flags = labels.tolist()
    magnification, averaged = tissue.scale.magnification(target.downsample), {}
    if wanted.mpp is not None:
        magnification = 10 / target.mpp
        averaged = {"resolution": wanted.key, "step": float(target.step)}
    seen_ys, seen_xs = ((corner * to_work).astype(np.int64) for corner in (ys, xs))
    return {
        "slide_path": str(tissue.slide_path),
        "label": patient_of(tissue.slide_id, options.patient_pattern),
        "annotation_path": None if annotation_path is None else str(annotation_path),
        "level": int(target.level.index),
        **averaged,
        "work_level": int(tissue.work_level),
        "work_downsample": float(tissue.work_downsample),
        "magnification": float(magnification),
        "visualisation_coords": _triples(seen_ys, seen_xs, rows, columns, flags),
        "patches": _triples(ys, xs, rows, columns, flags),
        "patch_size": int(size),
        "stride": int(stride),
        "downsample": float(target.downsample),
        "mpp": None if target.mpp is None else float(target.mpp),
        "tissue_fraction": shares.tolist(),
        "tumor_fraction": tumor_share.tolist(),
        "fingerprint": str(tissue.fingerprint),
        "config": {**tissue.config, **options.model_dump()},
    }


def index_level(
    slides: Iterable[tuple[TissueRegions, TumorRegions | None, str | Path | None]],
    level: int | str | Resolution,
    options: IndexOptions,
    cohort: Cohort | None = None,
) -> LevelIndex:
    """Index every slide that has the level or magnification; the others are named, with the reason.

    An entry's ``split`` is there only where ``cohort`` names the side of the slide or of its patient, and
    ``cohort_label`` where it says one.

    Args:
        slides: (tissue, tumor regions or None, annotation path or None) of each slide; consumed once, so a
            generator keeps only one slide's masks in memory.

    Raises:
        SlideIndexError: there are slides and none of them has the level, or there is no slide.
        ConfigError: the cohort puts a patient on two sides.
    """
    cohort = cohort or Cohort()
    entries: Index = {}
    left_out: dict[str, str] = {}
    empty: dict[str, str] = {}
    wanted, known = _resolution(level), set()
    for tissue, tumor, annotation_path in slides:
        if cohort.row(tissue.slide_id).label == "unknown":
            left_out[tissue.slide_id] = f"{cohort.path} says that its label is unknown; it can be predicted"
            continue
        known.update(v.index for v in tissue.levels)
        try:
            target = _place(tissue, wanted, options)
        except SlideIndexError as error:
            left_out[tissue.slide_id] = error.fault
            if wanted.mpp is not None:
                left_out[tissue.slide_id] += f". {error.remedy}"
            continue
        entry = index_slide(tissue, tumor, wanted, options, annotation_path)
        entries[tissue.slide_id] = entry
        if not entry["patches"]:
            empty[tissue.slide_id] = _why_empty(tissue, tumor, wanted, target, options)
    if not entries:
        raise SlideIndexError(
            f"no slide has {wanted} ({len(left_out)} slides; levels that exist: {ranges(known)})"
            if left_out
            else f"there is no slide to index at {wanted}",
            remedy="Choose a level that exists"
            if wanted.mpp is None and left_out
            else "Add slides, or see why none could be read",
        )
    index = dict(sorted(entries.items()))
    patients = cohort.patients(index, options.patient_pattern)
    sides = cohort.sides(patients)
    for slide_id, entry in index.items():
        said = {"split": sides.get(slide_id), "cohort_label": cohort.row(slide_id).label}
        entry |= {"label": patients[slide_id], **{key: value for key, value in said.items() if value}}
    return LevelIndex(index, dict(sorted(left_out.items())), dict(sorted(empty.items())))


def _near_tissue(
    corners: NDArray[np.int64], tissue: NDArray[np.bool_], patch_size: int, scale: float
) -> NDArray[np.int64]:
    """The corners along one axis whose patches reach between the first and the last tissue there.

    Args:
        tissue: whether each row, or column, of the mask holds any.
        scale: mask pixels per pixel of the target level.
    """
    at = np.flatnonzero(tissue)
    if not len(at):
        return corners[:0]
    return corners[((corners + patch_size) * scale > at[0]) & (corners * scale < at[-1] + 1)]


def _on_tissue(
    mask: NDArray[np.bool_],
    geometry: shapely.Geometry | None,
    ignored: shapely.Geometry | None,
    ys: NDArray[np.int64],
    xs: NDArray[np.int64],
    scale: float,
    options: IndexOptions,
) -> tuple[NDArray, ...]:
    """The patches of ``ys`` x ``xs`` with enough tissue outside what is ignored, row by row: their rows,
    columns, tissue shares and tumor shares, each (n,); it ends early with more than ``MOST_PATCHES``.

    Worked on in bands of rows, so that memory follows the patches that are kept and not those tried.
    """
    size, height = options.patch_size, max(_BAND // max(len(xs), 1), 1)
    parts, found = [], 0
    for first in range(0, max(len(ys), 1), height):
        band = ys[first : first + height]
        shares = mask_fractions(mask, band, xs, size, scale)
        # A patch without any tissue is none, also where the user asks for no least share.
        wanted = (shares >= options.min_tissue) & (shares > 0)
        if ignored is not None:
            wanted &= tumor_fractions(ignored, band, xs, size) == 0
        at = np.nonzero(wanted)
        tumor = np.zeros(len(at[0]))
        if geometry is not None and len(tumor):
            tumor = tumor_fractions(geometry, band, xs, size)[at]
        parts.append((at[0] + first, at[1], shares[at], tumor))
        found += len(tumor)
        if found > MOST_PATCHES:
            break
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def _too_dense(tissue: TissueRegions, wanted: Resolution, stride: int, what: str) -> SlideIndexError:
    return SlideIndexError(
        f"a stride of {stride} {what} on its tissue at {wanted}",
        path=tissue.slide_path,
        remedy="Set a larger stride",
    )


def _triples(
    ys: NDArray[np.int64],
    xs: NDArray[np.int64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    flags: list[bool],
) -> list[tuple[int, int, bool]]:
    """(y, x, is_tumor) of each patch; the patches of a row or column share one int, which saves memory."""
    y, x = (np.array(values.tolist(), object)[at] for values, at in ((ys, rows), (xs, columns)))
    return list(zip(y.tolist(), x.tolist(), flags, strict=True))


def _resolution(level: int | str | Resolution) -> Resolution:
    return level if isinstance(level, Resolution) else Resolution.parse(level)


def _place(tissue: TissueRegions, wanted: Resolution, options: IndexOptions) -> Place:
    try:
        return locate(tissue.levels, tissue.scale, wanted, options.level_tolerance)
    except SlideIndexError as error:
        raise SlideIndexError(error.fault, path=tissue.slide_path, remedy=error.remedy) from error


def _why_empty(
    tissue: TissueRegions,
    tumor: TumorRegions | None,
    wanted: Resolution,
    target: Place,
    options: IndexOptions,
) -> str:
    if min(target.height, target.width) < options.patch_size:
        return (
            f"{wanted} ({target.width} x {target.height} pixels) is smaller than a patch "
            f"of {options.patch_size}"
        )
    if tissue.threshold is None:
        return "the slide holds no data: every pixel is transparent, black or white"
    if not tissue.mask.any():
        return "no tissue was found on the slide"
    if tumor is not None and not tumor.ignored.is_empty:
        return f"no patch with {options.min_tissue:.0%} tissue lies outside the ignored areas"
    return f"no patch reaches {options.min_tissue:.0%} tissue (the slide has {tissue.tissue_share:.2%})"
