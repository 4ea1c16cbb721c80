"""FROC against a naive implementation of the definition, real lesions and a published example."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_assets.errors import EvaluationError
from wsi_assets.evaluation.froc import (
    Curve,
    SlideHits,
    froc,
    froc_curve,
    lesion_table,
    match,
)
from wsi_assets.evaluation.heatmap import Detection
from wsi_assets.evaluation.intervals import Resamples
from wsi_assets.evaluation.lesions import (
    Lesion,
    LesionMap,
    corner_mask,
    lesions_of_geometry,
    lesions_of_mask,
    major_axis,
)
from wsi_assets.evaluation.options import EvaluationOptions

QUICK = EvaluationOptions(bootstrap_samples=0)


def naive_lesions(mask: np.ndarray):
    """Lesions pixel by pixel: the distance to every tumor pixel, flood fill for holes and parts."""
    tumor = np.argwhere(mask)
    rows, cols = np.indices(mask.shape)
    distance = np.sqrt(((rows[..., None] - tumor[:, 0]) ** 2 + (cols[..., None] - tumor[:, 1]) ** 2).min(-1))
    near = distance < 75 / (0.243 * 32 * 2)
    outside = np.zeros(mask.shape, bool)
    last = mask.shape[0] - 1, mask.shape[1] - 1
    edge = [(r, c) for r, c in np.ndindex(*mask.shape) if r in (0, last[0]) or c in (0, last[1])]
    spread(outside, [place for place in edge if not near[place]], ~near, diagonal=False)
    filled, parts = ~outside, []
    left = filled.copy()
    while left.any():
        part = np.zeros(mask.shape, bool)
        spread(part, [tuple(np.argwhere(left)[0])], left, diagonal=True)
        left &= ~part
        parts.append(part)
    return parts


def spread(reached, queue, allowed, *, diagonal):
    steps = [(-1, 0), (1, 0), (0, -1), (0, 1)]
    steps += [(-1, -1), (-1, 1), (1, -1), (1, 1)] if diagonal else []
    queue = list(queue)
    while queue:
        r, c = queue.pop()
        if 0 <= r < allowed.shape[0] and 0 <= c < allowed.shape[1] and allowed[r, c] and not reached[r, c]:
            reached[r, c] = True
            queue += [(r + dr, c + dc) for dr, dc in steps]


def naive_score(false_positives, lesion_scores, lesions, slides, *, official):
    """Mean sensitivity at the six rates: every threshold in turn, and lines between operating points."""
    scores = sorted({float(score) for score in [*false_positives, *lesion_scores]})
    points = []
    for level in scores[1:] if official else scores:
        wrong = sum(score >= level for score in false_positives) / slides
        points.append((wrong, sum(float(score) >= level for score in lesion_scores) / lesions))
    points.append((0.0, 0.0))
    return float(np.mean([along(points[::-1], rate) for rate in (0.25, 0.5, 1, 2, 4, 8)]))


def along(points, rate):
    """The line through points of rising rate; of several points at one rate the last holds from there on."""
    below = [point for point in points if point[0] <= rate]
    above = [point for point in points if point[0] > rate]
    (x0, y0) = below[-1]
    if not above:
        return y0
    x1, y1 = above[0]
    return y0 + (y1 - y0) * (rate - x0) / (x1 - x0)


def test_the_published_example_has_its_score(real_data):
    for case in json.loads((real_data / "expected.json").read_text())["froc_unit_cases"]:
        numbers = (case["fp_probs"], case["tp_probs"], case["num_targets"], case["num_images"])
        assert froc_curve(*numbers, official=True).score() == pytest.approx(
            case["mean_sensitivity"], abs=1e-8
        )


def test_lesions_of_a_real_annotation(real_data):
    from wsi_assets.annotations import read_annotation

    expected = json.loads((real_data / "expected.json").read_text())["froc_tumor_001"]
    regions = read_annotation(real_data / "annotations" / "tumor_001.xml")
    lesions = lesions_of_geometry(regions.geometry, mpp=0.243).lesions
    assert len(lesions) == expected["n_labels"]
    assert [lesion.label for lesion in lesions if lesion.itc] == expected["itc_labels"]
    # The official mask was drawn from the same polygons by another program: areas agree to 0.3 %.
    assert [lesion.area for lesion in lesions] == pytest.approx(expected["eval_label_area_px"], rel=3e-3)
    assert [lesion.major_axis for lesion in lesions] == pytest.approx(
        expected["eval_label_major_axis_px"], rel=3e-3
    )
    np.testing.assert_allclose([lesion.box for lesion in lesions], expected["eval_label_bbox_rc"], atol=1)


@pytest.mark.parametrize("slide_id", ["tumor_001", "tumor_002", "tumor_005", "tumor_012", "tumor_016"])
def test_the_mask_is_the_published_one(slide_id, real_data):
    from wsi_assets.annotations import read_annotation

    published = json.loads((real_data / "expected.json").read_text())["official_mask_pixels_level5"][slide_id]
    geometry = read_annotation(real_data / "annotations" / f"{slide_id}.xml").geometry
    rows, cols = (math.ceil(side / 32) for side in (geometry.bounds[3], geometry.bounds[2]))
    assert corner_mask(geometry, 32, (0, 0), (rows, cols)).sum() == pytest.approx(published, rel=1.7e-3)


@given(st.integers(0, 10_000), st.integers(-3, 3), st.integers(-3, 3))
@settings(max_examples=60, deadline=None)
def test_a_mask_pixel_is_tumor_if_its_corner_lies_inside(seed, top, left):
    generator = np.random.default_rng(seed)
    points = shapely.MultiPoint(generator.random((generator.integers(4, 12), 2)) * 400)
    around, hole = shapely.convex_hull(points), shapely.centroid(points).buffer(generator.random() * 60)
    geometry = shapely.difference(around, hole)
    rows, cols = np.indices((18, 16))
    inside = shapely.contains_xy(geometry, (cols + left) * 24.0, (rows + top) * 24.0)
    assert np.array_equal(corner_mask(geometry, 24, (top, left), (18, 16)), inside)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_lesions_are_widened_filled_and_joined_at_corners(seed):
    generator = np.random.default_rng(seed)
    mask = np.zeros(generator.integers(20, 60, 2), bool)
    for _ in range(generator.integers(1, 5)):
        r, c = generator.integers(0, mask.shape[0]), generator.integers(0, mask.shape[1])
        h, w = generator.integers(1, 25, 2)
        mask[r : r + h, c : c + w] = True
        mask[r + h // 4 : r + h // 2, c + w // 4 : c + w // 2] = False
    if not mask.any():
        return
    found = lesions_of_mask(mask, 0.243)
    parts = naive_lesions(mask)
    assert len(found.lesions) == len(parts)
    for lesion, part in zip(found.lesions, parts, strict=True):
        assert lesion.area == part.sum()
        assert lesion.itc == (major_axis(part) < 275 / (0.243 * 32))
        row, col = np.argwhere(part)[0]
        assert found.label_at(col * 32 + 31, row * 32) == lesion.label
    outside = np.argwhere(~np.any(parts, axis=0))
    assert all(found.label_at(c * 32, r * 32) == 0 for r, c in outside)


def test_the_major_axis_of_a_disc_is_its_diameter():
    rows, cols = np.indices((101, 101)) - 50
    assert major_axis(rows**2 + cols**2 <= 40**2) == pytest.approx(80, rel=0.01)


def test_two_lesions_closer_than_75_um_are_one():
    apart = lesions_of_geometry(
        shapely.MultiPolygon([shapely.box(1000, 1000, 3000, 3000), shapely.box(3400, 1000, 5000, 3000)]),
        mpp=0.243,
    )
    near = lesions_of_geometry(
        shapely.MultiPolygon([shapely.box(1000, 1000, 3000, 3000), shapely.box(3200, 1000, 5000, 3000)]),
        mpp=0.243,
    )
    assert (len(apart.lesions), len(near.lesions)) == (2, 1)


def test_a_small_lesion_is_itc_and_does_not_count():
    # 400 px are 97 um; with 37.5 um on each side 172 um, under 275.
    lesions = lesions_of_geometry(shapely.box(1024, 1024, 1424, 1424), mpp=0.243)
    assert [lesion.itc for lesion in lesions.lesions] == [True]
    hits = match("test_001", "test_001", [Detection(0.9, 1200, 1200), Detection(0.4, 9000, 9000)], lesions)
    assert [found.probability for found in hits.false_positives] == [0.4]
    result = froc([hits], QUICK, official_hits=[hits])
    assert result.official.value is None
    assert "isolated tumor cells" in result.official.reason
    assert lesion_table([hits])[0]["probability"] is None


def test_a_lesion_counts_once_at_its_highest_probability():
    lesions = lesions_of_geometry(shapely.box(0, 0, 4096, 4096), mpp=0.243)
    found = [Detection(p, 2000, 2000) for p in (0.3, 0.8, 0.5)]
    hits = match("test_001", "test_001", found, lesions)
    assert hits.false_positives == ()
    assert hits.official_scores.tolist() == [np.float32(0.8)]
    assert lesion_table([hits])[0]["probability"] == 0.8


def test_a_perfect_detector_with_equal_scores_has_official_score_0_and_corrected_score_1():
    lesions = lesions_of_geometry(shapely.box(0, 0, 4096, 4096), mpp=0.243)
    hits = [match(f"test_{i}", f"p{i}", [Detection(0.75, 2000, 2000)], lesions) for i in range(3)]
    result = froc(hits, QUICK, official_hits=hits)
    assert (result.official.value, result.corrected.value) == (0.0, 1.0)
    assert froc(hits, QUICK).official.value is None


def test_slides_without_detections_count():
    lesions = lesions_of_geometry(shapely.box(0, 0, 4096, 4096), mpp=0.243)
    tumor = match("test_1", "a", [Detection(0.5, 2000, 2000)], lesions)
    normal = match("test_2", "b", [Detection(0.7, 100, 100), Detection(0.6, 900, 900)], None)
    silent = [match(f"test_{i}", f"c{i}", [], None) for i in range(3, 9)]
    curve = froc([tumor, normal, *silent], QUICK).corrected_curve
    # The lesion is found once both false positives are in: 2 of 8 slides.
    assert curve.at([0.25])[0] == 1.0
    assert froc([tumor, normal], QUICK).corrected_curve.at([0.5, 1.0]).tolist() == [0.0, 1.0]


probability = st.floats(0.01, 1, allow_nan=False).map(lambda p: float(np.float32(p)))


@given(
    st.lists(probability, max_size=20),
    st.lists(st.one_of(probability, st.just(0.0)), min_size=1, max_size=8),
    st.integers(1, 5),
)
@settings(max_examples=120, deadline=None)
def test_both_scores_follow_the_definition(false_positives, lesion_scores, slides):
    # Scores that float32 holds exactly, so that mixed precision has no effect.
    lesions = len(lesion_scores)
    scores = np.array(lesion_scores, np.float32)
    official = froc_curve(false_positives, scores, lesions, slides, official=True)
    assert official.score() == pytest.approx(
        naive_score(false_positives, lesion_scores, lesions, slides, official=True), abs=1e-12
    )
    found = [score for score in lesion_scores if score > 0]
    corrected = froc_curve(false_positives, found, lesions, slides, official=False)
    assert corrected.score() == pytest.approx(
        naive_score(false_positives, found, lesions, slides, official=False), abs=1e-12
    )
    assert (np.diff(corrected.false_positives) <= 0).all()
    assert (np.diff(corrected.sensitivity) <= 0).all()


def test_the_script_distinguishes_equal_scores_of_two_precisions():
    # 0.8 as float32 is a little more than 0.8: the script finds a threshold between the two.
    found = [1, 1, 0, 0, 0.8, 0.8, 0]
    same = froc_curve([0.8, 0.6], found, 4, 2, official=True).score()
    mixed = froc_curve([0.8, 0.6], np.array(found, np.float32), 4, 2, official=True).score()
    assert (same, mixed) == (pytest.approx(23 / 24), 1.0)


def slide_hits(false_positives, best, itc) -> SlideHits:
    """A slide with a lesion for each of ``best`` (None: not found), and ``itc`` of isolated tumor cells."""
    count = len(best) + itc
    lesions = tuple(Lesion(i, 9, 9.0, 0.0, (0, 0, 3, 3), i > len(best)) for i in range(1, count + 1))
    seen = {i: None if p is None else Detection(p, 0, 0) for i, p in enumerate(best, start=1)}
    wrong = tuple(Detection(p, 0, 0) for p in false_positives)
    window = LesionMap(np.zeros((0, 0), np.int32), (0, 0), 32, lesions) if lesions else None
    return SlideHits("test_001", "test_001", wrong, seen, window)


def cohorts(score):
    """Slides with few or no detections, found and missed lesions and ITC."""
    found = st.one_of(score, st.none())
    slide = st.builds(slide_hits, st.lists(score, max_size=8), st.lists(found, max_size=3), st.integers(0, 1))
    return st.lists(slide, min_size=1, max_size=6)


def test_the_interval_resamples_slides_by_patient():
    generator = np.random.default_rng(0)
    slides = [
        replace(slide_hits(generator.random(3), [generator.random(), None][: n % 3], 0), patient=f"p{n // 2}")
        for n in range(24)
    ]
    options = EvaluationOptions(bootstrap_samples=20)
    found = froc(slides, options, official_hits=slides)
    drawn = Resamples([slide.patient for slide in slides], options)
    cohorts = [
        [slide for slide, group in zip(slides, drawn.group, strict=True) for _ in range(int(times[group]))]
        for times in drawn.counts
    ]
    alone = [froc(taken, QUICK, official_hits=taken) for taken in cohorts]
    for name in ("official", "corrected"):
        metric, scores = getattr(found, name), [getattr(one, name).value for one in alone]
        assert (metric.low, metric.high) == pytest.approx(tuple(np.percentile(scores, [2.5, 97.5])))


# 0.8 as float32 is a little more than 0.8, and the float64 numbers next to it round to it.
mixed = st.sampled_from([0.1, 0.3, 0.8, np.nextafter(0.8, 1), float(np.float32(0.8)), 0.80000002, 1.0])


def the_script(slides: list[SlideHits]) -> float:
    """The challenge's script line by line, with the comparisons of mixed types as in numpy 1."""
    wrong = [one.probability for slide in slides for one in slide.false_positives]
    found = [score for slide in slides for score in slide.official_scores]
    points = []
    for level in sorted(set(wrong + found), key=float)[1:]:
        above = sum(one >= float(level) for one in wrong), sum(one >= np.float32(level) for one in found)
        points.append(above)
    wrong_above, found_above = np.array([*points, (0, 0)]).T
    lesions = sum(len(slide.best) for slide in slides)
    return Curve(wrong_above / len(slides), found_above / lesions).score()


