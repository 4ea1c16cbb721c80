"""Index a folder of slides in one call: find the slides, read tissue and annotations, index the levels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from wsi_assets.annotations import AnnotationOptions, TumorRegions
from wsi_assets.errors import SlideIndexError, WsiAssetsError
from wsi_assets.index.entries import LevelIndex, index_level
from wsi_assets.index.options import IndexOptions, TissueOptions
from wsi_assets.index.slide_index import Index
from wsi_assets.index.slide_regions import SlideOptions, annotated_by, read_tissue, read_tumor
from wsi_assets.index.tissue import TissueRegions
from wsi_assets.progress import Progress, silent
from wsi_assets.slides import Cohort, ScaleOptions, SlideFile, find_slides, read_cohort

_Read = tuple[dict[str, Any], TumorRegions | None, Path | None]
"""``TissueRegions`` of a slide as plain values, tumor regions, annotation file."""


@dataclass(frozen=True)
class FolderIndex:
    """Indices of a folder of slides.

    Attributes:
        levels: target level, magnification or pixel size, as asked for -> its index.
        missing: the same -> why it has no index.
        left_out: slide id -> why it is in no index: its file or its annotation cannot be read.
        notices: lines on files that were not used, and on what was assumed or ignored of a slide.
    """

    levels: dict[int | str, LevelIndex]
    missing: dict[int | str, str]
    left_out: dict[str, str]
    notices: tuple[str, ...]


def build_slide_index(
    images_dir: str | Path = "images",
    annotations_dir: str | Path | None = "annotations",
    level: int = 7,
    target_level: int = 0,
    patch_size: int = 256,
    base_mag: float = 40.0,
) -> Index:
    """Index the slides of a folder at one level, with default values for all other options.

    Args:
        images_dir: folder of slides.
        annotations_dir: folder of annotations; None if there are none: all slides are then normal.
        level: working level (downsample 2^level) at which tissue is found.
        target_level: pyramid level of the patches.
        patch_size: side of a patch, in pixels of the target level.
        base_mag: magnification of level 0 of slides whose file does not state it.

    Returns:
        ``{slide_id: entry}``. Each slide that was left out is named in a warning.

    Raises:
        SlideError: a folder is missing or cannot be read.
        SlideIndexError: no slide has this level.
        ConfigError: a value is impossible.
    """
    found = build_indices(
        images_dir,
        annotations_dir,
        [target_level],
        tissue=TissueOptions(work_level=level),
        options=IndexOptions(patch_size=patch_size),
        scale=ScaleOptions(base_mag=base_mag),
    )
    if target_level not in found.levels:
        raise SlideIndexError(found.missing[target_level], remedy="Choose a level that the slides have")
    index = found.levels[target_level]
    for slide_id, reason in {**found.left_out, **index.left_out, **index.empty}.items():
        warnings.warn(f"{slide_id}: {reason}", stacklevel=2)
    return index.index


def build_indices(
    images_dir: str | Path,
    annotations_dir: str | Path | None,
    target_levels: Sequence[int | str],
    *,
    tissue: TissueOptions | None = None,
    annotation: AnnotationOptions | None = None,
    options: IndexOptions | None = None,
    scale: ScaleOptions | None = None,
    cohort: Cohort | None = None,
    progress: Progress = silent,
) -> FolderIndex:
    """Index the slides of a folder at several levels, on all cores; every slide is opened once.

    A slide that cannot be read, or whose annotation cannot, is left out.

    Args:
        images_dir, annotations_dir: folders of slides and of annotations; None if there are no annotations.
        target_levels: pyramid levels, and magnifications or pixel sizes such as "10x" or "0.5um".
        cohort: the cohort table; None reads ``cohort.csv`` in the slide folder, if it is there.

    Raises:
        SlideError: a folder is missing or cannot be read.
        ConfigError: the cohort table is damaged, or puts a patient on two sides.
    """
    # Absolute, so that the index can be used from any folder.
    images_dir = Path(images_dir).absolute()
    cohort = read_cohort(images_dir) if cohort is None else cohort
    annotations_dir = None if annotations_dir is None else Path(annotations_dir).absolute()
    listing = find_slides(images_dir, annotations_dir, cohort)
    left_out = dict(listing.left_out)
    how = SlideOptions(
        **{**(tissue or TissueOptions()).model_dump(), **(scale or ScaleOptions()).model_dump()}
    )
    read: list[_Read] = []
    read_one = partial(_read_slide, how=how, annotation=annotation)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = zip(listing.slides, pool.map(read_one, listing.slides), strict=True)
        for done, (slide, result) in enumerate(found, start=1):
            if isinstance(result, WsiAssetsError):
                left_out[slide.slide_id] = str(result)
            else:
                read.append(result)
            progress(done, len(listing.slides), "reading slides")
    notices = [*listing.notices]
    notices += [
        f"{plain['slide_id']}: {line}"
        for plain, regions, _ in read
        for line in (*plain["notices"], *(regions.notices if regions else ()))
    ]
    levels: dict[int | str, LevelIndex] = {}
    missing: dict[int | str, str] = {}
    for done, level in enumerate(target_levels, start=1):
        try:
            unpacked = ((TissueRegions.from_plain(plain), *rest) for plain, *rest in read)
            levels[level] = index_level(unpacked, level, options or IndexOptions(), cohort)
        except SlideIndexError as error:
            missing[level] = str(error)
        progress(done, len(target_levels), "indexing levels")
    return FolderIndex(levels, missing, dict(sorted(left_out.items())), tuple(notices))


def _read_slide(
    slide: SlideFile, how: SlideOptions, annotation: AnnotationOptions | None
) -> _Read | WsiAssetsError:
    """Tissue, tumor and annotation file of a slide, or the error for which it is left out."""
    try:
        plain = read_tissue(slide.slide_id, slide.path, how, slide.cohort_row)
        tumor = read_tumor(slide, annotation, plain)
        return plain, tumor, annotated_by(slide, tumor)
    except WsiAssetsError as error:
        return error
