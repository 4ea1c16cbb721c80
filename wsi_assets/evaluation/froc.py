"""FROC: lesion sensitivity against false positives per slide, official and corrected.

The score is the mean sensitivity at 0.25, 0.5, 1, 2, 4 and 8 false positives per slide, over all slides,
also those without detections. A detection inside a lesion counts once per lesion, at its highest
probability; inside isolated tumour cells it counts for nothing; anywhere else it is a false positive.

The official number is the challenge script's, quirks included: the lowest score is never used as a
threshold, so that a perfect detector whose scores are all equal gets 0.0; scores of lesions are kept as
float32 and those of false positives as float64; a lesion nobody found has the score 0.0. The corrected
number uses every score as a threshold, in one precision, and a lesion nobody found has no score.

What a lesion is, is in ``lesions``; where detections come from, in ``detections``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wsi_assets.evaluation.bootstrap import Resamples, with_interval
from wsi_assets.evaluation.detections import Detection
from wsi_assets.evaluation.figures import Figure
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
        lesions: all lesions of the slide, ITC included; empty on a normal slide.
        in_itc: detections inside isolated tumour cells, which count for nothing.
    """

    slide_id: str
    patient: str
    false_positives: tuple[Detection, ...]
    best: dict[int, Detection | None]
    lesions: LesionMap | None
    in_itc: int

    @property
    def official_scores(self) -> np.ndarray:
        """(lesions,) float32: highest probability in each lesion, 0.0 for ITC and for lesions not found."""
        scores = np.zeros(len(self.lesions.lesions) if self.lesions else 0, np.float32)
        for label, found in self.best.items():
            if found is not None:
                scores[label - 1] = found.probability
        return scores


@dataclass(frozen=True)
class Froc:
    """The lesion-level result of a cohort; ``official`` and ``corrected`` are mean sensitivities."""

    official: Figure
    corrected: Figure
    slides: int
    lesions: int
    itc: int
    hits: tuple[SlideHits, ...]
    official_curve: Curve | None = None
    corrected_curve: Curve | None = None
    notes: tuple[str, ...] = field(default=())

    def to_plain(self) -> dict[str, Any]:
        return {
            "official_score": self.official.to_plain(),
            "corrected_score": self.corrected.to_plain(),
            "false_positives_per_slide": list(FALSE_POSITIVES_PER_SLIDE),
            "official_sensitivity": _points(self.official_curve),
            "corrected_sensitivity": _points(self.corrected_curve),
            "slides": self.slides,
            "lesions": self.lesions,
            "isolated_tumor_cells": self.itc,
            "false_positives": sum(len(slide.false_positives) for slide in self.hits),
            "lesion_table": lesion_table(self.hits),
            "notes": list(self.notes),
        }


def match(
    slide_id: str, patient: str, detections: Iterable[Detection], lesions: LesionMap | None
) -> SlideHits:
    """Set the detections of a slide against its lesions; ``lesions`` is None on a normal slide."""
    itc = {lesion.label for lesion in lesions.lesions if lesion.itc} if lesions else set()
    best: dict[int, Detection | None] = {}
    if lesions:
        best = {lesion.label: None for lesion in lesions.lesions if not lesion.itc}
    wrong, in_itc = [], 0
    for found in detections:
        label = lesions.label_at(found.x, found.y) if lesions else 0
        if label == 0:
            wrong.append(found)
        elif label in itc:
            in_itc += 1
        else:
            before = best[label]
            if before is None or found.probability > before.probability:
                best[label] = found
    return SlideHits(slide_id, patient, tuple(wrong), best, lesions, in_itc)


