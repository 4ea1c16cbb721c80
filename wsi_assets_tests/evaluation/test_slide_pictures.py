"""What is drawn over a slide lies where it is on the slide."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_assets.evaluation import EvaluationOptions, evaluate
from wsi_assets.evaluation.plots import BAR_STRIP, DPI, annotation_picture, overlay_picture, view_of
from wsi_assets_tests.evaluation.synthetic import grid_entry, square
from wsi_assets_tests.index.fakes import ArraySlide

X, Y, SIDE = 900, 320, 128
"""A dark square on the slide, which is also the tumor and one patch."""

ON_TUMOR = pytest.approx((X, Y, X + SIDE, Y + SIDE), abs=12)
"""To within the width of a line."""


@pytest.fixture(scope="module")
def shown():
    """An evaluated slide of 1,600 x 1,200 pixels with patches on a part of it, and its view."""
    pixels = np.full((1200, 1600, 3), (230, 180, 210), np.uint8)
    pixels[Y : Y + SIDE, X : X + SIDE] = (60, 20, 90)
    probability = np.zeros((4, 7))
    probability[1, 4] = 1.0
    plain = grid_entry("test_1", probability, patch_size=SIDE, stride=SIDE)
    plain["patches"] = [(y + Y - SIDE, x + X - 4 * SIDE, t) for y, x, t in plain["patches"]]
    options = EvaluationOptions(bootstrap_samples=0, detection_smoothing_um=0)
    outcome = evaluate({"test_1": plain}, tumor_regions={"test_1": square(X, Y, SIDE)}, options=options)
    slide = outcome.slides[0]
    return slide, view_of(slide, ArraySlide("/nowhere/test_1.tif", pixels), 800)


def place(found, view, height, width):
    """Level-0 (x0, y0, x1, y1) of what is found in a picture (h, w) of the view."""
    rows, columns = np.nonzero(found)
    x0, y0, x1, y1 = view.box
    across, down = (x1 - x0) / width, (y1 - y0) / height
    return (
        *(x0 + columns.min() * across, y0 + rows.min() * down),
        *(x0 + (columns.max() + 1) * across, y0 + (rows.max() + 1) * down),
    )


def test_a_view_is_a_part_of_the_slide_and_knows_which(shown):
    _, view = shown
    assert place(view.pixels.max(axis=2) < 150, view, *view.pixels.shape[:2]) == ON_TUMOR
    assert view.box[2] - view.box[0] < 1200


def test_the_annotation_lies_on_the_tumor(shown):
    picture = annotation_picture(*shown)
    white = picture.min(axis=2) > 250
    white[int(picture.shape[0] * 0.8) :] = False  # the scale bar's plate
    assert place(white, shown[1], *picture.shape[:2]) == ON_TUMOR


def test_the_heatmap_and_its_detection_lie_on_the_tumor(shown):
    slide, view = shown
    picture = overlay_picture(slide, view, threshold=0.5).astype(int)
    high = picture.shape[0] - round(BAR_STRIP * DPI)
    picture = picture[:high]
    yellow = (picture[..., 0] > 150) & (picture[..., 1] > 150) & (picture[..., 2] < 110)
    assert place(yellow, view, *picture.shape[:2]) == ON_TUMOR
    (detection,) = slide.detections
    assert (detection.x, detection.y) == (X + SIDE // 2, Y + SIDE // 2)
