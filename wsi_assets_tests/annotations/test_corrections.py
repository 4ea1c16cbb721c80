"""What comes back from QuPath: a slide's annotation is exported, edited, and corrected to the last pixel."""

from __future__ import annotations

import json
import random

import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely import affinity

from wsi_assets.annotations import AnnotationOptions, annotation_geojson, read_annotation
from wsi_assets.annotations.geojson import PREDICTION
from wsi_assets.errors import AnnotationError
from wsi_assets_tests.annotations.files import annotation, asap, feature, square
from wsi_assets_tests.masks import rasterize

SIDE = 24
GROUPS = {"add": "Tumor", "remove": "Not tumor", "ignore": "Ignore*"}
BOX = st.tuples(*[st.integers(0, SIDE - 6)] * 2, *[st.integers(1, 6)] * 2)


def drawn(area: shapely.Geometry, group: str | None, **properties) -> dict:
    """An annotation as QuPath exports it."""
    one = json.loads(shapely.to_geojson(area))
    one = feature(one["type"], one["coordinates"], group and {"name": group, "color": [1, 2, 3]})
    one["properties"] |= properties
    return one


def box(x, y, width, height) -> shapely.Polygon:
    return shapely.box(x, y, x + width, y + height)


def written(folder, features, name="fix.geojson"):
    path = folder / name
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def exported(regions) -> list[dict]:
    return json.loads(annotation_geojson(regions, "a", (SIDE, SIDE)))["features"]


def mask(geometry):
    return rasterize(geometry, SIDE, SIDE, 1)


def corrected(folder, features, base=None, **options):
    return read_annotation(base, AnnotationOptions(**options), correction=written(folder, features))


@given(
    base=st.lists(st.tuples(st.sampled_from(["_0", "_2"]), BOX), max_size=4),
    fixes=st.lists(st.tuples(st.sampled_from(list(GROUPS)), BOX), max_size=6),
    order=st.randoms(),
)
def test_corrections_add_then_remove_then_ignore_whatever_their_order(tmp_path_factory, base, fixes, order):
    folder = tmp_path_factory.getbasetemp()
    rings = [annotation(box(*one).exterior.coords[:-1], group) for group, one in base]
    path = asap(folder, rings) if base else None
    want = mask(read_annotation(path).geometry) if path else mask(shapely.MultiPolygon())
    for how in GROUPS:
        for one in (mask(box(*one)) for kind, one in fixes if kind == how):
            want = want | one if how == "add" else want & ~one
    order.shuffle(fixes)
    regions = corrected(folder, [drawn(box(*one), GROUPS[kind]) for kind, one in fixes], path)
    assert (mask(regions.geometry) == want).all()
    assert regions.geometry.area == pytest.approx(want.sum())
    assert not (mask(regions.geometry) & mask(regions.ignored)).any()
    again = read_annotation(None, correction=written(folder, exported(regions)))
    for area in ("geometry", "ignored"):
        assert getattr(again, area).equals(getattr(regions, area))
    assert {row.changed for row in again.audit if row.role == "none"} == {0.0}


def test_an_edited_copy_replaces_the_annotation(tmp_path):
    """Moved, deleted, added and ignored, in an export; and once more in the export of that."""
    left, right, top = square(0, 0, 6), square(12, 0, 6), square(0, 12, 6)
    base = asap(tmp_path, [annotation(left), annotation(right), annotation(top, "Tumor")])
    features = exported(read_annotation(base))
    frame, *tumor = features
    assert frame["properties"]["isLocked"]
    assert len(tumor) == 3
    by_corner = {shapely.geometry.shape(one["geometry"]).bounds[:2]: one for one in tumor}
    moved = drawn(box(2, 1, 6, 6), "Tumor")
    kept, new = by_corner[0, 12], drawn(box(20, 20, 2, 2), "Tumor")
    ignored = drawn(box(0, 15, 6, 3), "Ignore*")
    edits = [frame, moved, kept, new, ignored]
    random.Random(0).shuffle(edits)
    regions = corrected(tmp_path, edits, base)
    assert regions.geometry.area == 36 + 18 + 4
    assert regions.ignored.area == 18
    by_area = {(row.role, row.area_after): row.changed for row in regions.audit if row.changed is not None}
    assert by_area["tumor", 36.0] in (0.0, 16.0)  # kept, moved
    assert by_area["tumor", 4.0] == 4
    assert by_area["ignore", 18.0] == 18
    (copy,) = [row for row in regions.audit if row.action == "copy"]
    assert copy.changed == 16 + 36, "what the moved one left, and the deleted one"
    assert regions.notices == ()
    back = [one for one in exported(regions) if one["properties"]["classification"]["name"] != "Ignore*"]
    assert corrected(tmp_path, back, base).ignored.is_empty
    alone = corrected(tmp_path, edits)
    assert alone.geometry.equals(regions.geometry)


