"""Evaluate predictions against annotations; the result has everything that the report shows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from wsi_assets.evaluation.froc import Froc, SlideHits, froc, match
from wsi_assets.evaluation.heatmap import Detection, Heatmap, find_detections, heatmap_of
from wsi_assets.evaluation.intervals import FEWEST_PATIENTS
from wsi_assets.evaluation.lesions import CHALLENGE_MPP, LesionMap, lesions_of_geometry
from wsi_assets.evaluation.metrics import (
    Calibration,
    PatchMetrics,
    SlideMetrics,
    SlideScore,
    patch_metrics,
    pooled,
    score_slide,
    slide_metrics,
)
from wsi_assets.evaluation.options import EvaluationOptions
from wsi_assets.evaluation.predictions import Predictions, SlidePredictions, read_predictions
from wsi_assets.progress import Progress, silent
from wsi_assets.slides.naming import normalize_id

if TYPE_CHECKING:
    from wsi_assets.annotations import TumorRegions

FORMAT = 5
"""Version of the layout of ``metrics.json``."""

INCOMPLETE = "its tumor is not completely annotated"
UNANNOTATED = "it has tumor patches but no annotation was given, so its lesions are unknown"
NO_DOWNSAMPLE = "its prediction has no downsample, so the position of its patches at level 0 is unknown"


@dataclass(frozen=True)
class SlideEvaluation:
    """The evaluation of one test slide.

    Attributes:
        geometry: the annotated tumor, shapely (x, y) in level-0 pixels, or None.
        heatmap: None for a slide without patches or without a known downsample.
        hits: its detections matched with its lesions; None if it is left out of FROC.
        not_in_froc: why it is left out of FROC, or None.
    """

    predictions: SlidePredictions
    geometry: Any
    score: SlideScore
    patch: PatchMetrics
    heatmap: Heatmap | None
    detections: tuple[Detection, ...]
    hits: SlideHits | None
    not_in_froc: str | None

    @property
    def slide_id(self) -> str:
        return self.predictions.slide_id

    @property
    def incomplete(self) -> bool:
        """Whether some of its tumor is not annotated; patch metrics of the cohort then leave it out."""
        return self.not_in_froc == INCOMPLETE


@dataclass(frozen=True)
class PatientSummary:
    """All slides of one patient. ``lesions`` is their number without isolated tumor cells."""

    patient: str
    slides: int
    tumor_slides: int
    highest_top_mean: float | None
    patch: PatchMetrics
    lesions: int
    lesions_detected: int


@dataclass(frozen=True)
class Exclusion:
    """``excluded`` of ``total`` slides or patches (``unit``) are left out of ``metrics`` for a reason."""

    metrics: str
    unit: str
    excluded: int
    total: int
    reason: str
    slides: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """The whole evaluation of one level.

    ``calibrated`` holds the patch metrics of calibrated probabilities, or None without a calibration;
    ``notes`` are warnings that the report shows first.
    """

    options: EvaluationOptions
    calibration: Calibration | None
    patch: PatchMetrics
    calibrated: PatchMetrics | None
    slide: SlideMetrics
    froc: Froc
    slides: tuple[SlideEvaluation, ...]
    patients: tuple[PatientSummary, ...]
    exclusions: tuple[Exclusion, ...]
    notes: tuple[str, ...]
    seconds: float

    def to_plain(self) -> dict[str, Any]:
        """The content of ``metrics.json``, in plain types. A missing metric is null, with a reason."""
        return {
            "format": FORMAT,
            "options": self.options.model_dump(),
            "calibration": self.calibration and asdict(self.calibration),
            "patch": {
                "overall": asdict(self.patch),
                "calibrated": self.calibrated and asdict(self.calibrated),
                "per_slide": {one.slide_id: asdict(one.patch) for one in self.slides},
            },
            "slide": asdict(self.slide),
            "patients": [asdict(one) for one in self.patients],
            "froc": self.froc.to_plain(),
            "exclusions": [asdict(one) for one in self.exclusions],
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

    Patch and slide metrics need only the keys ``slide_path``, ``label``, ``level``, ``patches`` and
    ``probs``. A slide with an annotation or a tumor patch is a tumor slide. FROC leaves out slides with tumor
    patches but no annotation, and slides without a ``downsample``. Patches of neither class (too little
    tumor) count only in heatmaps and slide scores.

    Args:
        predictions: slide id -> index entry with ``probs``, NaN for a patch that could not be read.
        tumor_regions: slide id -> annotation; missing, None or empty for a slide without one.
        validation_threshold: threshold on raw probabilities that was chosen on validation patches, or None.
        calibration: the model's ``temperature`` and ``shift``; see :class:`Calibration`.
        incomplete_slides: ids of slides whose tumor is not completely annotated (see
            ``wsi_assets.index.incomplete_slides``), in upper or lower case. Detected tumor without annotation
            would count as false positive, so they are left out of FROC and patch metrics, but are ranked.
        sizes: slide id -> (height, width) of level 0, if known, to cut lesions at the edge of the slide.

    Raises:
        EvaluationError: the predictions are damaged, or a lesion mask would not fit in memory. An empty dict
            is allowed: every metric is then missing, with a reason.
    """
    began = time.monotonic()
    options, sizes = options or EvaluationOptions(), sizes or {}
    incomplete = {normalize_id(slide_id) for slide_id in incomplete_slides}
    read, slides = read_predictions(predictions), []
    for done, part in enumerate(read, start=1):
        regions = (tumor_regions or {}).get(part.slide_id)
        geometry = None if regions is None or regions.geometry.is_empty else regions.geometry
        is_incomplete = normalize_id(part.slide_id) in incomplete
        slides.append(_slide(part, geometry, is_incomplete, options, sizes.get(part.slide_id)))
        progress(done, len(read), "evaluating slides")
    calibrate = calibration and Calibration(calibration["temperature"], calibration["shift"])
    probs, labels, patients = pooled([one.predictions for one in slides if not one.incomplete])
    return Evaluation(
        options=options,
        calibration=calibrate,
        patch=patch_metrics(probs, labels, patients, options, validation_threshold),
        calibrated=calibrate and patch_metrics(calibrate(probs), labels, patients, options),
        slide=slide_metrics([one.score for one in slides], options, validation_threshold),
        froc=_froc(slides, options, sizes),
        slides=tuple(slides),
        patients=tuple(_patients(slides, options)),
        exclusions=tuple(_exclusions(slides)),
        notes=tuple(_notes(read)),
        seconds=time.monotonic() - began,
    )


