"""The official CAMELYON16 annotations against their official masks."""

from __future__ import annotations

import json
import re

import pytest
import shapely

from wsi_assets.annotations import TumorRegions, read_annotation
from wsi_assets_tests.masks import rasterize

COUNTED = ["tumor_001", "tumor_002", "tumor_005", "tumor_012", "tumor_016"]


@pytest.fixture(scope="module")
def regions(real_data):
    return {path.stem: read_annotation(path) for path in sorted((real_data / "annotations").glob("*.xml"))}


@pytest.fixture(scope="module")
def expected(real_data):
    return json.loads((real_data / "expected.json").read_text())


@pytest.mark.parametrize("slide", COUNTED)
def test_area_is_that_of_the_polygons(regions, expected, slide):
    area = regions[slide].geometry.area / 1024
    assert area == pytest.approx(expected["polygon_area_over_1024"][slide], rel=0.005)


@pytest.mark.parametrize("slide", COUNTED)
def test_mask_at_level_5_has_the_official_number_of_pixels(regions, expected, slide):
    count = rasterize(regions[slide].geometry, 7000, 4000, 32).sum()
    assert count == pytest.approx(expected["official_mask_pixels_level5"][slide], rel=0.015)


def test_every_file_gives_valid_tumor_and_an_audit_that_adds_up(regions):
    assert len(regions) == 13
    for found in regions.values():
        assert found.geometry.is_valid
        assert found.geometry.area > 0
        assert TumorRegions.from_plain(found.to_plain()) == found
        for row in found.audit:
            assert row.action in {"kept", "repaired", "skipped"}
            # Real repairs mend small loops: none changes a ring by more than a hundred square pixels a point.
            assert abs(row.area_after - row.area_raw) <= 100 * row.points
            if row.action == "kept":
                assert row.area_after == pytest.approx(row.area_raw, rel=1e-9)


def test_every_ring_of_a_file_is_a_row(regions, real_data):
    for name, found in regions.items():
        text = (real_data / "annotations" / f"{name}.xml").read_text()
        assert len(found.audit) == len(re.findall("<Annotation ", text))


def test_the_ring_of_two_points_is_skipped(regions):
    skipped = [row for row in regions["tumor_054"].audit if row.action == "skipped"]
    assert [(row.points, row.area_after) for row in skipped] == [(2, 0)]


def test_the_slide_redrawn_as_splines_reads_as_tumor(regions):
    assert {row.shape_type for row in regions["tumor_009_spline"].audit} == {"Spline"}
    assert regions["tumor_009_spline"].geometry.area / 1024 == pytest.approx(830_663, rel=1e-4)


def test_decimal_commas_of_another_writer(real_data):
    found = read_annotation(real_data / "slides" / "downsample_4_0058.xml")
    assert shapely.area(found.geometry) > 10_000
    assert found.audit[0].note == "in no group"
