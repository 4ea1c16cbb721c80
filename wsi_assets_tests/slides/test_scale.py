"""Facts about a slide's scale: what its levels truly are, and what is believed of its magnification."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from wsi_assets.slides import open_slide, true_downsamples
from wsi_assets.slides.scale import content_size, magnification_from_mpp, scale_of


def reported(sizes):
    """What OpenSlide says: the mean of the two sides' ratios."""
    return [(sizes[0][0] / w + sizes[0][1] / h) / 2 for w, h in sizes]


def padded(width, height, unit, powers):
    return [tuple(math.ceil(side / p / unit) * unit for side in (width, height)) for p in powers]


def test_the_padded_pyramid_of_tumor_001_has_powers_of_two(real_data):
    with open_slide(real_data / "slides/tumor_001_padded.tif") as slide:
        assert [level.downsample for level in slide.levels] == [1, 2, 4, 8, 16]


def test_the_downsamples_that_camelyon16_reports_are_powers_of_two():
    sizes = padded(97792, 221184, 512, [2**k for k in range(10)])
    said = [1, 1.995, 3.990, 7.979, 15.96, 31.35, 62.7, 101.75]
    assert reported(sizes)[:8] == pytest.approx(said, rel=2e-3)
    assert true_downsamples(sizes, reported(sizes)) == [2**k for k in range(10)]


@pytest.mark.parametrize(("last", "truth"), [(30.5, 32), (57.4, 64)])
def test_levels_as_far_off_as_test_026_are_found(last, truth):
    # A narrow slide, so that one padded tile is a large part of the level's width.
    content = next(
        (w, h)
        for w in range(20000, 120000, 512)
        for h in (100352, 201216)
        if abs(reported(padded(w, h, 512, [1, truth]))[1] - last) < 0.25
    )
    sizes = padded(*content, 512, [2**k for k in range(int(math.log2(truth)) + 1)])
    assert true_downsamples(sizes, reported(sizes)) == [2**k for k in range(len(sizes))]


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("downsample_4_0058.tif", [1, 2, 4.0058]),
        ("boxes.tiff", [1, 2, 4.0161, 8]),
        ("rgba_3level.tif", [1, 8, 256]),
        ("CMU-1-Small-Region.svs", [1]),
        ("tumor_001_level5.tif", [1]),
    ],
)
def test_other_real_pyramids_keep_their_ratios(real_data, name, truth):
    with open_slide(real_data / "slides" / name) as slide:
        assert [level.downsample for level in slide.levels] == pytest.approx(truth, abs=1e-4)


def test_levels_of_a_few_pixels_keep_powers_of_two():
    sizes = [(max(1, 2048 >> k), max(1, 1792 >> k)) for k in range(12)]
    assert reported(sizes)[9] == pytest.approx(554.67, abs=0.01)
    assert true_downsamples(sizes, reported(sizes)) == [2**k for k in range(12)]


def test_an_aperio_pyramid_that_drops_an_odd_row_has_powers_of_two():
    sizes = [(46000, 32914), (11500, 8228), (2875, 2057)]
    assert true_downsamples(sizes, reported(sizes)) == [1, 4, 16]


