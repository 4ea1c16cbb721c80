"""10x is 10x on every scanner: where a slide has it, and patches that tile it without gap or drift."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_assets.errors import ConfigError, SlideIndexError
from wsi_assets.slides import Level, Resolution, Scale, locate, read_averaged

POWERS = tuple(Level(i, 40_000 >> i, 30_000 >> i, float(2**i)) for i in range(4))
APERIO = tuple(Level(i, 40_000 >> 2 * i, 30_000 >> 2 * i, float(4**i)) for i in range(3))


def scale(mpp: float | None, base: float = 40.0, source: str = "mpp") -> Scale:
    return Scale(base, source, mpp, None if mpp is None else "file")


@pytest.mark.parametrize(
    ("key", "name", "mpp"),
    [("4", "level_4", None), ("10x", "10x", 1.0), ("2.5x", "2.5x", 4.0), ("0.5um", "0.5um", 0.5)],
)
def test_a_key_is_a_level_a_magnification_or_a_pixel_size(key, name, mpp):
    found = Resolution.parse(key)
    assert (found.key, found.name, found.mpp) == (key, name, mpp)


@pytest.mark.parametrize(
    "key", ["04", "-1", "20", "10.0x", "0x", "x", "10X", "1e1x", "9999um", "../10x", "١"]
)
def test_other_keys_are_refused_in_one_line(key):
    with pytest.raises(ConfigError) as caught:
        Resolution.parse(key)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("levels", "mpp", "key", "level", "step"),
    [
        (POWERS, 0.25, "10x", 2, 1.0),
        (POWERS, 0.5, "10x", 1, 1.0),
        (POWERS, 0.252, "10x", 2, 1.0),
        (POWERS, 0.2328, "10x", 2, 1 / 0.2328 / 4),
        (POWERS, 0.243, "20x", 1, 0.5 / 0.243 / 2),
        (APERIO, 0.25, "20x", 0, 2.0),
        (APERIO, 0.25, "5x", 1, 2.0),
        (POWERS, 0.5, "0.5um", 0, 1.0),
    ],
)
def test_a_level_of_the_wanted_pixel_size_is_read_as_it_is_otherwise_the_next_finer_one(
    levels, mpp, key, level, step
):
    place = locate(levels, scale(mpp), Resolution.parse(key))
    assert (place.level.index, place.step) == (level, pytest.approx(step))
    assert place.downsample == pytest.approx(place.level.downsample * place.step)
    assert place.mpp == pytest.approx(Resolution.parse(key).mpp, rel=0.01)
    assert place.width == int(place.level.width / place.step + 1e-6)


def test_nothing_is_enlarged_and_a_slide_of_unknown_pixels_has_no_magnification():
    with pytest.raises(SlideIndexError):
        locate(POWERS, scale(0.5), Resolution.parse("40x"))
    with pytest.raises(SlideIndexError, match=r"cohort\.csv"):
        locate(POWERS, scale(None, source="base_mag"), Resolution.parse("10x"))
    assert locate(POWERS, scale(None, 20.0, "cohort"), Resolution.parse("10x")).level.index == 1


@settings(max_examples=60, deadline=None)
@given(
    step=st.floats(1.0, 9.0).map(lambda step: round(step, 5)),
    y=st.integers(0, 500),
    x=st.integers(0, 500),
    size=st.integers(1, 24),
)
def test_a_patch_is_the_exact_area_average_and_begins_where_the_last_one_ended(step, y, x, size):
    side = int((max(y, x) + size) * step) + 2
    rng = np.random.default_rng(side)
    rows, columns = rng.integers(0, 128, side), rng.integers(0, 128, side)

    def read(top, left, height, width):
        values = rows[top : top + height, None] + columns[None, left : left + width]
        assert values.shape == (height, width)
        return np.repeat(values[..., None], 3, axis=2).astype(np.uint8), np.ones((height, width), bool)

    def means(values, first):
        edges = (first + np.arange(size + 1)) * step
        return np.diff(np.interp(edges, np.arange(side + 1), np.concatenate([[0], np.cumsum(values)]))) / step

    expected = means(rows, y)[:, None] + means(columns, x)[None]
    found, missing = read_averaged(read, y, x, size, step)
    assert missing == 0
    assert np.abs(found - expected[..., None]).max() <= 0.51
