"""The files of one predicted slide: overlays for other viewers, a picture, and its score.

<slide>_likelihood_map.tif  the probability map for ASAP, a tiled pyramid
<slide>.csv                 detections: probability,x,y at level 0, without a header
<slide>.geojson             regions at or above the threshold and detections, for QuPath
<slide>.png                 the heatmap over the slide
prediction.json             score, area, model
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wsi_assets.drawing import png_of
from wsi_assets.evaluation import pictures
from wsi_assets.evaluation.heatmap import (
    Heatmap,
    detections_csv,
    find_detections,
    heatmap_of,
    smoothed,
)
from wsi_assets.evaluation.heatmap_files import regions_geojson, write_likelihood_tiff
from wsi_assets.evaluation.metrics import Calibration
from wsi_assets.evaluation.options import EvaluationOptions
from wsi_assets.evaluation.predictions import SlidePredictions, read_predictions
from wsi_assets.files import write_json

PICTURE_SIDE = 1000
SUMMARY = "prediction.json"


def write_slide_prediction(
    folder: Path,
    slide_id: str,
    entry: Mapping[str, Any],
    card: Mapping[str, Any],
    options: EvaluationOptions,
    about: Mapping[str, Any] | None = None,
    *,
    open_slide: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Write all files of a predicted slide into ``folder``; returns what ``prediction.json`` holds.

    ``score`` is the highest smoothed probability of the heatmap, ``calibrated`` the score after calibration,
    ``area_mm2`` the area of the cells at or above the model's threshold. A slide without patches has None for
    all three, an unknown pixel size None for the area.

    Args:
        entry: index entry with ``probs``, NaN for a patch that could not be read.
        card: content of the model's ``best.json``.
        about: further content of ``prediction.json``.
        open_slide: path -> reader, ``wsi_assets.slides.open_slide`` by default.

    Raises:
        SlideError: the slide cannot be opened or read.
    """
    if open_slide is None:
        from wsi_assets.slides import open_slide
    (part,) = read_predictions({slide_id: entry})
    heatmap = heatmap_of(part)
    found = find_detections(heatmap, options, part.mpp) if heatmap else ()
    threshold = card["thresholds"]["validation"]["threshold"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{slide_id}.csv").write_text(detections_csv(found), encoding="utf-8")
    (folder / f"{slide_id}.geojson").write_text(regions_geojson(heatmap, found, threshold), encoding="utf-8")
    slide = pictures.PredictedSlide(part, heatmap, found)
    with open_slide(part.slide_path) as reader:
        size = reader.levels[0].height, reader.levels[0].width
        view = pictures.view_of(slide, reader, options.heatmap_side)
    if heatmap is not None:
        write_likelihood_tiff(folder / f"{slide_id}_likelihood_map.tif", heatmap, size, part.mpp)
    drawn = pictures.heatmap_picture(slide, view, PICTURE_SIDE, options.detection_threshold)
    (folder / f"{slide_id}.png").write_bytes(png_of(drawn))
    summary = {
        "slide_id": slide_id,
        **_score(part, heatmap, card, options),
        "detections": len(found),
        "patches": len(part.probs),
        "unread": int((~part.seen).sum()),
        "level": entry.get("resolution") or part.level,
        "mpp": entry.get("mpp"),
        "patch_size": part.patch_size,
        "stride": part.stride,
        "threshold": threshold,
        "probs": card["probs"],
        "notices": _notices(part, entry, card),
        **(about or {}),
    }
    write_json(folder / SUMMARY, summary)
    return summary


def _score(
    part: SlidePredictions, heatmap: Heatmap | None, card: Mapping[str, Any], options: EvaluationOptions
) -> dict[str, float | None]:
    """The slide's score, its calibrated score and its tumor area."""
    if heatmap is None or not part.seen.any():
        return {"score": None, "calibrated": None, "area_mm2": None}
    score, calibration = float(np.nanmax(smoothed(heatmap, options, part.mpp))), card["calibration"]
    cells = np.count_nonzero(heatmap.probability >= card["thresholds"]["validation"]["threshold"])
    calibrated = None
    if calibration:
        calibrated = float(Calibration(calibration["temperature"], calibration["shift"])(np.array(score)))
    area = cells * (heatmap.cell * part.mpp / 1000) ** 2 if part.mpp else None
    return {"score": score, "calibrated": calibrated, "area_mm2": area}


def _notices(part: SlidePredictions, entry: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    """Reasons why the score may be unreliable, a line each."""
    notices = []
    trained, here = card.get("mpp"), entry.get("mpp")
    if trained and here and not 0.8 < here / trained < 1.25:
        notices.append(
            f"its pixels are {here:.3g} um wide, but the model was trained on pixels of {trained:.3g} um"
        )
    if not part.seen.any():
        notices.append(
            "it has no patches on tissue" if not len(part.probs) else "none of its patches can be read"
        )
    return notices
