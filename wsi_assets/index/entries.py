"""Make the slide index of a level or magnification: the labeled patches of each slide, in plain types."""

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

MAX_PLACES = 1 << 28
"""Most patch positions that are tried on a slide, about 20 s of work."""
MAX_PATCHES = 1 << 24
"""Most patches of a slide's entry, which takes about 250 bytes for each."""
_BAND = 1 << 20
"""Patch positions worked on at a time, in about 200 MB."""


@dataclass(frozen=True)
class LevelIndex:
    """The index of a level.

    Attributes:
        left_out: slide id -> why it has no entry.
        empty: slide id -> why its entry has no patch.
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
    """The index entry of one slide at a level, or at a magnification or pixel size such as "10x" or "0.5um".

    ``patches`` are (y, x, is_tumor), the top-left corners in pixels of the target level, row by row; none
    reaches into an ignored area. ``visualisation_coords`` are the same corners in pixels of the tissue mask,
    rounded down; such a pixel is ``work_downsample`` level-0 pixels wide. ``mpp`` and ``magnification`` are
    those of the target level. ``label`` is the patient. At a magnification or pixel size, ``resolution`` says
    which, and a pixel of the target level is the average of ``step`` x ``step`` pixels of ``level``.

    Args:
        tissue: the slide's tissue, with its levels and its scale.
        tumor: its tumor and ignored areas; None for a normal slide.
        level: the target level.
        options: patch size, stride and labeling.
        annotation_path: the annotation file to name in the entry; None for a normal slide.

    Raises:
        SlideIndexError: the slide has no such level, magnification or pixel size, or the stride is too small
            for the size of the slide.
    """
    # Over 60 lines because the entry's keys, the file format, are best read in one place.
    wanted = _resolution(level)
    target = _place(tissue, wanted, options)
    size, stride = options.patch_size, options.stride or options.patch_size
    to_work = target.downsample / tissue.work_downsample
    ys, xs = (
        _near_tissue(starts(side, size, stride), tissue.mask.any(axis=1 - axis), size, to_work)
        for axis, side in enumerate((target.height, target.width))
    )
    if len(ys) * len(xs) > MAX_PLACES:
        raise _too_dense(tissue, wanted, stride, f"gives {len(ys) * len(xs)} positions to try")
    geometry, ignored = (
        to_level(area, target.downsample) if area else None
        for area in (tumor and tumor.geometry, tumor and tumor.ignored)
    )
    rows, columns, shares, tumor_share = _on_tissue(tissue.mask, geometry, ignored, ys, xs, to_work, options)
    if len(rows) > MAX_PATCHES:
        raise _too_dense(tissue, wanted, stride, f"gives more than {MAX_PATCHES} patches")
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
    """Index every slide that has the level or magnification; the others are left out, with the reason.

    Entries have ``split`` and ``cohort_label`` only if ``cohort`` states them.

    Args:
        slides: (tissue, tumor regions or None, annotation path or None) of each slide; iterated once, so that
            a generator keeps the mask of only one slide in memory.
        level, options: as for :func:`index_slide`.

    Raises:
        SlideIndexError: no slide has the level, or there is no slide.
        ConfigError: the cohort table puts a patient on two sides.
    """
    cohort = cohort or Cohort()
    entries: Index = {}
    left_out: dict[str, str] = {}
    empty: dict[str, str] = {}
    wanted, known = _resolution(level), set()
    for tissue, tumor, annotation_path in slides:
        if cohort.row(tissue.slide_id).label == "unknown":
            left_out[tissue.slide_id] = f"{cohort.path} labels it unknown; it can be predicted"
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
        stated = {"split": sides.get(slide_id), "cohort_label": cohort.row(slide_id).label}
        entry |= {"label": patients[slide_id], **{key: value for key, value in stated.items() if value}}
    return LevelIndex(index, dict(sorted(left_out.items())), dict(sorted(empty.items())))


def _near_tissue(
    corners: NDArray[np.int64], tissue: NDArray[np.bool_], patch_size: int, scale: float
) -> NDArray[np.int64]:
    """The patch corners along one axis whose patches touch the range from the first to the last tissue.

    Args:
        tissue: whether each row, or column, of the mask has tissue.
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
    """The patches of ``ys`` x ``xs`` with enough tissue and outside ignored areas, row by row.

    The grid is worked on in bands of rows, so that memory follows the patches that are kept. It stops early
    when there are more than ``MAX_PATCHES``.

    Returns:
        Row, column, tissue share and tumor share of each patch, (n,) each.
    """
    size, height = options.patch_size, max(_BAND // max(len(xs), 1), 1)
    parts, found = [], 0
    for first in range(0, max(len(ys), 1), height):
        band = ys[first : first + height]
        shares = mask_fractions(mask, band, xs, size, scale)
        # A patch without any tissue is left out even if min_tissue is 0.
        wanted = (shares >= options.min_tissue) & (shares > 0)
        if ignored is not None:
            wanted &= tumor_fractions(ignored, band, xs, size) == 0
        at = np.nonzero(wanted)
        tumor = np.zeros(len(at[0]))
        if geometry is not None and len(tumor):
            tumor = tumor_fractions(geometry, band, xs, size)[at]
        parts.append((at[0] + first, at[1], shares[at], tumor))
        found += len(tumor)
        if found > MAX_PATCHES:
            break
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def _too_dense(tissue: TissueRegions, wanted: Resolution, stride: int, what: str) -> SlideIndexError:
    return SlideIndexError(
        f"a stride of {stride} {what} at {wanted}",
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
    """(y, x, is_tumor) of each patch; patches of a row or column share int objects, which saves memory."""
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
        return "the slide has no data: every pixel is transparent, black or white"
    if not tissue.mask.any():
        return "no tissue was found on the slide"
    if tumor is not None and not tumor.ignored.is_empty:
        return f"no patch with {options.min_tissue:.0%} tissue lies outside the ignored areas"
    return f"no patch has {options.min_tissue:.0%} tissue (the slide has {tissue.tissue_share:.2%})"
