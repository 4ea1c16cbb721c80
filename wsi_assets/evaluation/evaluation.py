"""From predictions and outlines to everything a reviewer asks for, as one value.

No file is written here and no picture made: see ``report``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.errors import EvaluationError
from wsi_assets.evaluation.detections import Detection, find_detections
from wsi_assets.evaluation.froc import Froc, froc, match
from wsi_assets.evaluation.heatmap import Heatmap, heatmap_of
from wsi_assets.evaluation.lesions import LesionMap, lesions_of_geometry
from wsi_assets.evaluation.options import EvaluationOptions
from wsi_assets.evaluation.patch_metrics import PatchMetrics, patch_metrics
from wsi_assets.evaluation.predictions import SlidePredictions, read_predictions
from wsi_assets.evaluation.slide_metrics import SlideMetrics, score_slide, slide_metrics
from wsi_assets.progress import Progress, silent

if TYPE_CHECKING:
    from wsi_assets.annotations import TumorRegions

FORMAT = 1
"""Version of the plain form, as ``metrics.json`` holds it."""

LARGEST_MASK = 100_000_000
"""Most pixels of a lesion mask; finding its lesions takes about 50 bytes a pixel."""


@dataclass(frozen=True)
class SlideEvaluation:
    """What is known of one test slide.

    ``geometry`` is the tumour outline, shapely (x, y) in level-0 pixels, None on a normal slide.
    ``heatmap`` is None for a slide without patches.
    """

    predictions: SlidePredictions
    geometry: Any
    patch: PatchMetrics
    heatmap: Heatmap | None
    detections: tuple[Detection, ...]

    @property
    def slide_id(self) -> str:
        return self.predictions.slide_id


@dataclass(frozen=True)
class Evaluation:
    """The whole evaluation of one level. ``notes`` are sentences a reader of the figures must know."""

    options: EvaluationOptions
    validation_threshold: float | None
    patch: PatchMetrics
    slide: SlideMetrics
    froc: Froc
    slides: tuple[SlideEvaluation, ...]
    notes: tuple[str, ...]
    seconds: float

    def to_plain(self) -> dict[str, Any]:
        """Plain types only: what ``metrics.json`` holds. A missing figure is null beside a reason."""
        return {
            "format": FORMAT,
            "options": self.options.model_dump(),
            "validation_threshold": self.validation_threshold,
            "patch": {
                "overall": self.patch.to_plain(),
                "per_slide": {slide.slide_id: slide.patch.to_plain() for slide in self.slides},
            },
            "slide": self.slide.to_plain(),
            "froc": self.froc.to_plain(),
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }


def evaluate(
    predictions: Sequence[Mapping[str, Any]],
    *,
    tumor_regions: Mapping[str, TumorRegions | None],
    options: EvaluationOptions | None = None,
    validation_threshold: float | None = None,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Judge the predictions of the test slides.

    Args:
        predictions: the test slides' index entries with ``probs``; a nan is a patch that could not be read.
        tumor_regions: slide id -> outlines; a slide that is absent, None or empty is a normal slide.
        validation_threshold: the threshold chosen on validation patches, if one was.
        sizes: slide id -> (height, width) of level 0, where known: lesions are cut at the slide's edge.

    Raises:
        EvaluationError: the predictions are not what they should be, or a lesion mask would not fit in
            memory. An empty list is no error: every figure then says why it is missing.
    """
    began = time.monotonic()
    options = options or EvaluationOptions()
    read = read_predictions(predictions)
    slides, hits, scores, notes = [], [], [], []
    for done, slide in enumerate(read, start=1):
        geometry = _geometry(tumor_regions.get(slide.slide_id))
        heatmap = heatmap_of(slide)
        found = find_detections(heatmap, options, slide.mpp) if heatmap else ()
        lesions = _lesions(slide.slide_id, geometry, options, (sizes or {}).get(slide.slide_id))
        hits.append(match(slide.slide_id, slide.patient, found, lesions))
        scores.append(score_slide(slide, geometry is not None, len(found), options))
        figures = patch_metrics(
            slide.probs,
            slide.is_tumor,
            _blocks(slide, options.bootstrap_block),
            options,
            unit="blocks of tissue",
            validation_threshold=validation_threshold,
        )
        slides.append(SlideEvaluation(slide, geometry, figures, heatmap, found))
        notes += _notes(slide, geometry, options)
        progress(done, len(read), "evaluating slides")
    patients = sorted({slide.patient for slide in read})
    overall = patch_metrics(
        np.concatenate([slide.probs for slide in read] or [np.zeros(0)]),
        np.concatenate([slide.is_tumor for slide in read] or [np.zeros(0, bool)]),
        np.concatenate(
            [np.full(len(slide.probs), patients.index(slide.patient)) for slide in read] or [np.zeros(0, int)]
        ),
        options,
        unit="patients",
        validation_threshold=validation_threshold,
    )
    if not read:
        notes.append('There is no test slide: no slide id contains "test". No figure can be computed.')
    elif len(patients) < 10:
        notes.append(
            f"The test set holds {len(patients)} patient{'s' if len(patients) > 1 else ''}: "
            "intervals over so few say little about other patients."
        )
    return Evaluation(
        options=options,
        validation_threshold=validation_threshold,
        patch=overall,
        slide=slide_metrics(scores, options),
        froc=froc(hits, options),
        slides=tuple(slides),
        notes=tuple(notes),
        seconds=time.monotonic() - began,
    )


def _geometry(regions: TumorRegions | None) -> Any:
    return None if regions is None or regions.geometry.is_empty else regions.geometry


def _lesions(
    slide_id: str, geometry: Any, options: EvaluationOptions, size: tuple[int, int] | None
) -> LesionMap | None:
    if geometry is None:
        return None
    x0, y0, x1, y1 = geometry.bounds
    if size is not None:  # what lies outside the slide is cut off
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, size[1]), min(y1, size[0])
    height, width = (int(max(side, 0) / 2**options.froc_level) for side in (y1 - y0, x1 - x0))
    if height * width > LARGEST_MASK:
        raise EvaluationError(
            f"the lesions of slide {slide_id} span {height} x {width} pixels at froc_level "
            f"{options.froc_level}, more than fit in memory",
            remedy="Set froc_level higher: the challenge uses 5",
        )
    return lesions_of_geometry(geometry, mpp=options.froc_mpp, level=options.froc_level, size=size)


def _blocks(slide: SlidePredictions, side: int) -> np.ndarray:
    """A number for the block of ``side`` x ``side`` grid cells that each patch lies in."""
    rows, cols = slide.y // (slide.stride * side), slide.x // (slide.stride * side)
    return rows * (int(cols.max(initial=0)) + 1) + cols


def _notes(slide: SlidePredictions, geometry: Any, options: EvaluationOptions) -> list[str]:
    notes = []
    if geometry is None and slide.is_tumor.any():
        notes.append(
            f"Slide {slide.slide_id} has tumour patches but no outline was given: "
            "its lesions are unknown, and it counts as a normal slide."
        )
    if slide.quarantined:
        notes.append(
            f"Slide {slide.slide_id}: {slide.quarantined} of {len(slide.probs)} patches could not be read "
            "and are in no figure."
        )
    if geometry is not None and slide.mpp and abs(slide.mpp / options.froc_mpp - 1) > 0.1:
        notes.append(
            f"Slide {slide.slide_id} has {slide.mpp:.3f} um a pixel; its lesions are measured at "
            f"{options.froc_mpp} um as the challenge does. Set froc_mpp to change that."
        )
    return notes
