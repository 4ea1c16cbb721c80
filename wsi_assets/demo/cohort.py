"""Which slides the demo cohort has, and what lies on each."""

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
"""The level the cohort is made for, 0.486 um a pixel: there a patch holds a dozen lymphocytes or three tumor
cells."""

DEMO_PATCH_SIZE = 64
"""Pixels of that level."""

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
"""What differs from the defaults so that a network from random weights learns the cohort on two cores within
a minute: a few hundred patches need small batches to give it enough steps, and patches with a sliver of tumor
teach little. The cohort has six normal patches to a tumor patch; with these numbers every strategy against
imbalance acts on it."""


@dataclass(frozen=True)
class _Plan:
    """What a slide of the cohort shows.

    Attributes:
        tumors: how many tumors.
        cut_out: whether the first of them has an island of normal tissue, annotated as an exclusion.
        groups: names of the tumor and the exclusion group in the annotation.
        cross: a black registration cross on the glass.
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
    """One slide as written; ``tumor`` and ``excluded`` are (x, y) level-0 polygons as in its annotation."""

    slide_id: str
    path: Path
    annotation_path: Path | None
    width: int
    height: int
    tumor: tuple[Polygon, ...]
    excluded: tuple[Polygon, ...]


@dataclass(frozen=True)
class CohortSummary:
    """Where the cohort lies and what it has."""

    images: Path
    annotations: Path
    slides: tuple[DemoSlide, ...]


def make_cohort(folder: str | Path, *, seed: int = 7, progress: Progress = silent) -> CohortSummary:
    """Write the demo cohort into ``folder/images/*.tif`` and ``folder/annotations/*.xml``.

    Eight training slides of seven patients and four test slides: six with tumor, whose annotations are exact,
    and six without, which have no annotation file. Files of the same names are replaced, others left alone.
    The same seed gives the same bytes, given the same versions of numpy and the codecs.

    Args:
        folder: made if missing.
        seed: another seed gives another cohort of the same composition.
        progress: called after each slide.

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
    """Write ``folder/images/new_001.tif``, a slide as they come in: with two tumors that nobody annotated.

    Raises:
        OSError: the folder cannot be written.
    """
    images = Path(folder) / "images"
    images.mkdir(parents=True, exist_ok=True)
    return _make_slide(_Plan("new_001", 1536, tumors=2, unscanned=128), images, None, seed)


def _make_slide(plan: _Plan, images: Path, folder: Path | None, seed: int) -> DemoSlide:
    """Write a slide, and its annotation into ``folder`` if there is one."""
    # Seeded by the id: adding a slide to the cohort leaves the others as they are.
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
