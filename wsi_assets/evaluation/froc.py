"""FROC: lesion sensitivity against false positives per slide, official and corrected.

The score is the mean sensitivity at 0.25, 0.5, 1, 2, 4 and 8 false positives per slide, over all slides,
also those without detections. A detection inside a lesion counts once per lesion, at its highest
probability; inside isolated tumor cells it counts for nothing; anywhere else it is a false positive.

The official score is the challenge script's as it ran under numpy 1, quirks included: the lowest score is
never used as a threshold, so that a perfect detector whose scores are all equal gets 0.0; scores of lesions
are kept as float32 and those of false positives as float64; a lesion without a detection has the score 0.0.
The corrected score uses every score as a threshold, in one precision, and a lesion without a detection has
no score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from wsi_assets.evaluation.bootstrap import Metric, Resamples
from wsi_assets.evaluation.heatmap import Detection
from wsi_assets.evaluation.lesions import LesionMap
from wsi_assets.evaluation.options import EvaluationOptions

FALSE_POSITIVES_PER_SLIDE = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Curve:
    """Operating points from the lowest threshold to none: false positives per slide and sensitivity, (n,)."""

    false_positives: np.ndarray
    sensitivity: np.ndarray

    def at(self, false_positives: Sequence[float] = FALSE_POSITIVES_PER_SLIDE) -> np.ndarray:
        """Sensitivity interpolated between operating points, constant beyond the last."""
        return np.interp(false_positives, self.false_positives[::-1], self.sensitivity[::-1])

    def score(self) -> float:
        return float(np.mean(self.at()))


@dataclass(frozen=True)
class SlideHits:
    """The detections of one slide set against its lesions.

    Attributes:
        false_positives: those in no lesion.
        best: the detection with the highest probability of each lesion that is not ITC; None for none.
        lesions: all lesions of the slide, ITC included; None on a normal slide.
        in_itc: detections inside isolated tumor cells, which count for nothing.
    """

    slide_id: str
    patient: str
    false_positives: tuple[Detection, ...]
    best: dict[int, Detection | None]
    lesions: LesionMap | None
    in_itc: int

    @property
    def official_scores(self) -> np.ndarray:
        """(lesions,) float32: highest probability in each lesion, 0.0 for ITC and for missed lesions."""
        scores = np.zeros(len(self.lesions.lesions) if self.lesions else 0, np.float32)
        for label, hit in self.best.items():
            if hit is not None:
                scores[label - 1] = hit.probability
        return scores


@dataclass(frozen=True)
class Froc:
    """The lesion-level result of a cohort; ``official`` and ``corrected`` are mean sensitivities.

    ``left_out`` is slide id -> why its detections cannot be set against lesions.
    """

    official: Metric
    corrected: Metric
    slides: int
    lesions: int
    itc: int
    hits: tuple[SlideHits, ...]
    left_out: Mapping[str, str]
    official_curve: Curve | None = None
    corrected_curve: Curve | None = None

    def to_plain(self) -> dict[str, Any]:
        curves = (self.official_curve, self.corrected_curve)
        official, corrected = (curve and curve.at().tolist() for curve in curves)
        return {
            "official_score": asdict(self.official),
            "corrected_score": asdict(self.corrected),
            "false_positives_per_slide": list(FALSE_POSITIVES_PER_SLIDE),
            "official_sensitivity": official,
            "corrected_sensitivity": corrected,
            "slides": self.slides,
            "lesions": self.lesions,
            "isolated_tumor_cells": self.itc,
            "false_positives": sum(len(slide.false_positives) for slide in self.hits),
            "lesion_table": lesion_table(self.hits),
            "left_out": dict(self.left_out),
        }


def match(
    slide_id: str, patient: str, detections: Iterable[Detection], lesions: LesionMap | None
) -> SlideHits:
    """Set the detections of a slide against its lesions; ``lesions`` is None on a normal slide."""
    itc = {lesion.label for lesion in lesions.lesions if lesion.itc} if lesions else set()
    labels = {lesion.label for lesion in lesions.lesions} - itc if lesions else set()
    best: dict[int, Detection | None] = dict.fromkeys(sorted(labels))
    false_positives, in_itc = [], 0
    for detection in detections:
        label = lesions.label_at(detection.x, detection.y) if lesions else 0
        if label == 0:
            false_positives.append(detection)
        elif label in itc:
            in_itc += 1
        elif best[label] is None or detection.probability > best[label].probability:
            best[label] = detection
    return SlideHits(slide_id, patient, tuple(false_positives), best, lesions, in_itc)


def official_curve(
    false_positives: Sequence[float], lesion_scores: Sequence[float], lesions: int, slides: int
) -> Curve:
    """The challenge script's curve.

    Args:
        false_positives: probability of every false positive of all slides.
        lesion_scores: highest probability in every lesion, ITC and missed ones as 0.0; the script keeps
            them as float32, which is how :attr:`SlideHits.official_scores` gives them.
        lesions: number of lesions that are not ITC, at least 1.
        slides: number of slides.
    """
    return _curve(false_positives, lesion_scores, lesions, slides, first=1)


def corrected_curve(
    false_positives: Sequence[float], lesion_scores: Sequence[float], lesions: int, slides: int
) -> Curve:
    """Every distinct score is a threshold.

    Args:
        lesion_scores: highest probability in every lesion that has a detection and is not ITC.
    """
    return _curve(false_positives, lesion_scores, lesions, slides, first=0)


def _curve(false_positives, lesion_scores, lesions: int, slides: int, *, first: int) -> Curve:
    """The curve over the thresholds from the ``first`` lowest score on."""
    fp, tp = np.sort(np.asarray(false_positives, np.float64)), np.sort(np.asarray(lesion_scores))
    # Under numpy 1 a float32 score and a float64 one are ordered as numbers, but an array of float32 scores
    # is compared with a threshold in float32.
    thresholds = np.unique(np.concatenate([fp, tp.astype(np.float64)]))[first:]
    above_fp = len(fp) - np.searchsorted(fp, thresholds)
    above_tp = len(tp) - np.searchsorted(tp, thresholds.astype(tp.dtype))
    return Curve(np.append(above_fp, 0) / slides, np.append(above_tp, 0) / lesions)


def froc(
    hits: Sequence[SlideHits], options: EvaluationOptions, left_out: Mapping[str, str] | None = None
) -> Froc:
    """Both scores of a cohort with 95 % intervals over patients."""
    lesions = sum(len(slide.best) for slide in hits)
    itc = sum(len(slide.lesions.lesions) for slide in hits if slide.lesions) - lesions
    counts = {"slides": len(hits), "lesions": lesions, "itc": itc, "hits": tuple(hits)}
    counts["left_out"] = dict(left_out or {})
    if not lesions:
        reason = "no lesion on a test slide" if hits else "no test slide"
        reason += f" other than {itc} of isolated tumor cells, which do not count" if itc else ""
        reason += f" ({len(left_out)} left out)" if left_out else ""
        return Froc(Metric.missing(reason), Metric.missing(reason), **counts)
    cohort = _Scores(hits)
    official, corrected = cohort.curves(np.ones(len(hits), int))
    patients, group = np.unique([slide.patient for slide in hits], return_inverse=True)
    resamples = Resamples(len(patients), options.bootstrap_samples, options.seed)
    drawn = (cohort.curves(times[group].astype(int)) for part in resamples.drawn() for times in part)
    scores = [[curve.score() if curve else np.nan for curve in curves] for curves in drawn]
    resampled = np.array(scores).reshape(-1, 2)
    return Froc(
        resamples.metric(official.score(), resampled[:, 0]),
        resamples.metric(corrected.score(), resampled[:, 1]),
        **counts,
        official_curve=official,
        corrected_curve=corrected,
    )


class _Scores:
    """The scores of a cohort, sorted once, for curves in which each slide is taken any number of times."""

    def __init__(self, hits: Sequence[SlideHits]):
        found = [[hit for hit in slide.best.values() if hit] for slide in hits]
        self._lesions = np.array([len(slide.best) for slide in hits])
        self._fp = _pooled([[one.probability for one in slide.false_positives] for slide in hits], float)
        self._official = _pooled([slide.official_scores for slide in hits], np.float32)
        self._found = _pooled([[hit.probability for hit in best] for best in found], float)

    def curves(self, times: np.ndarray) -> tuple[Curve | None, Curve | None]:
        """Official and corrected curve, each slide taken ``times`` (slides,) times; None without lesion."""
        lesions, slides = int(self._lesions @ times), int(times.sum())
        if not lesions:
            return None, None
        fp, official, found = (
            np.repeat(scores, times[slide]) for scores, slide in (self._fp, self._official, self._found)
        )
        return official_curve(fp, official, lesions, slides), corrected_curve(fp, found, lesions, slides)


def _pooled(per_slide: Sequence[Sequence[float]], dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """The scores of all slides, ascending, and the number of the slide of each."""
    scores = np.concatenate([np.asarray(one, dtype) for one in per_slide])
    order = np.argsort(scores, kind="stable")
    return scores[order], np.repeat(np.arange(len(per_slide)), [len(one) for one in per_slide])[order]


def lesion_table(hits: Iterable[SlideHits]) -> list[dict[str, Any]]:
    """A row per lesion: its size, whether it is ITC, and its best detection."""
    rows = []
    for slide in hits:
        for lesion in slide.lesions.lesions if slide.lesions else ():
            hit = slide.best.get(lesion.label)
            rows.append(
                {
                    "slide": slide.slide_id,
                    "lesion": lesion.label,
                    "area": lesion.area,
                    "major_axis": lesion.major_axis,
                    "box": list(lesion.box),
                    "itc": lesion.itc,
                    "probability": hit.probability if hit else None,
                    "x": hit.x if hit else None,
                    "y": hit.y if hit else None,
                }
            )
    return rows
