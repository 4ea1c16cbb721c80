"""Facts about no-data: areas without a scan are known, single saturated pixels are not taken for them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_assets.slides import open_slide
from wsi_assets.slides.no_data import SIDE, no_data
from wsi_assets_tests.slides.made import picture, write_pyramid

IMAGE = picture(80, 90)
ALL = np.ones((80, 90), bool)


@given(
    value=st.sampled_from([0, 1, 254, 255]),
    y=st.integers(SIDE, 40),
    x=st.integers(SIDE, 40),
    h=st.integers(1, 30),
    w=st.integers(1, 30),
)
def test_areas_of_pure_black_or_white_are_no_data_and_nothing_else(value, y, x, h, w):
    image = IMAGE.copy()
    image[y : y + h, x : x + w] = value
    expected = np.zeros_like(ALL)
    if min(h, w) >= SIDE:
        expected[y : y + h, x : x + w] = True
    np.testing.assert_array_equal(no_data(image, ALL), expected)


def test_saturated_specks_in_tissue_are_data():
    rng = np.random.default_rng(3)
    image = IMAGE.copy()
    image[rng.random(ALL.shape) < 0.3] = 255
    assert not no_data(image, ALL).any()


@pytest.mark.parametrize("value", [2, 128, 200, 245, 253])
def test_other_flat_areas_are_data(value):
    image = IMAGE.copy()
    image[20:60, 20:60] = value
    assert not no_data(image, ALL).any()


def test_pure_colors_are_data():
    image = IMAGE.copy()
    image[20:60, 20:60] = (255, 0, 0)
    assert not no_data(image, ALL).any()


def test_missing_tiles_are_no_data_however_thin():
    image, present = IMAGE.copy(), ALL.copy()
    present[30, 10:20] = False
    image[30, 10:20] = 255
    np.testing.assert_array_equal(no_data(image, present), ~present)


def test_white_that_touches_a_missing_tile_is_one_area_with_it():
    image, present = IMAGE.copy(), ALL.copy()
    present[:, 40:] = False
    image[:, 40:] = 255
    image[:, 37:40] = 255
    found = no_data(image, present)
    assert found[:, 37:].all()
    assert not found[:, :37].any()


def test_a_strip_at_the_edge_needs_half_a_square():
    image = IMAGE.copy()
    image[:5], image[:, -4:] = 255, 255
    found = no_data(image, ALL)
    assert found[:5].all()
    assert not found[SIDE:, :].any()


def test_tumor_001_has_its_unscanned_area_and_padding_and_keeps_its_glass_and_tissue(real_data):
    with open_slide(real_data / "slides/tumor_001_level5.tif") as slide:
        missing = slide.reduced(4.0).no_data
    assert missing[6912 // 4 :].all()
    assert missing[:, 3056 // 4 + 1 :].mean() > 0.99
    assert missing[1200 // 4 : 1600 // 4, 800 // 4 : 2400 // 4].mean() > 0.8  # never scanned
    assert missing[2400 // 4 : 6800 // 4, 600 // 4 : 2900 // 4].mean() < 0.002  # tissue, clear and gray glass
    assert missing[150 // 4 : 550 // 4, 300 // 4 : 600 // 4].mean() < 0.002  # a registration cross


def scanned(height=900, width=700):
    """Noisy glass with a blob of tissue."""
    rng = np.random.default_rng(11)
    image = np.clip(rng.normal(232, 3, (height, width, 3)), 0, 252)
    y, x = np.mgrid[:height, :width]
    blob = ((y - height / 2) / (height / 3)) ** 2 + ((x - width / 2) / (width / 3)) ** 2 < 1
    image[blob] = np.clip(rng.normal((190, 90, 160), 20, (int(blob.sum()), 3)), 5, 240)
    return image.astype(np.uint8)


@pytest.mark.parametrize(
    "color", [(200, 200, 200), (128, 128, 128), (245, 240, 240), (30, 60, 90), (254,) * 3, (0,) * 3]
)
@pytest.mark.parametrize("around", [(0, 16, 0, 20), (300, 90, 400, 33)])
def test_padding_of_any_color_is_no_data(tmp_path, color, around):
    top, bottom, left, right = around
    image = scanned()
    high, wide = image.shape[0] + top + bottom, image.shape[1] + left + right
    canvas = np.full((high, wide, 3), color, np.uint8)
    canvas[top : top + 900, left : left + 700] = image
    expected = np.ones((high, wide), bool)
    expected[top : top + 900, left : left + 700] = False
    path = write_pyramid(tmp_path / "padded.tif", [canvas], tile=256, compression=None)
    with open_slide(path) as slide:
        found = slide.read_region(0, 0, 0, high, wide).no_data
    np.testing.assert_array_equal(found, expected)


def test_padding_is_found_although_tiles_of_it_are_missing(tmp_path):
    canvas = np.full((1280, 1280, 3), (240, 240, 240), np.uint8)
    canvas[:900, :700] = scanned()
    missing = {(4, 4), (1, 4), (4, 0), (1, 1)}
    path = write_pyramid(tmp_path / "s.tif", [canvas], tile=256, compression="zlib", missing=missing)
    expected = np.ones((1280, 1280), bool)
    expected[:900, :700] = False
    expected[256:512, 256:512] = True
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_region(0, 0, 0, 1280, 1280).no_data, expected)


def test_padding_in_jpeg_is_no_data_except_in_blocks_shared_with_tissue(tmp_path):
    canvas = np.full((1024, 1024, 3), (200, 205, 210), np.uint8)
    canvas[:900, :700] = scanned()
    path = write_pyramid(tmp_path / "padded.tif", [canvas], tile=256)
    with open_slide(path) as slide:
        found = slide.read_region(0, 0, 0, 1024, 1024).no_data
    assert found[912:].all()
    assert found[:, 720:].all()
    assert not found[:896, :688].any()


def test_the_flat_background_of_a_synthetic_slide_stays_glass(tmp_path):
    canvas = np.full((900, 700, 3), 240, np.uint8)
    tissue = scanned()
    blob = tissue[..., 1] < 200
    canvas[blob] = tissue[blob]
    square = np.full((900, 700, 3), 240, np.uint8)
    square[200:700, 200:500] = picture(500, 300) // 2 + (60, 0, 50)
    for name, image in {"blob": canvas, "square": square.astype(np.uint8)}.items():
        path = write_pyramid(tmp_path / f"{name}.tif", [image], tile=256, compression=None)
        with open_slide(path) as slide:
            assert not slide.read_region(0, 0, 0, 900, 700).no_data.any()


def test_real_slides_without_padding_have_no_padding_color(real_data):
    for name in (
        "slides/CMU-1-Small-Region.svs",
        "slides/downsample_4_0058.tif",
        "cohort/images/tumor_004_node_1.tif",
    ):
        with open_slide(real_data / name) as slide:
            base = slide.levels[0]
            assert slide.reduced(max(1.0, base.height / 500)).no_data.mean() < 0.01