@pytest.mark.parametrize("step", [3, 10])
def test_a_pyramid_of_another_step_is_believed(step):
    sizes = [(92160 // step**k, 46080 // step**k) for k in range(3)]
    assert true_downsamples(sizes, reported(sizes)) == pytest.approx([step**k for k in range(3)], rel=1e-2)


def test_a_format_that_stores_its_scale_is_believed():
    # A Philips file keeps padded sizes and states its spacing.
    assert true_downsamples([(5000, 4000), (3072, 2560)], [1.0, 2.0]) == [1, 2]


def test_a_long_narrow_level_has_the_ratio_of_its_long_side():
    truth = true_downsamples([(200_001, 163), (50_000, 40)], reported([(200_001, 163), (50_000, 40)]))
    assert abs(200_001 / truth[1] - 50_000) < 1


sides = st.integers(64, 250_000)


@given(sides, sides, st.sampled_from([math.floor, math.ceil, round]), st.integers(2, 12))
@example(147, 297, round, 2)
def test_an_unpadded_pyramid_places_its_far_corner_within_a_pixel(width, height, rounding, count):
    sizes = [(width, height)]
    for k in range(1, count):
        sizes.append(tuple(max(1, rounding(side / 2**k)) for side in (width, height)))
    for (w, h), downsample in zip(sizes, true_downsamples(sizes, reported(sizes)), strict=True):
        assert abs(width / downsample - w) <= 1
        assert abs(height / downsample - h) <= 1


@given(
    st.integers(2000, 250_000),
    st.integers(2000, 250_000),
    st.sampled_from([128, 240, 256, 512]),
    st.integers(2, 10),
    st.booleans(),
)
def test_a_padded_pyramid_has_powers_of_two(width, height, unit, count, base_too):
    powers = [2**k for k in range(count)]
    sizes = padded(width, height, unit, powers)
    if not base_too:
        sizes[0] = (width, height)
    # Where a level is one unit wide and high its size says nothing more; until then it must be right.
    assume(len(set(sizes)) == len(sizes))
    # Both sides shrinking alike by one odd step is like a pyramid of that step.
    ratios = reported(sizes)
    assume(any(abs(r / p - 1) < 1e-9 for r, p in zip(ratios[1:], powers[1:], strict=True)) or count > 3)
    assert true_downsamples(sizes, ratios) == powers


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=10))
def test_any_sizes_at_all_give_finite_downsamples(sizes):
    truth = true_downsamples(sizes, reported(sizes))
    assert len(truth) == len(sizes)
    assert truth[0] == 1
    assert all(math.isfinite(value) and value > 0 for value in truth)


def test_the_content_of_a_padded_level_ends_where_level_0_does():
    assert content_size((3072, 7168), (1024, 2048), 4.0) == (768, 1792)
    assert content_size((1472, 690), (368, 172), 4.0058) == (368, 172)


@pytest.mark.parametrize(
    ("mpp", "magnification"),
    [(0.243, 40), (0.226, 40), (0.25, 40), (0.499, 20), (0.9872, 10), (0.325, 30.769)],
)
def test_magnification_follows_from_mpp(mpp, magnification):
    assert magnification_from_mpp(mpp) == magnification