def _slide(
    part: SlidePredictions,
    geometry: Any,
    incomplete: bool,
    options: EvaluationOptions,
    size: tuple[int, int] | None,
) -> SlideEvaluation:
    heatmap = heatmap_of(part)
    found = find_detections(heatmap, options, part.mpp) if heatmap else ()
    is_tumor = geometry is not None or bool((part.is_tumor | part.partial).any())
    not_in_froc = None
    if incomplete:
        not_in_froc = INCOMPLETE
    elif is_tumor and geometry is None:
        not_in_froc = UNANNOTATED
    elif part.downsample is None:
        not_in_froc = NO_DOWNSAMPLE
    hits = None
    if not_in_froc is None:
        hits = match(part.slide_id, part.patient, found, _lesions(geometry, part.mpp, size))
    return SlideEvaluation(
        predictions=part,
        geometry=geometry,
        score=score_slide(part, is_tumor, len(found) if part.downsample else None, options),
        patch=patch_metrics(*pooled([part]), options),
        heatmap=heatmap,
        detections=found,
        hits=hits,
        not_in_froc=not_in_froc,
    )


def _lesions(geometry: Any, mpp: float | None, size: tuple[int, int] | None) -> LesionMap | None:
    return None if geometry is None else lesions_of_geometry(geometry, mpp=mpp or CHALLENGE_MPP, size=size)


