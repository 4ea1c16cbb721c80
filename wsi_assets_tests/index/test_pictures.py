"""The pictures show each annotation in its color at its place, and stay small enough to inline."""

from __future__ import annotations

import io

import cv2
import matplotlib.image
import numpy as np
import pytest
from shapely import MultiPolygon, box

from wsi_assets.annotations import TumorRegions, read_annotation
from wsi_assets.drawing import INK, NORMAL, TUMOR, rgb, scale_bar
from wsi_assets.index import TissueOptions, counts_png, find_tissue, overlay_jpeg, sample_index
from wsi_assets.index.options import SamplingOptions
from wsi_assets.index.pictures import COLORS, overlay
from wsi_assets.slides import open_slide
from wsi_assets_tests.index.fakes import ArraySlide, index_of


@pytest.fixture
def slide():
    pixels = np.random.default_rng(0).normal(240, 1, (1200, 1600, 3))
    pixels[200:1000, 300:1300] = np.random.default_rng(0).normal((170, 80, 160), 20, (800, 1000, 3))
    return ArraySlide("/slides/a.tif", pixels.clip(0, 254).astype(np.uint8))


def near(picture: np.ndarray, color: str) -> np.ndarray:
    return np.abs(picture.astype(int) - rgb(color)).max(axis=2) < 30


def test_each_annotation_is_drawn_in_its_own_color_at_its_own_place(slide):
    tissue = find_tissue(slide, TissueOptions(), "f")
    tumor = TumorRegions(
        geometry=MultiPolygon([box(400, 300, 700, 600)]),
        excluded=MultiPolygon([box(900, 300, 1200, 600)]),
        audit=(),
    )
    picture = overlay(tissue, tumor, max_side=800)
    scale = 2
    for name, (x0, y0, x1, y1) in (
        ("tumor", (400, 300, 700, 600)),
        ("excluded", (900, 300, 1200, 600)),
        ("tissue", (300, 200, 1300, 1000)),
    ):
        rows, columns = np.nonzero(near(picture[:600], COLORS[name]))
        drawn = np.array([columns.min(), rows.min(), columns.max(), rows.max()]) * scale
        assert np.abs(drawn - (x0, y0, x1, y1)).max() <= 12
        assert near(picture[600:], COLORS[name]).any()  # its swatch in the legend


@pytest.mark.parametrize(
    ("image", "annotation"),
    [
        ("slides/tumor_001_level5.tif", "slides/tumor_001_level5.xml"),
        ("slides/CMU-1-Small-Region.svs", None),
        ("slides/downsample_4_0058.tif", "slides/downsample_4_0058.xml"),
        ("cohort/images/tumor_064_node_1.tif", "cohort/annotations/tumor_064_node_1.xml"),
    ],
)
def test_real_slides_give_pictures_small_enough_for_an_event_log(real_data, image, annotation):
    tumor = read_annotation(real_data / annotation) if annotation else None
    with open_slide(real_data / image) as slide:
        data = overlay_jpeg(find_tissue(slide, TissueOptions(), "f"), tumor)
    assert len(data) <= 60_000
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert max(picture.shape) >= 500


def test_a_picture_for_a_file_is_as_large_as_asked(slide):
    data = overlay_jpeg(find_tissue(slide, TissueOptions(), "f"), max_side=1200, max_bytes=None)
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[1] == 1200


@pytest.mark.parametrize("slides", [0, 1, 40, 400])
def test_the_counts_of_a_level_are_one_small_picture_for_any_number_of_slides(slides):
    index = index_of(*((f"tumor_{i:03d}", i % 7, 3 * i % 50) for i in range(slides)))
    data = counts_png(index, sample_index(index, SamplingOptions()))
    assert len(data) < 120_000
    assert matplotlib.image.imread(io.BytesIO(data)).shape[0] < 1500


@pytest.mark.parametrize("slides", [60, 61])
def test_bars_cover_as_much_as_there_are_patches_with_names_and_without(slides):
    rng = np.random.default_rng(1)
    index = index_of(*((f"slide_{i:03d}", *map(int, rng.integers(1, 60, 2))) for i in range(slides)))
    picture = cv2.imdecode(np.frombuffer(counts_png(index), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    tumor, normal = (near(picture, color).sum() for color in (TUMOR, NORMAL))
    found = sum(patch[2] for entry in index.values() for patch in entry["patches"])
    there = sum(len(entry["patches"]) for entry in index.values())
    assert tumor / (tumor + normal) == pytest.approx(found / there, abs=0.02)


@pytest.mark.parametrize(
    ("width", "mpp", "length", "text"),
    [(100_000, 0.25, 20_000, "5 mm"), (4000, 0.25, 800, "200 µm"), (1000, None, 200, "200 px of level 0")],
)
def test_a_scale_bar_is_round_and_fits(width, mpp, length, text):
    assert scale_bar(width, mpp, 0.3) == (pytest.approx(length), text)


def test_the_scale_bar_is_as_long_in_the_picture_as_it_says(slide):
    picture = overlay(find_tissue(slide, TissueOptions(), "f"), max_side=800)
    ink = near(picture[600:], INK)
    # 1,600 pixels of 0.25 um: 50 um are 200 pixels, and half of that in the picture; the bar has round ends.
    runs = [len(run) for row in ink for run in "".join("#" if one else " " for one in row).split()]
    assert max(runs) == pytest.approx(100, abs=12)