def test_pixels_that_are_not_quite_square_have_their_mean_mpp():
    scale = scale_of({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.26"}, 40.0)
    assert (scale.mpp, scale.mpp_source) == (pytest.approx(0.255), "file")


@pytest.mark.parametrize(
    ("objective", "mpp", "magnification", "source"),
    [
        ("20", "0.499", 20, "objective"),
        ("40", "0.2325", 40, "objective"),
        ("20", "0.37", 20, "objective"),
        ("20", "0.2325", 40, "mpp"),
        ("40", "0.5", 20, "mpp"),
    ],
)
def test_objective_power_comes_before_mpp_unless_they_contradict(objective, mpp, magnification, source):
    scale = scale_of({"openslide.objective-power": objective, "openslide.mpp-x": mpp}, 40.0)
    assert (scale.base_magnification, scale.magnification_source) == (magnification, source)
    assert scale.mpp == float(mpp)
    assert bool(scale.notices) == (source == "mpp")


def test_what_is_assumed_contradicted_or_not_believed_is_a_notice():
    def notices(**file):
        names = {"x": "openslide.mpp-x", "y": "openslide.mpp-y", "power": "openslide.objective-power"}
        return scale_of({names[key]: value for key, value in file.items()}, 40.0).notices

    assert not notices(x="0.25", y="0.25", power="40")
    assert not notices(x="0.25", y="0.25")
    assert len(notices()) == 1
    assert len(notices(x="28.97", y="28.97", power="40")) == 1
    assert len(notices(x="28.97", y="28.97")) == 2
    assert len(notices(x="0.25", y="0.5")) == 2
    assert len(notices(x="0.25", y="0.26")) == 1
    assert len(notices(x="0.25", y="10000")) == 2


@pytest.mark.parametrize(
    ("dots", "mpp"), [("101600", 0.25), ("50800", 0.5), ("300", None), ("72", None), ("0", None)]
)
def test_a_tiff_resolution_in_inches_is_a_pixel_size_if_plausible(dots, mpp):
    file = {"tiff.ResolutionUnit": "inch", "tiff.XResolution": dots, "tiff.YResolution": dots}
    scale = scale_of(file, 40.0)
    assert scale.mpp == (mpp and pytest.approx(mpp))
    assert bool(scale.notices) == (mpp is None)


@pytest.mark.parametrize(
    ("size", "unit", "mpp"),
    [("0.5", "\u00b5m", 0.5), ("250", "nm", 0.25), ("0.00025", "mm", 0.25), ("0.5", None, 0.5)],
)
def test_the_scale_of_an_ome_tiff_is_in_its_xml(size, unit, mpp):
    units = f' PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"' if unit else ""
    xml = (
        '<?xml version="1.0"?><OME><Instrument><Objective NominalMagnification="20"/></Instrument><Image>'
        f'<Pixels PhysicalSizeX="{size}" PhysicalSizeY="{size}"{units} SizeX="9"/></Image></OME>'
    )
    scale = scale_of({"tiff.ImageDescription": xml}, 40.0)
    assert scale.mpp == pytest.approx(mpp)
    assert scale.base_magnification == (20 if mpp == 0.5 else 40)


def test_the_scale_of_the_cohort_table_comes_first_without_a_notice():
    file = {"openslide.objective-power": "40", "openslide.mpp-x": "0.243"}

    def said(properties=file, **values):
        found = scale_of(properties, 40.0, **values)
        assert not found.notices
        return found.base_magnification, found.magnification_source, found.mpp, found.mpp_source

    assert said(known_mag=20.0, known_mpp=0.5) == (20, "cohort", 0.5, "cohort")
    assert said(known_mpp=0.25) == (40, "mpp", 0.25, "cohort")
    assert said(known_mag=10.0) == (10, "cohort", 0.243, "file")
    assert said() == (40, "objective", 0.243, "file")
    assert said({}, known_mag=40.0) == (40, "cohort", None, None)
    assert said({"openslide.objective-power": "20", "openslide.mpp-x": "900"}, known_mpp=0.25)[0] == 40


@pytest.mark.parametrize(
    ("x", "y"), [*((value, value) for value in ("1000", "352.7777", "0.01", "0", "-1")), ("0.25", "0.5")]
)
def test_implausible_mpp_and_pixels_far_from_square_are_refused_with_a_notice(x, y):
    scale = scale_of({"openslide.mpp-x": x, "openslide.mpp-y": y}, 20.0)
    assert (scale.base_magnification, scale.magnification_source, scale.mpp) == (20, "base_mag", None)
    assert scale.mpp_source.startswith("refused")


@pytest.mark.parametrize("value", ["", "nan", "inf", "about 0.25"])
def test_mpp_that_is_not_a_number_is_ignored(value):
    scale = scale_of({"openslide.mpp-x": value, "openslide.objective-power": value}, 40.0)
    assert (scale.base_magnification, scale.magnification_source, scale.mpp) == (40, "base_mag", None)


def test_real_slides_name_the_source_of_their_scale(real_data):
    def scale(name):
        with open_slide(real_data / name) as slide:
            return slide.scale

    svs = scale("slides/CMU-1-Small-Region.svs")
    assert (svs.base_magnification, svs.magnification_source, svs.mpp) == (20, "objective", 0.499)
    cohort = scale("cohort/images/tumor_001_node_1.tif")
    assert (cohort.base_magnification, cohort.magnification_source) == (40, "mpp")
    assert cohort.mpp == pytest.approx(0.243, abs=1e-6)
    assert scale("slides/boxes.tiff").mpp is None
    assert scale("slides/tumor_001_level5.tif").mpp_source is None