@given(cohorts(mixed))
@settings(max_examples=200, deadline=None)
def test_the_official_score_is_that_of_the_script_under_numpy_1(slides):
    if any(slide.best for slide in slides):
        assert froc(slides, QUICK, official_hits=slides).official.value == the_script(slides)


def test_a_score_without_detections_is_zero():
    lesions = lesions_of_geometry(shapely.box(0, 0, 4096, 4096), mpp=0.243)
    hits = [match("test_1", "a", [], lesions)]
    result = froc(hits, QUICK, official_hits=hits)
    assert (result.official.value, result.corrected.value) == (0.0, 0.0)


@pytest.mark.parametrize("mpp", [0.12, 0.226, 0.243, 0.5, 1.0, 7.776])
@pytest.mark.parametrize(("side_um", "itc"), [(130, True), (185, False)])
def test_a_lesion_is_measured_by_the_pixel_size_of_its_slide(mpp, side_um, itc):
    # The major axis of a square is 4 / sqrt(12) of its side: 150 and 214 um.
    side = side_um / mpp
    (lesion,) = lesions_of_geometry(shapely.box(1000, 1000, 1000 + side, 1000 + side), mpp=mpp).lesions
    assert lesion.length_um == pytest.approx(side_um * 4 / math.sqrt(12), abs=25)
    assert lesion.itc == itc


def test_a_lesion_larger_than_a_slide_is_refused():
    with pytest.raises(EvaluationError):
        lesions_of_geometry(shapely.box(0, 0, 40_000, 40_000), mpp=8.0)
