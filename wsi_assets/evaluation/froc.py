"""FROC: lesion sensitivity against false positives per slide, in a corrected and an official version.

The score is the mean sensitivity at 0.25, 0.5, 1, 2, 4 and 8 false positives per slide, over all slides,
including those without detections. A detection inside a lesion counts once per lesion, at its highest
probability; inside isolated tumor cells it counts for nothing; anywhere else it is a false positive.

The corrected score measures lesions in micrometers by the pixel size of their slide and uses the probability
of every detection as a threshold, all in float64; a lesion without a detection has no probability.

The official score is that of the CAMELYON16 challenge's script as it ran under numpy 1, with its quirks:
every slide is taken to have 0.243 um per pixel; the lowest probability is never used as a threshold, so that
a perfect detector with equal probabilities gets 0.0; probabilities of lesions are float32 and those of false
positives float64; a lesion without a detection has the probability 0.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wsi_assets.evaluation.heatmap import Detection
from wsi_assets.evaluation.intervals import Metric, Resamples
from wsi_assets.evaluation.lesions import LesionMap
from wsi_assets.evaluation.options import EvaluationOptions

FALSE_POSITIVES_PER_SLIDE = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
NOT_OFFICIAL = (
    "the CAMELYON16 script is for slides with 0.243 µm per pixel; official_froc=true gives its score anyway"
)


@dataclass(frozen=True)
class Curve:
    """False positives per slide and sensitivity, (n,), at rising thresholds, the last without detections."""

    false_positives: np.ndarray
    sensitivity: np.ndarray

    def at(self, false_positives: Sequence[float] = FALSE_POSITIVES_PER_SLIDE) -> np.ndarray:
        """Sensitivity interpolated between operating points, constant beyond the last."""
        return np.interp(false_positives, self.false_positives[::-1], self.sensitivity[::-1])

    def score(self) -> float:
        return float(np.mean(self.at()))


@dataclass(frozen=True)
class SlideHits:
    """The detections of one slide matched with its lesions.

    Attributes:
        false_positives: detections in no lesion; those in isolated tumor cells (ITC) do not count.
        best: label of each lesion that is not ITC -> its detection with the highest probability, or None.
        lesions: all lesions of the slide, ITC included; None on a normal slide.
    """

    slide_id: str
    patient: str
    false_positives: tuple[Detection, ...]
    best: dict[int, Detection | None]
    lesions: LesionMap | None

    @property
    def itc(self) -> int:
        """Number of lesions that are isolated tumor cells."""
        return len(self.lesions.lesions) - len(self.best) if self.lesions else 0

    @property
    def official_scores(self) -> np.ndarray:
        """(lesions,) float32: highest probability in each lesion, 0.0 for ITC and for missed lesions."""
        found = np.zeros(self.itc + len(self.best), np.float32)
        found[: len(self.corrected_scores)] = self.corrected_scores
        return found

    @property
    def corrected_scores(self) -> np.ndarray:
        """Highest probability of each lesion that has a detection and is not ITC."""
        return np.array([hit.probability for hit in self.best.values() if hit], float)


@dataclass(frozen=True)
class Froc:
    """The lesion-level result of a cohort; ``official`` and ``corrected`` are mean sensitivities.

    ``left_out`` is slide id -> why its detections cannot be matched with lesions.
    """

    official: Metric
    corrected: Metric
    official_curve: Curve | None
    corrected_curve: Curve | None
    hits: tuple[SlideHits, ...]
    left_out: Mapping[str, str]

    @property
    def lesions(self) -> int:
        """Lesions that count: those that are not isolated tumor cells."""
        return sum(len(slide.best) for slide in self.hits)

    def to_plain(self) -> dict[str, Any]:
        """The ``froc`` part of ``metrics.json``."""
        curves = (self.official_curve, self.corrected_curve)
        official, corrected = (curve and curve.at().tolist() for curve in curves)
        return {
            "official_score": asdict(self.official),
            "corrected_score": asdict(self.corrected),
            "false_positives_per_slide": list(FALSE_POSITIVES_PER_SLIDE),
            "official_sensitivity": official,
            "corrected_sensitivity": corrected,
            "slides": len(self.hits),
            "lesions": self.lesions,
            "isolated_tumor_cells": sum(slide.itc for slide in self.hits),
            "false_positives": sum(len(slide.false_positives) for slide in self.hits),
            "lesion_table": lesion_table(self.hits),
            "left_out": dict(self.left_out),
        }


def match(
    slide_id: str, patient: str, detections: Iterable[Detection], lesions: LesionMap | None
) -> SlideHits:
    """Match the detections of a slide with its lesions; ``lesions`` is None on a normal slide."""
    itc = {lesion.label: lesion.itc for lesion in lesions.lesions} if lesions else {}
    best: dict[int, Detection | None] = {label: None for label in itc if not itc[label]}
    false_positives = []
    for detection in detections:
        label = lesions.label_at(detection.x, detection.y) if lesions else 0
        if label == 0:
            false_positives.append(detection)
        elif label in best and (best[label] is None or detection.probability > best[label].probability):
            best[label] = detection
    return SlideHits(slide_id, patient, tuple(false_positives), best, lesions)


def froc_curve(
    false_positives: Sequence[float],
    lesion_scores: Sequence[float],
    lesions: int,
    slides: int,
    *,
    official: bool,
) -> Curve:
    """The curve with every distinct probability as a threshold; the official one leaves out the lowest.

    Args:
        false_positives: probability of every false positive of all slides.
        lesion_scores: ``corrected_scores`` or ``official_scores`` of all slides.
        lesions: number of lesions that are not ITC, at least 1.
        slides: number of slides.
    """
    fp, tp = np.sort(np.asarray(false_positives, np.float64)), np.sort(np.asarray(lesion_scores))
    # Under numpy 1 a float32 score and a float64 one are ordered as numbers, but an array of float32 scores
    # is compared with a threshold in float32.
    thresholds = np.unique(np.concatenate([fp, tp.astype(np.float64)]))[int(official) :]
    above_fp = len(fp) - np.searchsorted(fp, thresholds)
    above_tp = len(tp) - np.searchsorted(tp, thresholds.astype(tp.dtype))
    return Curve(np.append(above_fp, 0) / slides, np.append(above_tp, 0) / lesions)


def froc(
    hits: Sequence[SlideHits],
    options: EvaluationOptions,
    left_out: Mapping[str, str] | None = None,
    official_hits: Sequence[SlideHits] | None = None,
) -> Froc:
    """Both scores of a cohort with 95 % intervals over patients.

    Args:
        hits: one for each slide, with lesions measured by the slide's own pixel size.
        left_out: slide id -> why it is left out.
        official_hits: the same, measured as in the challenge's script; None for no official score.
    """
    left_out = dict(left_out or {})
    corrected, corrected_curve = _score(hits, options, left_out, official=False)
    official, official_curve = Metric.missing(NOT_OFFICIAL), None
    if official_hits is not None:
        official, official_curve = _score(official_hits, options, left_out, official=True)
    return Froc(official, corrected, official_curve, corrected_curve, tuple(hits), left_out)


def _score(
    hits: Sequence[SlideHits], options: EvaluationOptions, left_out: Mapping[str, str], *, official: bool
) -> tuple[Metric, Curve | None]:
    lesions = np.array([len(slide.best) for slide in hits], int)
    if not lesions.any():
        itc = sum(slide.itc for slide in hits)
        reason = "no lesion on a test slide" if hits else "no test slide"
        reason += f" other than {itc} of isolated tumor cells, which do not count" if itc else ""
        reason += f" ({len(left_out)} left out)" if left_out else ""
        return Metric.missing(reason), None
    wrong = [np.array([one.probability for one in slide.false_positives]) for slide in hits]
    found = [slide.official_scores if official else slide.corrected_scores for slide in hits]

    def curve(slides: np.ndarray) -> Curve:
        pooled = (np.concatenate([scores[i] for i in slides]) for scores in (wrong, found))
        return froc_curve(*pooled, int(lesions[slides].sum()), len(slides), official=official)

    every = np.arange(len(hits))
    whole = curve(every)
    resamples = Resamples([slide.patient for slide in hits], options)
    drawn = (np.repeat(every, times[resamples.group].astype(int)) for times in resamples.counts)
    scores = [curve(slides).score() if lesions[slides].any() else np.nan for slides in drawn]
    return resamples.metric(whole.score(), np.array(scores)), whole


def lesion_table(hits: Iterable[SlideHits]) -> list[dict[str, Any]]:
    """A row per lesion: its size, whether it is ITC, and its best detection."""
    rows = []
    for slide in hits:
        for lesion in slide.lesions.lesions if slide.lesions else ():
            hit = slide.best.get(lesion.label)
            row = {"slide": slide.slide_id, "lesion": lesion.label, "length_um": round(lesion.length_um, 1)}
            row |= {name: getattr(hit, name, None) for name in ("probability", "x", "y")}
            rows.append(row | {"itc": lesion.itc})
    return rows
