"""Repair, union, subtraction, audit and rasterising, as facts of drawn annotations."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_assets.annotations import AnnotationOptions, TumorRegions, read_annotation
from wsi_assets.annotations.annotation import Annotation
from wsi_assets.annotations.regions import unite
from wsi_assets_tests.annotations.files import SQUARE, annotation, asap, closed, feature, geojson, square


def drawn(points, group="Tumor"):
    return Annotation("", (group,), "Polygon", True, np.array(points, dtype=float))


def united(*annotations):
    return unite(annotations, AnnotationOptions())


def nonzero_area(points: np.ndarray) -> float:
    """Area the closed line winds round, by noding it and counting turns: an independent reference."""
    ring = shapely.LineString(np.vstack([points, points[:1]]))
    total = 0.0
    for face in shapely.get_parts(shapely.polygonize([shapely.union_all([ring])])):
        x, y = face.representative_point().coords[0]
        (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
        side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        turns = ((y0 <= y) & (y1 > y) & (side > 0)).sum() - ((y0 > y) & (y1 <= y) & (side < 0)).sum()
        total += face.area if turns else 0.0
    return total


def test_a_bow_tie_keeps_its_area():
    regions = united(drawn([(0, 0), (10, 10), (10, 0), (0, 10)]))
    assert regions.geometry.area == 50
    assert (regions.audit[0].action, regions.audit[0].area_raw, regions.audit[0].area_after) == (
        "repaired",
        0,
        50,
    )


def test_a_line_that_crosses_itself_makes_no_hole():
    twice_round = [*SQUARE, (0, 0), (6, 0), (6, 6), (0, 6)]
    assert united(drawn(twice_round)).geometry.area == 100


@pytest.mark.parametrize(
    "points",
    [
        [(0, 1), (1, 1), (0, 1), (0, 0), (1, 1)],
        [(0, 1), (1, 1), (0, 0), (0, 1), (2, 0), (0, 1), (1, 1), (1, 1), (1, 2), (2, 0)],
        [(1, 1), (0, 2), (0, 2), (1, 1), (2, 1), (2, 1), (1, 1), (1, 0), (2, 1)],
        [(1, 2), (1, 0), (0, 0), (1, 2), (0, 1), (2, 1), (1, 2), (1, 1), (0, 2), (2, 1), (1, 2), (2, 0)],
    ],
)
def test_a_line_drawn_forth_and_back_costs_no_area_wherever_the_ring_begins(points):
    enclosed = nonzero_area(np.array(points, dtype=float))
    for start in range(len(points)):
        regions = united(drawn(points[start:] + points[:start]))
        assert regions.geometry.is_valid
        assert regions.geometry.area == pytest.approx(enclosed)


def test_a_ring_drawn_as_a_keyhole_keeps_its_hole():
    keyhole = [(0, 0), (10, 0), (10, 10), (0, 10), (0, 0), (4, 4), (4, 6), (6, 6), (6, 4), (4, 4)]
    assert united(drawn(keyhole)).geometry.area == pytest.approx(100 - 4)


def test_nested_and_overlapping_tumor_rings_unite_whatever_their_direction():
    outer, inner, overlapping = SQUARE, square(2, 2, 3), square(5, 5, 10)
    for nested in (inner, inner[::-1]):
        regions = united(drawn(outer), drawn(nested), drawn(overlapping[::-1]))
        assert regions.geometry.area == 100 + 100 - 25
        assert not any(part.interiors for part in regions.geometry.geoms)


def test_an_exclusion_partly_outside_the_tumor_cuts_only_the_part_inside():
    regions = united(drawn(square(8, 8, 4), "_2"), drawn(SQUARE), drawn(square(9, 9, 5), "_2"))
    assert regions.geometry.area == 96
    assert regions.excluded.area == 16 + 25 - 9


@pytest.mark.parametrize(
    "points", [[], [(1, 1)], [(1, 1), (5, 5)], [(1, 1), (5, 5), (1, 1), (5, 5)], [(0, 0), (4, 4), (9, 9)]]
)
def test_a_ring_without_area_is_skipped_with_a_note(points):
    regions = united(drawn(np.array(points).reshape(-1, 2)))
    assert regions.geometry.is_empty
    assert (regions.audit[0].action, regions.audit[0].points) == ("skipped", len(points))


def test_repeated_points_cost_nothing():
    regions = united(drawn([(0, 0), (10, 0), (10, 0), (10, 10), (0, 10), (0, 10)]))
    assert (regions.geometry.area, regions.audit[0].action) == (100, "kept")


def test_a_hole_partly_outside_its_polygon_cuts_only_the_part_inside(tmp_path):
    path = geojson(tmp_path, feature("Polygon", [closed(SQUARE), closed(square(8, 8, 4))]))
    regions = read_annotation(path)
    assert regions.geometry.area == 96
    assert regions.audit[0].action == "repaired"


@pytest.mark.parametrize("shell", [SQUARE, [(0, 0), (10, 10), (10, 0), (0, 10)]])
@pytest.mark.parametrize("direction", [1, -1])
def test_a_hole_beside_its_polygon_adds_nothing(tmp_path, shell, direction):
    beside = closed(square(20, 20, 7)[::direction])
    alone = read_annotation(geojson(tmp_path, feature("Polygon", [closed(shell)])))
    regions = read_annotation(geojson(tmp_path, feature("Polygon", [closed(shell), beside])))
    assert regions.geometry.area == alone.geometry.area
    assert regions.audit[0].action == "repaired"


def test_holes_that_overlap_are_cut_out_once(tmp_path):
    rings = [closed(SQUARE), closed(square(2, 2, 2)), closed(square(3, 3, 3))]
    assert read_annotation(geojson(tmp_path, feature("Polygon", rings))).geometry.area == 100 - 4 - 9 + 1


def test_the_audit_is_a_table_of_plain_values(tmp_path):
    (row,) = read_annotation(asap(tmp_path, [annotation(SQUARE, kind="Spline")])).to_plain()["audit"]
    assert {type(value) for value in row.values()} <= {str, int, float, type(None)}


def test_an_empty_file_of_asap_has_no_tumor(tmp_path):
    regions = read_annotation(asap(tmp_path, []))
    assert regions.geometry.is_empty
    assert regions.geometry.geom_type == "MultiPolygon"
    assert regions.audit == ()


def test_the_plain_form_restores_the_regions_exactly(tmp_path):
    path = asap(
        tmp_path, [annotation([(1 / 3, 0.1), (10 * math.pi, 0), (7, 1e5 / 7)]), annotation(SQUARE, "_2")]
    )
    regions = read_annotation(path)
    again = TumorRegions.from_plain(pickle.loads(pickle.dumps(regions.to_plain())))
    assert again.audit == regions.audit
    assert shapely.to_wkb(again.geometry) == shapely.to_wkb(regions.geometry)
    assert shapely.to_wkb(again.excluded) == shapely.to_wkb(regions.excluded)


coordinate = st.integers(0, 12) | st.floats(0, 12, width=32)
ring = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=12)


@settings(max_examples=150, deadline=None)
@given(ring)
def test_any_ring_encloses_its_area_by_the_non_zero_rule(points):
    regions = united(drawn(points))
    assert regions.geometry.is_valid
    assert regions.geometry.area == pytest.approx(
        nonzero_area(np.array(points, dtype=float)), rel=1e-6, abs=1e-6
    )