def official_curve(
    false_positives: Sequence[float], lesion_scores: Sequence[float], lesions: int, slides: int
) -> Curve:
    """The challenge script's curve.

    Args:
        false_positives: probability of every false positive of all slides, Python floats.
        lesion_scores: highest probability in every lesion, ITC and missed ones as 0.0; the script keeps
            them as float32, which is how :attr:`SlideHits.official_scores` gives them.
        lesions: number of lesions that are not ITC, at least 1.
        slides: number of slides.
    """
    wrong, found = list(false_positives), list(lesion_scores)
    # Which of two scores that differ only in precision is a threshold, and in what order they come, follows
    # from Python's set and sort over mixed types: the same expression is the only way to the same number.
    thresholds = sorted(set(wrong + found))[1:]
    above_wrong = _count_from(np.asarray(wrong, dtype=np.float64), thresholds)
    above_found = _count_from(np.asarray(found) if found else np.zeros(0), thresholds)
    return Curve(np.append(above_wrong, 0) / slides, np.append(above_found, 0) / lesions)


def corrected_curve(
    false_positives: Sequence[float], found_scores: Sequence[float], lesions: int, slides: int
) -> Curve:
    """Every distinct score is a threshold, compared as float64.

    Args:
        found_scores: highest probability in every lesion that was found and is not ITC.
    """
    wrong, found = np.asarray(false_positives, np.float64), np.asarray(found_scores, np.float64)
    thresholds = np.unique(np.concatenate([wrong, found]))
    above_wrong = len(wrong) - np.searchsorted(np.sort(wrong), thresholds, side="left")
    above_found = len(found) - np.searchsorted(np.sort(found), thresholds, side="left")
    return Curve(np.append(above_wrong, 0) / slides, np.append(above_found, 0) / lesions)


def froc(hits: Sequence[SlideHits], options: EvaluationOptions, notes: Sequence[str] = ()) -> Froc:
    """Both scores of a cohort with 95 % intervals over patients."""
    lesions = sum(len(slide.best) for slide in hits)
    itc = sum(len(slide.lesions.lesions) for slide in hits if slide.lesions) - lesions
    if not hits or not lesions:
        reason = "no test slide" if not hits else "no lesion on a test slide"
        if itc:
            reason += f" other than {itc} of isolated tumour cells, which do not count"
        missing = Figure.missing(reason)
        return Froc(missing, missing, len(hits), lesions, itc, tuple(hits), notes=tuple(notes))
    official, corrected = _curves(hits)
    patients, group = np.unique([slide.patient for slide in hits], return_inverse=True)
    resamples = Resamples(len(patients), options.bootstrap_samples, options.seed)
    weighted = WeightedSlides(hits)
    drawn = [weighted.scores(times[group]) for part in resamples.drawn() for times in part]
    resampled = np.array(drawn).reshape(-1, 2)
    return Froc(
        official=with_interval(official.score(), resampled[:, 0], len(patients), "patients"),
        corrected=with_interval(corrected.score(), resampled[:, 1], len(patients), "patients"),
        slides=len(hits),
        lesions=lesions,
        itc=itc,
        hits=tuple(hits),
        official_curve=official,
        corrected_curve=corrected,
        notes=tuple(notes),
    )


def lesion_table(hits: Iterable[SlideHits]) -> list[dict[str, Any]]:
    """A row per lesion: its size, whether it is ITC, and the detection that found it."""
    rows = []
    for slide in hits:
        for lesion in slide.lesions.lesions if slide.lesions else ():
            found = slide.best.get(lesion.label)
            rows.append(
                {
                    "slide": slide.slide_id,
                    "lesion": lesion.label,
                    "area": lesion.area,
                    "major_axis": lesion.major_axis,
                    "box": list(lesion.box),
                    "itc": lesion.itc,
                    "probability": found.probability if found else None,
                    "x": found.x if found else None,
                    "y": found.y if found else None,
                }
            )
    return rows


