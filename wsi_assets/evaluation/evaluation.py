"""Evaluate predictions against annotations: one value with everything the report shows."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.errors import EvaluationError
from wsi_assets.evaluation.froc import Froc, froc, match
from wsi_assets.evaluation.heatmap import Detection, Heatmap, find_detections, heatmap_of
from wsi_assets.evaluation.lesions import LesionMap, lesions_of_geometry
from wsi_assets.evaluation.metrics import (
    Calibration,
    PatchMetrics,
    SlideMetrics,
    SlideScore,
    patch_metrics,
    score_slide,
    slide_metrics,
)
from wsi_assets.evaluation.options import EvaluationOptions
from wsi_assets.evaluation.predictions import Predictions, SlidePredictions, read_predictions
from wsi_assets.progress import Progress, silent
from wsi_assets.slides.naming import normalize_id

if TYPE_CHECKING:
    from wsi_assets.annotations import TumorRegions

FORMAT = 2
"""Version of the plain form, as ``metrics.json`` holds it."""

LARGEST_MASK = 100_000_000
"""Most pixels of a lesion mask; finding its lesions takes about 50 bytes a pixel."""

INCOMPLETE = "its tumor is not completely annotated"
UNANNOTATED = "it has tumor patches but no annotation was given, so its lesions are unknown"
NO_DOWNSAMPLE = "its prediction has no downsample, so its patches have no place on level 0"


@dataclass(frozen=True)
class SlideEvaluation:
    """What is known of one test slide.

    ``geometry`` is the annotated tumor, shapely (x, y) in level-0 pixels, or None. ``patch`` is None where
    the annotation is incomplete: its patches are in no metric. ``heatmap`` is None for a slide without
    patches or without a known downsample.
    """

    predictions: SlidePredictions
    geometry: Any
    incomplete: bool
    score: SlideScore
    patch: PatchMetrics | None
    heatmap: Heatmap | None
    detections: tuple[Detection, ...]

    @property
    def slide_id(self) -> str:
        return self.predictions.slide_id


@dataclass(frozen=True)
class Evaluation:
    """The whole evaluation of one level. ``notes`` are sentences a reader of the metrics must know."""

    options: EvaluationOptions
    validation_threshold: float | None
    calibration: Calibration | None
    patch: PatchMetrics
    slide: SlideMetrics
    froc: Froc
    slides: tuple[SlideEvaluation, ...]
    notes: tuple[str, ...]
    seconds: float

    def to_plain(self) -> dict[str, Any]:
        """Plain types only: what ``metrics.json`` holds. A missing metric is null beside a reason."""
        return {
            "format": FORMAT,
            "options": self.options.model_dump(),
            "validation_threshold": self.validation_threshold,
            "calibration": asdict(self.calibration) if self.calibration else None,
            "patch": {
                "overall": asdict(self.patch),
                "per_slide": {
                    slide.slide_id: asdict(slide.patch) if slide.patch else None for slide in self.slides
                },
            },
            "slide": asdict(self.slide),
            "froc": self.froc.to_plain(),
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }


def evaluate(
    predictions: Predictions,
    *,
    tumor_regions: Mapping[str, TumorRegions | None] | None = None,
    options: EvaluationOptions | None = None,
    validation_threshold: float | None = None,
    calibration: Mapping[str, float] | None = None,
    incomplete_slides: Collection[str] = (),
    sizes: Mapping[str, tuple[int, int]] | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Evaluate the predictions of the test slides.

    The specification's keys are enough for patch and slide metrics. A slide with an annotation or a tumor
    patch is a tumor slide. FROC leaves out slides with tumor patches and no annotation, and those without a
    ``downsample``. Partial patches, which are neither class, count in heatmap and slide scores only.

    Args:
        predictions: slide id -> index entry with ``probs``, nan for a patch that could not be read.
        tumor_regions: slide id -> annotation; absent, None or empty for none.
        validation_threshold: the threshold on raw probabilities chosen on validation patches, if one was.
        calibration: ``{"temperature": ..., "bias": ...}`` of the model: calibrated logit = logit(p) /
            temperature + bias. Metrics of the calibrated probabilities are then given beside the raw ones.
        incomplete_slides: ids of slides whose tumor is not completely annotated (see
            ``wsi_assets.index.incomplete_slides``), in any case. Tumor they do not show would count as false
            positives, so they are left out of FROC and of patch metrics; they still are ranked.
        sizes: slide id -> (height, width) of level 0, where known: lesions are cut at the slide's edge.

    Raises:
        EvaluationError: the predictions are not what they should be, or a lesion mask would not fit in
            memory. An empty dict is no error: every metric then says why it is missing.
    """
    began = time.monotonic()
    options, sizes = options or EvaluationOptions(), sizes or {}
    settings = {"validation_threshold": validation_threshold, "calibration": Calibration.of(calibration)}
    incomplete = {normalize_id(slide_id) for slide_id in incomplete_slides}
    read = read_predictions(predictions)
    slides, hits, left_out = [], [], {}
    for done, part in enumerate(read, start=1):
        name, regions = part.slide_id, (tumor_regions or {}).get(part.slide_id)
        geometry = None if regions is None or regions.geometry.is_empty else regions.geometry
        slide = _slide(part, geometry, normalize_id(name) in incomplete, options, settings)
        slides.append(slide)
        reason = _not_in_froc(slide)
        if reason:
            left_out[name] = reason
        else:
            lesions = _lesions(name, geometry, options, sizes.get(name))
            hits.append(match(name, part.patient, slide.detections, lesions))
        progress(done, len(read), "evaluating slides")
    return Evaluation(
        options=options,
        **settings,
        patch=_pooled([one.predictions for one in slides if not one.incomplete], options, settings),
        slide=slide_metrics([one.score for one in slides], options),
        froc=froc(hits, options, left_out),
        slides=tuple(slides),
        notes=tuple(_notes(slides, left_out, options)),
        seconds=time.monotonic() - began,
    )


