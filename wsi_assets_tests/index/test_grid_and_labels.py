"""The grid is the brute-force count; tumor shares are shapely's own areas."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_assets.annotations import read_annotation
from wsi_assets.index.coverage import cell_areas, is_tumor, tumor_fractions
from wsi_assets.index.patch_grid import grid, mask_fractions, starts

sides = st.integers(0, 90)
patch_sizes = st.integers(1, 40)
strides = st.integers(1, 60)


@settings(deadline=None)
@given(height=sides, width=sides, patch=patch_sizes, stride=strides)
def test_the_grid_holds_every_whole_patch_once_row_by_row(height, width, patch, stride):
    expected = [
        (y, x)
        for y in range(0, height, stride)
        if y + patch <= height
        for x in range(0, width, stride)
        if x + patch <= width
    ]
    assert [tuple(corner) for corner in grid(height, width, patch, stride).tolist()] == expected


def test_the_grid_of_the_small_aperio_region_has_the_published_size(real_data):
    expected = json.loads((real_data / "expected.json").read_text())["cmu_small_region_grid"]
    width, height = expected["dimensions_wh"]
    assert len(starts(width, 256, 256)) == expected["tile_256"]["cols_full"]
    assert len(starts(height, 256, 256)) == expected["tile_256"]["rows_full"]
    assert len(grid(height, width, 300, 300)) == expected["tile_300"]["full"]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 8),
    seed=st.integers(0, 1000),
    patch=st.integers(1, 30),
    stride=strides,
    scale=st.sampled_from([1 / 7, 0.25, 0.4, 1.0, 1.5]),
)
def test_tissue_shares_are_exact_areas_for_any_ratio_of_patch_to_mask_pixel(
    rows, columns, seed, patch, stride, scale
):
    mask = np.random.default_rng(seed).random((rows, columns)) < 0.5
    ys, xs = starts(int(rows / scale), patch, stride), starts(int(columns / scale), patch, stride)
    shares = mask_fractions(mask, ys, xs, patch, scale)
    pixels = [shapely.box(x, y, x + 1, y + 1) for y, x in np.argwhere(mask)]
    tissue = shapely.union_all(pixels) if pixels else shapely.MultiPolygon()
    corners = np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2) * scale
    y, x = corners[:, 0], corners[:, 1]
    boxes = shapely.box(x, y, x + patch * scale, y + patch * scale)
    expected = shapely.area(shapely.intersection(tissue, boxes)) / (patch * scale) ** 2
    np.testing.assert_allclose(shares.ravel(), expected, atol=1e-8)


@st.composite
def annotations(draw):
    """Valid multipolygons with holes; on whole, half or arbitrary coordinates, and reaching over the edge."""
    snap = draw(st.sampled_from([0.0, 0.5, 1.0]))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    shapes = []
    for _ in range(draw(st.integers(1, 5))):
        count = rng.integers(3, 25)
        angle = np.sort(rng.uniform(0, 2 * np.pi, count))
        reach = rng.uniform(1, 45, count)
        center = rng.uniform(-10, 110, 2)
        points = np.stack([center[0] + reach * np.cos(angle), center[1] + reach * np.sin(angle)], axis=1)
        points = np.round(points / snap) * snap if snap else points
        shapes.append(areal(shapely.make_valid(shapely.Polygon(points))))
    result = shapes[0]
    for i, shape in enumerate(shapes[1:]):
        result = result.difference(shape) if i % 2 == 0 else result.union(shape)
    return areal(result)


def areal(geometry):
    return shapely.MultiPolygon(
        [p for p in shapely.get_parts(geometry) if p.geom_type == "Polygon" and p.area]
    )


def shapely_fractions(geometry, corners, patch):
    y, x = corners[:, 0], corners[:, 1]
    return shapely.area(shapely.intersection(geometry, shapely.box(x, y, x + patch, y + patch))) / patch**2


@settings(max_examples=200, deadline=None)
@given(
    geometry=annotations(),
    patch=patch_sizes,
    stride=strides,
    size=st.tuples(st.integers(1, 110), st.integers(1, 110)),
)
def test_tumor_shares_equal_the_areas_of_shapely(geometry, patch, stride, size):
    corners = grid(*size, patch, stride)
    shares = tumor_fractions(geometry, starts(size[0], patch, stride), starts(size[1], patch, stride), patch)
    assert shares.size == len(corners)
    np.testing.assert_allclose(shares.ravel(), shapely_fractions(geometry, corners, patch), atol=2e-9)


@settings(max_examples=60, deadline=None)
@given(geometry=annotations())
def test_cell_areas_of_a_mesh_that_holds_the_annotation_add_up_to_its_area(geometry):
    lines = np.linspace(-100, 220, 37)
    assert cell_areas(geometry, lines, lines).sum() == pytest.approx(geometry.area, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(geometry=annotations(), patch=st.integers(2, 30))
def test_the_three_rules_agree_with_shapely(geometry, patch):
    corners = grid(100, 100, patch, patch)
    ys, xs = starts(100, patch, patch), starts(100, patch, patch)
    shares = tumor_fractions(geometry, ys, xs, patch).ravel()
    expected = shapely_fractions(geometry, corners, patch)
    centers = corners + patch / 2

    def labels(rule):
        return is_tumor(rule, 0.5, shares, geometry, corners, patch)

    clear = np.abs(expected - 0.5) > 1e-8
    assert np.array_equal(labels("fraction")[clear], (expected >= 0.5)[clear])
    clear = (expected == 0) | (expected > 1e-8)
    assert np.array_equal(labels("any")[clear], (expected > 0)[clear])
    on_annotation = shapely.distance(geometry.boundary, shapely.points(centers[:, ::-1])) < 1e-9
    inside = shapely.contains_xy(geometry, centers[:, 1], centers[:, 0])
    assert np.array_equal(labels("center")[~on_annotation], inside[~on_annotation])


def test_a_patch_half_covered_is_tumor_and_a_neighbor_that_only_touches_is_not():
    geometry = shapely.multipolygons([shapely.box(0, 0, 128, 256)])
    ys, xs = starts(256, 256, 256), starts(512, 256, 256)
    shares = tumor_fractions(geometry, ys, xs, 256)
    assert shares.tolist() == [[0.5, 0.0]]
    corners = grid(256, 512, 256, 256)
    for rule in ("fraction", "center", "any"):
        assert is_tumor(rule, 0.5, shares.ravel(), geometry, corners, 256).tolist() == [True, False]


def test_the_peer_patches_get_their_published_tumor_cover_and_labels(real_data):
    peers = defaultdict(list)
    for row in json.loads((real_data / "expected.json").read_text())["peer_patches"]:
        peers[row["slide"]].append(row)
    assert sum(map(len, peers.values())) == 89
    for slide, rows in peers.items():
        files = sorted((real_data / "annotations").glob(f"{slide}*.xml"))
        geometry = read_annotation(files[0]).geometry
        corners = np.array([(int(row["y0"]), int(row["x0"])) for row in rows])
        shares = np.array([tumor_fractions(geometry, y, x, 256)[0, 0] for y, x in corners[..., None]])
        cover = np.array([float(row["tumour_cover"]) for row in rows])
        assert np.abs(shares - cover).max() <= 0.01
        labels = is_tumor("any", 0.5, shares, geometry, corners, 256)
        assert labels.tolist() == [row["label"] == "1" for row in rows]
        centers = is_tumor("center", 0.5, shares, geometry, corners, 256)
        assert centers.tolist() == [row["centre_in_tumour"] == "1" for row in rows]
