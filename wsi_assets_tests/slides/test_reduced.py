"""Facts about reduced slides: exact area averages, whatever the pyramid, in memory that does not grow."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_assets.slides import open_slide, reduce_mean
from wsi_assets.slides.reduce import area_mean
from wsi_assets_tests.slides.made import halved, padded, picture, write_pyramid


def test_no_data_is_left_out_of_the_average_and_prevails_where_it_is_most():
    image = np.full((8, 8, 3), 100, np.uint8)
    holes = np.zeros((8, 8), bool)
    holes[:4, :3], holes[4:, 4:] = True, True
    image[holes] = 255
    colors, missing = reduce_mean(image, holes, 4)
    assert missing.tolist() == [[True, False], [False, True]]
    assert colors[..., 0].tolist() == [[100, 100], [100, 255]]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 4]), st.integers(0, 99))
def test_an_average_leaves_no_data_out_and_keeps_whole_and_partial_blocks(height, width, factor, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    holes = rng.random((height, width)) < rng.choice([0, 0.5, 1])
    small, missing = reduce_mean(image, holes, factor)
    assert small.shape[:2] == missing.shape == (-(-height // factor), -(-width // factor))
    for row, column in np.ndindex(missing.shape):
        block = np.s_[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        assert missing[row, column] == (holes[block].mean() >= 0.5)
        known = image[block][~holes[block]]
        if len(known):
            assert np.abs(small[row, column] - known.mean(axis=0)).max() <= 0.51


def test_a_large_picture_is_averaged_strip_by_strip_as_if_at_once():
    image = picture(1030, 2051, seed=2)
    holes = np.zeros(image.shape[:2], bool)
    holes[300:700, 1000:] = True
    small, missing = reduce_mean(image, holes, 4)
    assert 1030 * 2051 > 1 << 20
    for top in (0, 255):
        part = np.s_[top * 4 : top * 4 + 300]
        alone, without = reduce_mean(image[part], holes[part], 4)
        np.testing.assert_array_equal(small[top : top + len(alone)], alone[: len(small) - top])
        np.testing.assert_array_equal(missing[top : top + len(alone)], without)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.floats(1, 9), st.booleans(), st.integers(0, 99))
def test_cells_of_any_size_are_averaged_by_area_and_reach_over_the_edge(rows, cols, step, cut, seed):
    """Against every pixel enlarged as many times as there are cells, so that cells are of whole ones."""
    whole = round(rows * step), round(cols * step)
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*whole, 3)).astype(np.uint8)
    holes = rng.random(whole) < 0.3
    outside = np.zeros(whole, bool)
    if cut:
        outside[-(whole[0] // 3 or whole[0]) :], outside[:, : whole[1] // 4] = whole[0] > 2, False
    there = np.s_[: whole[0] - int(outside.all(axis=1).sum())]
    colors, missing = area_mean(image[there], holes[there], (rows, cols), whole)

    def mean(values):
        large = np.kron(values.astype(float), np.ones((rows, cols)))
        return large.reshape(rows, whole[0], cols, whole[1]).mean(axis=(1, 3))

    outside[there] = False
    known, inside = mean(~holes & ~outside), mean(~outside)
    clear = np.abs(known - inside / 2) > 1e-4
    assert (missing == (known <= inside / 2))[clear].all()
    for channel in range(3):
        sums = mean(np.where(holes | outside, 0, image[..., channel]))
        seen = known > 1e-3
        assert np.abs(colors[..., channel][seen] - sums[seen] / known[seen]).max(initial=0) <= 0.51


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """The same picture as one level and as a pyramid: (folder, picture)."""
    folder = tmp_path_factory.mktemp("big")
    image = picture(1500, 2300, seed=4)
    raw = {"compression": None, "photometric": "rgb"}
    write_pyramid(folder / "one.tif", [image], **raw)
    write_pyramid(folder / "pyramid.tif", [padded(halved(image, k), 128) for k in range(4)], **raw)
    return folder, image


@pytest.mark.parametrize("downsample", [1, 2, 4, 5.5, 16, 37.3, 700, 5000])
def test_a_slide_reduces_to_its_average_whatever_its_pyramid(big, downsample):
    folder, image = big
    with open_slide(folder / "one.tif") as slide:
        small = slide.reduced(downsample)
    assert small.pixels.shape == (math.ceil(1500 / downsample), math.ceil(2300 / downsample), 3)
    assert small.pixels.mean() == pytest.approx(image.mean(), abs=3)
    with open_slide(folder / "pyramid.tif") as slide:
        other = slide.reduced(downsample)
    assert other.pixels.shape == (math.ceil(1536 / downsample), math.ceil(2304 / downsample), 3)
    high, wide = max(1, int(1500 / downsample) - 1), max(1, int(2300 / downsample) - 1)
    if min(high, wide) > 4:
        apart = small.pixels[:high, :wide].astype(int) - other.pixels[:high, :wide]
        assert np.abs(apart).mean() < 2.5


def test_exact_halving_is_the_mean_of_squares(big):
    folder, image = big
    with open_slide(folder / "one.tif") as slide:
        small = slide.reduced(4.0).pixels
    assert np.abs(small.astype(int) - halved(image, 2)).max() <= 1


def test_reduced_padding_and_holes_are_no_data(big):
    folder, _ = big
    with open_slide(folder / "pyramid.tif") as slide:
        missing = slide.reduced(8.0).no_data
    assert missing[1504 // 8 :].all()
    assert not missing[: 1496 // 8, : 2296 // 8].any()


def test_the_wide_single_level_of_tumor_001_reduces(real_data):
    with open_slide(real_data / "slides/tumor_001_level5.tif") as one:
        alone = one.reduced(16.0)
    with open_slide(real_data / "slides/tumor_001_padded.tif") as pyramid:
        built = pyramid.reduced(16.0)
    assert alone.pixels.shape == (448, 192, 3)
    both = ~(alone.no_data | built.no_data)
    assert np.abs(alone.pixels.astype(int) - built.pixels)[both].mean() < 4
    assert (alone.no_data != built.no_data).mean() < 0.06


def test_memory_does_not_grow_with_the_slide(tmp_path):
    peaks = []
    for count in (4, 64):
        wide = np.tile(picture(512, 512), (1, count, 1))
        path = write_pyramid(tmp_path / f"{count}.tif", [wide], tile=512, photometric="rgb")
        with open_slide(path) as slide:
            slide.read_region(0, 0, 0, 64, 64)
            tracemalloc.start()
            slide.reduced(64.0)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + (80 << 20)  # the cache of tiles may fill, and no more


def test_a_thumbnail_keeps_to_its_side(real_data):
    with open_slide(real_data / "slides/CMU-1-Small-Region.svs") as slide:
        assert slide.thumbnail(200).shape == (200, 150, 3)
        assert slide.thumbnail(10_000).shape == (2967, 2220, 3)


@pytest.mark.parametrize("downsample", [0, 0.5, -3, float("nan"), float("inf")])
def test_a_slide_is_not_enlarged(real_data, downsample):
    with (
        open_slide(real_data / "slides/boxes.tiff") as slide,
        pytest.raises(ValueError, match="cannot be reduced"),
    ):
        slide.reduced(downsample)