def _froc(
    slides: Sequence[SlideEvaluation], options: EvaluationOptions, sizes: Mapping[str, tuple[int, int]]
) -> Froc:
    used = [one for one in slides if one.hits]
    known = [one.predictions.mpp for one in used if one.predictions.mpp]
    official = None
    if options.official_froc or (known and all(abs(mpp / CHALLENGE_MPP - 1) <= 0.1 for mpp in known)):
        official = []
        for one in used:
            lesions = _lesions(one.geometry, CHALLENGE_MPP, sizes.get(one.slide_id))
            official.append(match(one.slide_id, one.score.patient, one.detections, lesions))
    left_out = {one.slide_id: one.not_in_froc for one in slides if one.not_in_froc}
    return froc([one.hits for one in used], options, left_out, official)


def _patients(slides: Sequence[SlideEvaluation], options: EvaluationOptions) -> list[PatientSummary]:
    rows = []
    for patient in sorted({one.score.patient for one in slides}):
        own = [one for one in slides if one.score.patient == patient]
        best = [hit for one in own if one.hits for hit in one.hits.best.values()]
        scores = [one.score.top_mean for one in own if one.score.top_mean is not None]
        rows.append(
            PatientSummary(
                patient=patient,
                slides=len(own),
                tumor_slides=sum(one.score.is_tumor for one in own),
                highest_top_mean=max(scores, default=None),
                patch=patch_metrics(*pooled([one.predictions for one in own if not one.incomplete]), options),
                lesions=len(best),
                lesions_detected=sum(hit is not None for hit in best),
            )
        )
    return rows


def _exclusions(slides: Sequence[SlideEvaluation]) -> list[Exclusion]:
    """What is left out: of every metric first, then of patch metrics, slide metrics and FROC."""
    rows = []
    totals = {"slides": len(slides), "patches": sum(len(one.predictions.y) for one in slides)}

    def leave_out(metrics: str, unit: str, reason: str, count: Callable[[SlideEvaluation], int]) -> None:
        counts = +Counter({one.slide_id: int(count(one)) for one in slides})
        if counts:
            rows.append(Exclusion(metrics, unit, counts.total(), totals[unit], reason, tuple(counts)))

    def incomplete(one: SlideEvaluation) -> int:
        return one.incomplete and one.predictions.seen.sum()

    def partial(one: SlideEvaluation) -> int:
        return 0 if one.incomplete else (one.predictions.seen & one.predictions.partial).sum()

    unread = "they could not be read"
    leave_out("every metric", "patches", unread, lambda one: (~one.predictions.seen).sum())
    leave_out("patch metrics", "patches", "tumor of their slide is not completely annotated", incomplete)
    leave_out("patch metrics", "patches", "too little tumor to be of either class", partial)
    nothing = "none of its patches has a probability"
    leave_out("slide metrics", "slides", nothing, lambda one: one.score.maximum is None)
    for why in (INCOMPLETE, UNANNOTATED, NO_DOWNSAMPLE):
        leave_out("FROC", "slides", why, lambda one, why=why: one.not_in_froc == why)
    return rows


def _notes(parts: Sequence[SlidePredictions]) -> list[str]:
    """Warnings that the report shows first."""
    if not parts:
        return ["There is no test slide (see cohort.csv and test_pattern): no metric can be computed."]
    notes, patients = [], len({part.patient for part in parts})
    if patients < FEWEST_PATIENTS:
        notes.append(
            f"Too few patients: {patients} in the test set. With fewer than {FEWEST_PATIENTS} no interval is "
            "given, and the metrics say little about other patients."
        )
    unscaled = [part.slide_id for part in parts if part.downsample and not part.mpp]
    if unscaled:
        notes.append(
            f"The pixel size of {len(unscaled)} slides is unknown; {CHALLENGE_MPP} µm is assumed for their "
            f"lesions and detections (cohort.csv can define it): {', '.join(unscaled[:8])}"
            + (f" and {len(unscaled) - 8} more." if len(unscaled) > 8 else ".")
        )
    return notes
