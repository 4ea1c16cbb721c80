"""Drawings over a slide lie at the correct position."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from wsi_assets.drawing import TUMOR, rgb
from wsi_assets.evaluation import EvaluationOptions, evaluate
from wsi_assets.evaluation.pictures import crop, heat_png, heatmap_picture, scene, view_of
from wsi_assets_tests.evaluation.synthetic import PictureSlide, grid_entry, square

X, Y, SIDE = 900, 320, 128
"""A dark square on the slide, which is also the tumor and one patch."""

PIXELS = np.full((1200, 1600, 3), (230, 180, 210), np.uint8)
PIXELS[Y : Y + SIDE, X : X + SIDE] = (60, 20, 90)
OPTIONS = EvaluationOptions(bootstrap_samples=0, detection_smoothing_um=0)

ON_TUMOR = pytest.approx((X, Y, X + SIDE, Y + SIDE), abs=12)
"""Tolerance: the width of a line."""


@pytest.fixture(scope="module")
def shown():
    """An evaluated slide of 1,600 x 1,200 pixels with patches on a part of it, and its view."""
    probability = np.zeros((4, 7))
    probability[1, 4] = 1.0
    plain = grid_entry("test_1", probability, patch_size=SIDE, stride=SIDE)
    plain["patches"] = [(y + Y - SIDE, x + X - 4 * SIDE, t) for y, x, t in plain["patches"]]
    outcome = evaluate({"test_1": plain}, tumor_regions={"test_1": square(X, Y, SIDE)}, options=OPTIONS)
    slide = outcome.slides[0]
    return slide, view_of(slide, PictureSlide("/nowhere/test_1.tif", PIXELS), 800)


def place(found, view, height, width):
    """Level-0 (x0, y0, x1, y1) of what is found in a picture (h, w) of the view."""
    rows, columns = np.nonzero(found)
    x0, y0, x1, y1 = view.box
    across, down = (x1 - x0) / width, (y1 - y0) / height
    return (
        *(x0 + columns.min() * across, y0 + rows.min() * down),
        *(x0 + (columns.max() + 1) * across, y0 + (rows.max() + 1) * down),
    )


def test_a_view_has_the_pixels_of_its_box(shown):
    _, view = shown
    assert place(view.pixels.max(axis=2) < 150, view, *view.pixels.shape[:2]) == ON_TUMOR
    assert view.box[2] - view.box[0] < 1200


def test_annotation_heatmap_and_detection_lie_on_the_tumor(shown):
    slide, view = shown
    picture = heatmap_picture(slide, view, 780, threshold=0.5).astype(int)
    picture = picture[: round(780 * (view.box[3] - view.box[1]) / (view.box[2] - view.box[0]))]
    line = np.abs(picture - rgb(TUMOR)).max(axis=2) == 0
    yellow = (picture[..., 0] > 150) & (picture[..., 1] > 150) & (picture[..., 2] < 110)
    for found in (line, yellow):
        assert place(found, view, *picture.shape[:2]) == ON_TUMOR
    (detection,) = slide.detections
    assert (detection.x, detection.y) == (X + SIDE // 2, Y + SIDE // 2)


def test_a_scene_holds_the_same_in_level_0_pixels(shown):
    slide, view = shown
    drawn = scene(view, slide)
    corners = np.array([point.split(",") for point in drawn.annotation.strip("MZ").split()], float)
    assert (*corners.min(0), *corners.max(0)) == (X, Y, X + SIDE, Y + SIDE)
    (detection,) = drawn.detections
    assert (detection.x, detection.y) == (X + SIDE // 2, Y + SIDE // 2)
    cells = cv2.imdecode(np.frombuffer(heat_png(slide.heatmap), np.uint8), cv2.IMREAD_UNCHANGED)
    assert cells.shape == (4, 7, 4)
    assert cells[1, 4].tolist() == [36, 231, 253, 255]  # viridis at 1 as BGR


@pytest.mark.parametrize("side", [SIDE, 700])
def test_a_crop_beyond_the_edge_of_the_slide_keeps_its_position(shown, side):
    _, view = shown
    reader = PictureSlide("/nowhere/test_1.tif", PIXELS)
    for center in ((X + SIDE / 2, Y + SIDE / 2), (X + SIDE, Y)):
        cropped = crop(reader, view, center, side)
        dark = cropped.pixels.max(axis=2) < 150
        x0, y0, x1, y1 = cropped.box
        wanted = max(X, x0), max(Y, y0), min(X + SIDE, x1), min(Y + SIDE, y1)
        assert place(dark, cropped, *dark.shape) == pytest.approx(wanted, abs=4)
