"""Positions of heatmaps and detections on the slide, and the files for viewers."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_assets.annotations import read_annotation
from wsi_assets.errors import EvaluationError
from wsi_assets.evaluation.heatmap import Detection, detections_csv, find_detections, heatmap_of
from wsi_assets.evaluation.heatmap_files import heatmap_geojson, regions_geojson, write_likelihood_tiff
from wsi_assets.evaluation.options import EvaluationOptions
from wsi_assets.evaluation.predictions import read_predictions
from wsi_assets.index import IndexOptions, build_indices
from wsi_assets.patches.patch_reader import PatchReader
from wsi_assets_tests.evaluation.synthetic import entry, grid_entry
from wsi_assets_tests.slides.made import picture, write_pyramid

SHARP = EvaluationOptions(detection_smoothing_um=0, detection_radius_um=0, detection_threshold=0.5)


def map_of(plain):
    return heatmap_of(read_predictions({"test_1": plain})[0])


@given(
    st.sampled_from([64, 128, 256]),
    st.sampled_from([32, 64, 128, 300]),
    st.sampled_from([1.0, 4.0, 4.0058]),
    st.integers(0, 5),
    st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_a_cell_lies_in_the_middle_of_its_patch(patch_size, stride, downsample, row, col):
    places = [(row * stride, col * stride, 0), ((row + 3) * stride, (col + 1) * stride, 1)]
    shape = {"patch_size": patch_size, "stride": stride, "downsample": downsample}
    heatmap = map_of(entry("test_1", places, [0.25, 0.75], **shape))
    known = np.argwhere(np.isfinite(heatmap.probability))
    for (r, c), (y, x, _) in zip(known, places, strict=True):
        middle = ((x + patch_size / 2) * downsample, (y + patch_size / 2) * downsample)
        assert heatmap.centers(r, c) == pytest.approx(middle)
    assert heatmap.cell == pytest.approx(min(stride, patch_size) * downsample)
    assert np.isnan(heatmap.probability).sum() == heatmap.probability.size - 2


def test_the_heatmap_lies_on_its_patches_at_a_magnification_between_levels(tmp_path):
    """Each cell holds the mean of its patch, so it must be that of the pixels it covers on the slide."""
    tissue = picture(900, 1100, seed=3)
    write_pyramid(tmp_path / "test_1.tif", [tissue], compression=None, photometric="rgb", mpp=0.2328)
    options = IndexOptions(patch_size=24, min_tissue=0.05)
    index = build_indices(tmp_path, None, ["20x"], options=options).levels["20x"].index
    (plain,) = index.values()
    assert plain["step"] == pytest.approx(0.5 / 0.2328)
    with PatchReader(plain["slide_path"], 0) as reader:
        coords = np.array([patch[:2] for patch in plain["patches"]])
        patches = dict(reader.read(coords, 24, plain["step"]))
    probs = [patches[number].pixels.mean() / 255 for number in range(len(coords))]
    heatmap = map_of({**plain, "probs": probs, "preds": [0] * len(probs)})
    height, width = heatmap.probability.shape
    assert min(height, width) > 10
    for row, col in np.argwhere(np.isfinite(heatmap.probability)):
        x, y = heatmap.centers(row, col)
        place = int(y - heatmap.cell / 2), int(x - heatmap.cell / 2)
        covered = tissue[
            place[0] : int(place[0] + heatmap.cell) + 2, place[1] : int(place[1] + heatmap.cell) + 2
        ]
        assert heatmap.probability[row, col] * 255 == pytest.approx(covered.mean(), abs=2)


def test_patches_off_the_grid_are_refused():
    with pytest.raises(EvaluationError):
        map_of(entry("test_1", [(0, 0, 0), (0, 100, 0)], [0.1, 0.2]))


def test_a_slide_without_patches_has_no_heatmap_and_an_empty_file():
    assert map_of(entry("test_1", [], [])) is None
    assert json.loads(heatmap_geojson(None))["features"] == []


def test_a_single_peak_is_found_at_its_level_0_center():
    probability = np.full((9, 9), 0.05)
    probability[4, 6] = 0.9
    heatmap = map_of(grid_entry("test_1", probability, level=2, downsample=4.0))
    (found,) = find_detections(heatmap, SHARP, 0.243)
    assert (found.x, found.y) == (int(6.5 * 1024), int(4.5 * 1024))
    assert found.probability == pytest.approx(0.9)


def test_a_peak_suppresses_lower_peaks_only_within_the_radius():
    probability = np.zeros((1, 12))
    probability[0, [2, 4, 9]] = 0.9, 0.8, 0.7
    heatmap = map_of(grid_entry("test_1", probability))
    cell_um = 256 * 0.243
    options = SHARP.model_copy(update={"detection_radius_um": 2.01 * cell_um})
    assert [round(found.probability, 3) for found in find_detections(heatmap, options, 0.243)] == [0.9, 0.7]
    narrow = SHARP.model_copy(update={"detection_radius_um": 1.99 * cell_um})
    assert len(find_detections(heatmap, narrow, 0.243)) == 3


def test_a_saturated_lesion_is_marked_in_its_middle():
    probability = np.full((21, 21), 0.0)
    probability[6:15, 6:15] = 1.0
    (found,) = find_detections(
        map_of(grid_entry("test_1", probability)), EvaluationOptions(detection_radius_um=600), 0.243
    )
    assert (found.x // 256, found.y // 256) == (10, 10)


def test_smoothing_lowers_a_lone_cell_but_not_the_edge_of_the_tissue():
    alone, edge = np.full((9, 9), 0.0), np.full((9, 9), 0.8)
    alone[4, 4] = 1.0
    options = EvaluationOptions(detection_smoothing_um=62, detection_threshold=0.0, detection_radius_um=0)
    lowered = find_detections(map_of(grid_entry("test_1", alone)), options, 0.243)[0].probability
    # A Gaussian of one cell keeps about 1 / (2 pi) of a lone cell.
    assert lowered == pytest.approx(1 / (2 * np.pi), rel=0.05)
    kept = find_detections(map_of(grid_entry("test_1", edge)), options, 0.243)
    assert all(found.probability == pytest.approx(0.8) for found in kept)


@pytest.mark.parametrize("smoothing_um", [10_000, 1e12])
def test_very_wide_smoothing_gives_the_mean_of_the_slide(smoothing_um):
    probability = np.random.default_rng(0).random((9, 14))
    options = EvaluationOptions(detection_threshold=0.0, detection_radius_um=0)
    options = options.model_copy(update={"detection_smoothing_um": smoothing_um})
    found = find_detections(map_of(grid_entry("test_1", probability)), options, 0.243)
    assert [one.probability for one in found] == pytest.approx([probability.mean()] * 126, rel=1e-2)


def test_an_unreadable_patch_is_no_detection_and_does_not_lower_its_neighbors():
    probability = np.full((5, 5), 0.8)
    probability[2, 2] = np.nan
    options = EvaluationOptions(detection_smoothing_um=62, detection_threshold=0.0, detection_radius_um=0)
    found = find_detections(map_of(grid_entry("test_1", probability)), options, 0.243)
    assert len(found) == 24
    assert all(one.probability == pytest.approx(0.8) for one in found)


@given(st.integers(0, 10_000), st.floats(0, 400))
@settings(max_examples=40, deadline=None)
def test_no_two_detections_lie_within_the_radius_and_every_peak_is_covered(seed, radius):
    probability = np.random.default_rng(seed).random((12, 9)).round(1)
    options = SHARP.model_copy(update={"detection_radius_um": radius})
    heatmap = map_of(grid_entry("test_1", probability))
    found = find_detections(heatmap, options, 0.243)
    places = np.array([(one.x, one.y) for one in found], float).reshape(-1, 2)
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1)) * 0.243
    assert (apart[~np.eye(len(found), dtype=bool)] > radius).all()
    rows, cols = np.nonzero(heatmap.probability >= 0.5)
    x, y = heatmap.centers(rows, cols)
    for at_x, at_y, value in zip(x, y, heatmap.probability[rows, cols], strict=True):
        near = np.hypot(places[:, 0] - at_x, places[:, 1] - at_y) * 0.243 <= radius + 1e-6
        assert any(one.probability >= value for one, is_near in zip(found, near, strict=True) if is_near)


def test_the_csv_has_the_format_of_the_challenge():
    found = (Detection(0.9375, 12, 34), Detection(1 / 3, 5, 6))
    text = detections_csv(found)
    # As its script does: no header is skipped, the coordinates are whole numbers.
    rows = [line.rstrip().split(",") for line in text.splitlines()]
    assert [(float(p), int(x), int(y)) for p, x, y in rows] == [(0.9375, 12, 34), (1 / 3, 5, 6)]
    assert detections_csv(()) == ""


@pytest.mark.parametrize(("stride", "patch_size"), [(256, 256), (128, 256), (300, 256)])
def test_geojson_covers_the_cells_of_each_band_at_level_0(stride, patch_size):
    probability = np.array([[0.05, 0.15, 0.95], [np.nan, 0.19, 1.0]])
    shape = {"stride": stride, "patch_size": patch_size, "downsample": 2.0}
    heatmap = map_of(grid_entry("test_1", probability, **shape))
    features = json.loads(heatmap_geojson(heatmap))["features"]
    assert [feature["properties"]["name"][-10:] for feature in features] == ["0.1 to 0.2", "0.9 to 1.0"]
    for feature, col in zip(features, (1, 2), strict=True):
        area = shapely.from_geojson(json.dumps(feature["geometry"]))
        assert area.is_valid
        assert area.area == pytest.approx(2 * heatmap.cell**2)
        for row in (0, 1):
            assert area.contains(shapely.Point(*heatmap.centers(row, col)))


def test_predicted_regions_count_as_annotation_only_after_they_are_unlocked(tmp_path):
    heatmap = map_of(grid_entry("test_1", np.array([[0.9, 0.8, 0.1], [np.nan, 0.1, 0.9]])))
    path = tmp_path / "test_1.geojson"
    path.write_text(regions_geojson(heatmap, find_detections(heatmap, SHARP, 0.243), 0.8))
    assert read_annotation(None, correction=path).geometry.is_empty
    content = json.loads(path.read_text())
    for feature in content["features"]:
        feature["properties"]["isLocked"] = False
    path.write_text(json.dumps(content))
    accepted = read_annotation(None, correction=path).geometry
    assert len(accepted.geoms) == 2
    assert accepted.area == pytest.approx(3 * heatmap.cell**2)


def test_the_tiff_lies_over_the_slide_as_asap_scales_it(tmp_path):
    probability = np.random.default_rng(0).random((30, 40)).astype(np.float32)
    heatmap = map_of(grid_entry("test_1", probability))
    height, width = 8000, 10_500
    write_likelihood_tiff(tmp_path / "map.tif", heatmap, (height, width), 0.25)
    with tifffile.TiffFile(tmp_path / "map.tif") as file:
        base = file.pages[0]
        scale = width // base.imagewidth
        assert scale == height // base.imagelength > 1
        assert base.is_tiled
        sizes = [page.shape for page in file.pages]
        assert all(lower[0] <= -(-upper[0] // 2) for upper, lower in pairwise(sizes))
        image = base.asarray()
        assert base.tags["XResolution"].value[0] / base.tags["XResolution"].value[1] == pytest.approx(
            1e4 / (0.25 * scale), rel=1e-6
        )
    for row, col in ((0, 0), (7, 31), (29, 39)):
        x, y = heatmap.centers(row, col)
        assert image[int(y) // scale, int(x) // scale] == probability[row, col]
    assert image[30 * 256 // scale + 1 :].max(initial=0) == 0


def test_a_small_region_stays_visible_in_the_lowest_pyramid_level(tmp_path):
    patches = [(0, 0, 0), (7 * 64, 31 * 64, 1)]
    heatmap = map_of(entry("test_1", patches, [0.1, 0.9], patch_size=64, stride=64))
    write_likelihood_tiff(tmp_path / "map.tif", heatmap, (40_960, 40_960), None)
    with tifffile.TiffFile(tmp_path / "map.tif") as file:
        hottest = [page.asarray().max() for page in file.pages]
    assert len(hottest) == 3
    assert hottest == pytest.approx([0.9] * len(hottest))
