"""The slides of the demo cohort, and what each of them shows."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from shapely import Polygon

from wsi_assets.demo.layout import Layout, lay_out
from wsi_assets.demo.painting import paint
from wsi_assets.demo.writing import write_asap, write_slide
from wsi_assets.progress import Progress, silent

DEMO_LEVEL = 1
"""Level of the demo's patches, 0.486 um a pixel: a patch holds a dozen lymphocytes or three tumor cells."""

DEMO_PATCH_SIZE = 64
"""Patch size, in pixels of that level."""

DEMO_PARAMETERS: dict[str, int | float | str] = {
    "patch_size": DEMO_PATCH_SIZE,
    "label_rule": "center",
    "model_name": "resnet18",
    "weights": "none",
    "batch_size": 16,
    "max_epochs": 3,
    "aug_factor": 1,
    "ohem_ratio": 2,
    "tta": False,
}
"""Parameters of the demo that differ from the defaults, so that a network with random weights learns the
cohort within a minute on two cores. A few hundred patches need small batches for enough steps, and patches
with very little tumor are hard to learn. There are six normal patches for each tumor patch; with these
parameters all four strategies against class imbalance have an effect."""


@dataclass(frozen=True)
class _Plan:
    """What a slide of the cohort shows.

    Attributes:
        side: width and height in level-0 pixels.
        tumors: number of tumors.
        cut_out: whether the first tumor has an island of normal tissue, annotated as an exclusion.
        groups: names of the tumor group and the exclusion group in the annotation.
        cross: whether there is a black registration cross on the glass.
        unscanned: width in level-0 pixels of a pure white strip at the right.
    """

    slide_id: str
    side: int
    tumors: int = 0
    cut_out: bool = False
    groups: tuple[str, str] = ("_0", "_2")
    cross: bool = False
    unscanned: int = 0


_COHORT = (
    _Plan("normal_001", 1536, cross=True),
    _Plan("normal_002", 1536, unscanned=128),
    _Plan("normal_003", 1536),
    _Plan("patient_010_node_1", 1536),
    _Plan("patient_010_node_2", 1536, tumors=1, cut_out=True, groups=("Tumor", "Exclusion")),
    _Plan("tumor_001", 1536, tumors=1, cut_out=True, cross=True, unscanned=128),
    _Plan("tumor_002", 1536, tumors=2),
    _Plan("tumor_003", 1536, tumors=1),
    _Plan("test_001", 1280, tumors=1, cut_out=True),
    _Plan("test_002", 1280, cross=True),
    _Plan("test_003", 1280, tumors=2),
    _Plan("test_004", 1280),
)


@dataclass(frozen=True)
class DemoSlide:
    """A slide that was written; ``tumor`` and ``excluded`` are the polygons of its annotation, (x, y) in
    level-0 pixels."""

    slide_id: str
    path: Path
    annotation_path: Path | None
    width: int
    height: int
    tumor: tuple[Polygon, ...]
    excluded: tuple[Polygon, ...]


@dataclass(frozen=True)
class CohortSummary:
    """The folders and slides of the demo cohort."""

    images: Path
    annotations: Path
    slides: tuple[DemoSlide, ...]


def make_cohort(folder: str | Path, *, seed: int = 7, progress: Progress = silent) -> CohortSummary:
    """Write the demo cohort into ``folder/images/*.tif`` and ``folder/annotations/*.xml``.

    There are eight training slides of seven patients, and four test slides. Six of the twelve have tumor,
    with exact annotations; the other six have no annotation file. Files of the same names are replaced. The
    same seed gives the same bytes, with the same versions of NumPy and the codecs.

    Args:
        folder: made if missing.
        seed: another seed gives other slides of the same composition.

    Raises:
        OSError: the folder cannot be written.
    """
    images, annotations = Path(folder) / "images", Path(folder) / "annotations"
    images.mkdir(parents=True, exist_ok=True)
    annotations.mkdir(parents=True, exist_ok=True)
    slides = []
    for done, plan in enumerate(_COHORT):
        progress(done, len(_COHORT), "drawing slides")
        slides.append(_make_slide(plan, images, annotations, seed))
    progress(len(_COHORT), len(_COHORT), "drawing slides")
    return CohortSummary(images, annotations, tuple(slides))


def make_new_slide(folder: str | Path, *, seed: int = 7) -> DemoSlide:
    """Write ``folder/images/new_001.tif``, a new slide with two tumors and without annotation.

    Raises:
        OSError: the folder cannot be written.
    """
    images = Path(folder) / "images"
    images.mkdir(parents=True, exist_ok=True)
    return _make_slide(_Plan("new_001", 1536, tumors=2, unscanned=128), images, None, seed)


def _make_slide(plan: _Plan, images: Path, folder: Path | None, seed: int) -> DemoSlide:
    """Write a slide, and its annotation into ``folder`` if that is given."""
    # Seeded by the id, so that adding a slide to the cohort does not change the others.
    rng = np.random.default_rng([seed, zlib.crc32(plan.slide_id.encode())])
    layout: Layout = lay_out(rng, plan.side, plan.side, plan.tumors, plan.cut_out)
    pixels = paint(rng, layout, cross=plan.cross, unscanned=plan.unscanned)
    path, annotation_path = images / f"{plan.slide_id}.tif", None
    write_slide(path, pixels)
    if plan.tumors and folder:
        annotation_path = folder / f"{plan.slide_id}.xml"
        tumor_group, exclusion_group = plan.groups
        annotations = [(tumor_group, ring) for ring in layout.tumor]
        annotations += [(exclusion_group, ring) for ring in layout.excluded]
        write_asap(annotation_path, annotations)
    return DemoSlide(
        plan.slide_id, path, annotation_path, plan.side, plan.side, layout.tumor, layout.excluded
    )