def test_a_real_annotation_is_exported_and_read_back_exactly(tmp_path, real_data):
    base = real_data / "annotations" / "tumor_001.xml"
    before = read_annotation(base)
    features = exported(before)
    again = corrected(tmp_path, features, base)
    assert again.geometry.equals(before.geometry)
    assert again.geometry.area == before.geometry.area
    first = before.geometry.geoms[0]
    shifted = affinity.translate(first, 900)
    rest = [one for one in features if one["geometry"] != features[1]["geometry"]]
    edited = corrected(tmp_path, [*rest, drawn(shifted, "Tumor")], base)
    expected = shapely.union_all([*list(before.geometry.geoms)[1:], shifted])
    assert shapely.symmetric_difference(edited.geometry, expected).area < 1e-6 * expected.area
    hole = shapely.box(*first.centroid.buffer(200).bounds)
    cut = corrected(tmp_path, [drawn(hole, "normal")], base)
    assert cut.geometry.area == pytest.approx(before.geometry.difference(hole).area)
    (row,) = [row for row in cut.audit if row.changed is not None]
    assert row.changed == pytest.approx(before.geometry.intersection(hole).area, abs=0.1)


def test_a_correction_adds_tumor_also_over_an_exclusion(tmp_path):
    base = asap(tmp_path, [annotation(square(0, 0, 10)), annotation(square(2, 2, 4), "_2")])
    regions = corrected(tmp_path, [drawn(box(2, 2, 4, 2), "Tumor")], base)
    assert regions.geometry.area == 100 - 8
    assert regions.excluded.area == 8


@pytest.mark.parametrize("group", ["Normal", "normal", "not tumour", "Other", "_2", "negative"])
def test_classes_that_remove_tumor(tmp_path, group):
    base = asap(tmp_path, [annotation(square(0, 0, 10))])
    assert corrected(tmp_path, [drawn(box(0, 0, 5, 10), group)], base).geometry.area == 50


@pytest.mark.parametrize("group", ["Ignore*", "ignore", "Exclude", "Ignore 2"])
def test_classes_that_ignore_an_area_in_corrections_and_annotations(tmp_path, group):
    base = asap(tmp_path, [annotation(square(0, 0, 10)), annotation(square(0, 0, 5), group)])
    own = read_annotation(base)
    fixed = corrected(tmp_path, [drawn(box(0, 0, 10, 2), group)], base)
    assert (own.geometry.area, own.ignored.area) == (75, 25)
    assert (fixed.geometry.area, fixed.ignored.area) == (65, 35)


def test_detections_predictions_and_unclassified_areas_are_no_corrections(tmp_path):
    base = asap(tmp_path, [annotation(square(0, 0, 10))])
    band = drawn(box(5, 0, 9, 9), "Tumor", name=f"{PREDICTION} 0.8 to 0.9", isLocked=True)
    bow_tie = shapely.Polygon([(5, 0), (14, 9), (14, 0), (5, 9)])
    cell = drawn(bow_tie, "Tumor", objectType="detection")
    point = feature("Point", [3, 3], {"name": "Tumor"})
    stroma = drawn(box(1, 1, 3, 3), "Stroma")
    guessed = {"ungrouped": "tumor", "unknown_group": "tumor"}
    regions = corrected(
        tmp_path, [band, cell, point, stroma, drawn(box(12, 12, 4, 4), None)], base, **guessed
    )
    assert regions.geometry.area == 100
    assert len(regions.notices) == 4
    assert all(line.startswith("corrections ") for line in regions.notices)
    accepted = drawn(box(10, 0, 4, 9), "Tumor", name=f"{PREDICTION} 0.8 to 0.9")
    assert corrected(tmp_path, [accepted], base).geometry.area == 136


def test_an_export_can_be_used_as_the_annotation(tmp_path):
    path = written(tmp_path, exported(None), "slide.geojson")
    with pytest.raises(AnnotationError):
        read_annotation(path)
    regions = read_annotation(asap(tmp_path, [annotation(square(3, 3, 5))]))
    assert read_annotation(written(tmp_path, exported(regions))).geometry.equals(regions.geometry)


def test_an_export_counts_from_the_corner_that_qupath_counts_from(tmp_path):
    regions = read_annotation(asap(tmp_path, [annotation(square(100, 200, 10))]))
    path = tmp_path / "s.geojson"
    path.write_text(annotation_geojson(regions, "s", (1000, 1000), (40, 50)))
    options = AnnotationOptions(frame="bounds")
    again = read_annotation(None, options, correction=path, bounds=(40, 50, 800, 800))
    assert again.geometry.equals(regions.geometry)


def test_a_broken_correction_is_one_line_that_names_it(tmp_path):
    base = asap(tmp_path, [annotation(square(0, 0, 10))])
    path = tmp_path / "fix.geojson"
    for content in ("", "{", '{"type": "Nothing"}', json.dumps(drawn(box(0, 0, 1, 1), "Tumor"))[:-20]):
        path.write_text(content)
        with pytest.raises(AnnotationError) as caught:
            read_annotation(base, correction=path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