def _slide(
    part: SlidePredictions,
    geometry: Any,
    incomplete: bool,
    options: EvaluationOptions,
    settings: Mapping[str, Any],
) -> SlideEvaluation:
    heatmap = heatmap_of(part)
    found = find_detections(heatmap, options, part.mpp) if heatmap else ()
    is_tumor = geometry is not None or bool((part.is_tumor | part.partial).any())
    score = score_slide(part, is_tumor, len(found) if part.downsample else None, options)
    # One slide is one patient: its intervals resample square blocks of its tissue.
    side = part.stride * options.bootstrap_block
    block = (part.y // side) * (int(part.x.max(initial=0)) // side + 1) + part.x // side
    marks = {"partial": part.partial, "unit": "blocks of tissue", **settings}
    patch = None if incomplete else patch_metrics(part.probs, part.is_tumor, block, options, **marks)
    return SlideEvaluation(part, geometry, incomplete, score, patch, heatmap, found)


def _pooled(
    parts: Sequence[SlidePredictions], options: EvaluationOptions, settings: Mapping[str, Any]
) -> PatchMetrics:
    """Metrics of the patches of all ``parts``, with intervals over patients."""
    _, patient = np.unique([part.patient for part in parts], return_inverse=True)

    def all_of(name: str) -> np.ndarray:
        return np.concatenate([np.zeros(0, bool), *(getattr(part, name) for part in parts)])

    groups = np.repeat(patient, [len(part.y) for part in parts])
    probs, is_tumor, partial = all_of("probs"), all_of("is_tumor"), all_of("partial")
    return patch_metrics(probs, is_tumor, groups, options, partial=partial, **settings)


def _not_in_froc(slide: SlideEvaluation) -> str | None:
    """Why a slide's detections cannot be set against its lesions, None if they can."""
    if slide.incomplete:
        return INCOMPLETE
    if slide.score.is_tumor and slide.geometry is None:
        return UNANNOTATED
    return NO_DOWNSAMPLE if slide.predictions.downsample is None else None


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


def _notes(
    slides: Sequence[SlideEvaluation], left_out: Mapping[str, str], options: EvaluationOptions
) -> list[str]:
    """What a reader of the metrics must know first; slides with the same remark share a sentence."""
    if not slides:
        return [
            'There is no test slide (by default, one whose id contains "test"): no metric can be computed.'
        ]
    notes, parts = [], [slide.predictions for slide in slides]
    patients = len({part.patient for part in parts})
    if patients < 10:
        notes.append(
            f"The test set holds {patients} patient{'s' if patients > 1 else ''}: "
            "intervals over so few say little about other patients."
        )
    for reason in dict.fromkeys(left_out.values()):
        named = _named([slide_id for slide_id, why in left_out.items() if why == reason])
        where = "FROC and of patch metrics" if reason == INCOMPLETE else "FROC"
        notes.append(f"Left out of {where}, each because {reason}: {named}.")
    unread = {part.slide_id: int((~part.seen).sum()) for part in parts if not part.seen.all()}
    if unread:
        total = sum(unread.values())
        notes.append(f"{total} patches could not be read and are in no metric: {_named(unread)}.")
    unscaled = [part.slide_id for part in parts if part.downsample and not part.mpp]
    if unscaled:
        notes.append(
            f"The pixel size is unknown, and {options.froc_mpp} um (froc_mpp) is taken for the smoothing and "
            f"distance of detections: {_named(unscaled)}."
        )
    other = [
        f"{one.slide_id} ({one.predictions.mpp:.3f} um)"
        for one in slides
        if one.geometry is not None and one.predictions.mpp
        and abs(one.predictions.mpp / options.froc_mpp - 1) > 0.1
    ]  # fmt: skip
    if other:
        notes.append(
            f"Lesions are measured at {options.froc_mpp} um a pixel, as the challenge does (froc_mpp), on "
            f"slides of another pixel size: {_named(other)}."
        )
    return notes


def _named(slide_ids: Collection[str], most: int = 8) -> str:
    shown = list(slide_ids)[:most]
    rest = len(slide_ids) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