class WeightedSlides:
    """Both scores of a cohort whose slides are taken any number of times; scores are sorted once for all.

    They are those of :func:`official_curve` and :func:`corrected_curve` with the slides written out as often.
    Only thresholds that differ by less than float32 can tell come in the order of their values here, where
    the script has them in an order that follows from hashes.
    """

    def __init__(self, hits: Sequence[SlideHits]):
        self._lesions = np.array([len(slide.best) for slide in hits])
        wrong = _pooled([_probabilities(slide.false_positives) for slide in hits])
        best = _pooled([_probabilities(slide.best.values()) for slide in hits])
        self._official = _Sorted(wrong, _pooled([slide.official_scores for slide in hits]))
        self._corrected = _Sorted(wrong, best)

    def scores(self, times: np.ndarray) -> tuple[float, float]:
        """Official and corrected score, each slide taken ``times`` (slides,) times; nan without a lesion."""
        lesions, slides = self._lesions @ times, times.sum()
        if not lesions:
            return np.nan, np.nan
        used = np.flatnonzero(self._official.used(times))[1:]
        wrong, found = (counts[used] for counts in self._official.counts(times))
        official = Curve(np.append(wrong, 0) / slides, np.append(found, 0) / lesions)
        # A threshold from a slide that is not taken repeats the point above it, which changes no curve.
        wrong, found = self._corrected.counts(times)
        corrected = Curve(np.append(wrong, 0) / slides, np.append(found, 0) / lesions)
        return official.score(), corrected.score()


class _Sorted:
    """Thresholds, ascending, and which slides have scores at and above each.

    Args:
        wrong, found: scores of false positives and of lesions, ascending, and the slide of each, both (n,);
            they are compared with thresholds in their own precision.
    """

    def __init__(self, wrong: tuple[np.ndarray, np.ndarray], found: tuple[np.ndarray, np.ndarray]):
        scores = np.concatenate([wrong[0], found[0].astype(np.float64)])
        order = np.argsort(scores, kind="stable")
        levels, self._first = np.unique(scores[order], return_index=True)
        self._slides = np.concatenate([wrong[1], found[1]])[order]
        self._parts = [
            (slides, np.searchsorted(ordered, levels.astype(ordered.dtype)))
            for ordered, slides in (wrong, found)
        ]

    def counts(self, times: np.ndarray) -> list[np.ndarray]:
        """How many false positives, and how many lesions, reach each threshold, (thresholds,) each."""
        counted = []
        for slides, first in self._parts:
            below = np.append(0, np.cumsum(times[slides]))
            counted.append(below[-1] - below[first])
        return counted

    def used(self, times: np.ndarray) -> np.ndarray:
        """(thresholds,) bool: those that are a score of a slide that is taken."""
        return np.add.reduceat(times[self._slides], self._first) > 0


def _curves(hits: Sequence[SlideHits]) -> tuple[Curve, Curve]:
    """Official and corrected curve of a cohort."""
    wrong = [one.probability for slide in hits for one in slide.false_positives]
    scores = [score for slide in hits for score in slide.official_scores]
    found = [one.probability for slide in hits for one in slide.best.values() if one is not None]
    lesions = sum(len(slide.best) for slide in hits)
    return (
        official_curve(wrong, scores, lesions, len(hits)),
        corrected_curve(wrong, found, lesions, len(hits)),
    )


def _probabilities(detections: Iterable[Detection | None]) -> np.ndarray:
    return np.array([found.probability for found in detections if found is not None], np.float64)


def _pooled(per_slide: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The scores of all slides, ascending, and the number of the slide of each."""
    scores = np.concatenate(per_slide)
    order = np.argsort(scores, kind="stable")
    return scores[order], np.repeat(np.arange(len(per_slide)), [len(one) for one in per_slide])[order]


def _count_from(scores: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """How many scores reach each threshold, in the precision numpy compares the two in."""
    ordered = np.sort(scores)
    levels = np.array([np.asarray(level, np.result_type(scores, level)) for level in thresholds], np.float64)
    return len(ordered) - np.searchsorted(ordered.astype(np.float64), levels, side="left")


def _points(curve: Curve | None) -> list[float] | None:
    return None if curve is None else [float(value) for value in curve.at()]
