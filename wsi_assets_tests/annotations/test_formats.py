"""What ASAP's XML and QuPath's GeoJSON say, and what is refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from wsi_assets.annotations import AnnotationOptions, read_annotation
from wsi_assets.errors import AnnotationError
from wsi_assets_tests.annotations.files import SQUARE, annotation, asap, closed, feature, geojson, square


@pytest.mark.parametrize("kind", ["Polygon", "Spline", "Rectangle", "polygon", "", "Freehand"])
def test_any_type_except_dots_and_lines_encloses_an_area(tmp_path, kind):
    assert read_annotation(asap(tmp_path, [annotation(SQUARE, kind=kind)])).geometry.area == 100


@pytest.mark.parametrize("kind", ["Dot", "PointSet", "PolyLine", "Measurement"])
def test_dots_and_lines_are_reported_as_not_areal(tmp_path, kind):
    regions = read_annotation(asap(tmp_path, [annotation(SQUARE, kind=kind), annotation(square(20, 0, 3))]))
    assert regions.geometry.area == 9
    assert [row.action for row in regions.audit] == ["not areal", "kept"]
    assert [kind in notice for notice in regions.notices] == [True]


@pytest.mark.parametrize("kind", ["Dot", "PolyLine"])
def test_a_file_in_which_nothing_encloses_an_area_is_refused(tmp_path, kind):
    region = annotation(square(20, 0, 3), group="None")
    for others in ([], [region]):
        with pytest.raises(AnnotationError):
            read_annotation(asap(tmp_path, [annotation(SQUARE, kind=kind), *others]))
    assert read_annotation(asap(tmp_path, [])).geometry.is_empty  # looked through, and nothing was drawn


def test_a_rectangle_may_have_two_opposite_corners(tmp_path):
    regions = read_annotation(asap(tmp_path, [annotation([(10, 40), (2, 20)], kind="Rectangle")]))
    assert regions.geometry.bounds == (2, 20, 10, 40)
    assert regions.geometry.area == 160


SNIPPET = """
<Annotation PartOfGroup="Tumor">
    <Coordinates>
        <Coordinate X="1234.5" Y="5678.9"/>
        <Coordinate X="1334.5" Y="5678.9"/>
        <Coordinate X="1334.5" Y="5778.9"/>
        <Coordinate X="1234.5" Y="5778.9"/>
    </Coordinates>
</Annotation>
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("<Annotations>", "</Annotations>"),
        ("<root><list>", "</list></root>"),
        (
            '<ASAP_Annotations xmlns="http://asap"><Annotations>',
            "</Annotations></ASAP_Annotations>",
        ),
    ],
)
def test_an_untyped_annotation_under_any_root_gives_its_area(tmp_path, before, after):
    path = tmp_path / "slide.xml"
    path.write_text(before + SNIPPET + after)
    regions = read_annotation(path)
    assert regions.geometry.area == pytest.approx(100 * 100)
    assert [(row.role, row.action) for row in regions.audit] == [("tumor", "kept")]


def test_decimal_commas_are_decimal_points(tmp_path):
    path = asap(tmp_path, [annotation([("0,5", "0"), ("10,5", "0"), ("10,5", "2,25"), ("0,5", "2,25")])])
    assert read_annotation(path).geometry.bounds == (0.5, 0, 10.5, 2.25)


def test_points_are_in_the_order_of_their_attribute_order(tmp_path):
    drawn = [(0, 0), (10, 0), (10, 10), (5, 2), (0, 10)]
    points = [(i, drawn[i]) for i in (2, 0, 4, 1, 3)]  # as the file has them, they would cross
    coordinates = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in points)
    body = (
        f'<Annotation Type="Polygon" PartOfGroup="_0"><Coordinates>{coordinates}</Coordinates></Annotation>'
    )
    regions = read_annotation(asap(tmp_path, [body]))
    assert (regions.geometry.area, regions.audit[0].action) == (60, "kept")


@pytest.mark.parametrize("side", ["1e1", "1.0E+01", "1,0e1", "+10", "010", " 10 ", "10."])
def test_numbers_of_any_notation_are_read(tmp_path, side):
    path = asap(tmp_path, [annotation([(-5, -5), (side, -5), (side, side), (-5, side)])])
    assert read_annotation(path).geometry.bounds == (-5, -5, 10, 10)


@pytest.mark.parametrize("kind", ["Polygon", "Spline"])
@pytest.mark.parametrize("points", [[], [(0, 0)], [(0, 0), (10, 20)]])
def test_an_annotation_of_fewer_than_three_points_is_skipped_alone(tmp_path, kind, points):
    regions = read_annotation(asap(tmp_path, [annotation(points, kind=kind), annotation(SQUARE)]))
    assert regions.geometry.area == 100
    assert [row.action for row in regions.audit] == ["skipped", "kept"]


@pytest.mark.parametrize("group", ["_0", "_1", "TUMOR", " tumor ", "Metastases", "metastasis"])
def test_camelyons_tumor_groups_are_known_without_regard_to_case(tmp_path, group):
    assert read_annotation(asap(tmp_path, [annotation(SQUARE, group)])).audit[0].role == "tumor"


@pytest.mark.parametrize("group", ["_2", "exclusion", "NEGATIVE", "Normal"])
def test_camelyons_exclusion_groups_cut_out_of_the_tumor(tmp_path, group):
    path = asap(tmp_path, [annotation(SQUARE), annotation(square(2, 2, 3), group)])
    assert read_annotation(path).geometry.area == 100 - 9


def test_annotations_in_no_group_are_tumor_only_if_the_file_has_no_groups(tmp_path):
    region = annotation(square(-10, -10, 50), "None")
    alone = read_annotation(asap(tmp_path, [region]))
    assert (alone.geometry.area, alone.audit[0].role) == (2500, "tumor")
    ignored = read_annotation(asap(tmp_path, [region]), AnnotationOptions(ungrouped="ignore"))
    assert (ignored.geometry.area, ignored.audit[0].action) == (0, "ignored")
    beside = read_annotation(asap(tmp_path, [region, annotation(SQUARE, "Tumor")]))
    assert (beside.geometry.area, beside.audit[0].action) == (100, "ignored")
    for regions in (alone, beside):
        (notice,) = regions.notices
        assert "2,500" in notice


@pytest.mark.parametrize("group", ["Tumour", "tumor_2", "Tumor 3", "TUMOUR-1", "metastases_12"])
def test_spellings_and_numbered_copies_of_a_known_group_are_known(tmp_path, group):
    regions = read_annotation(
        asap(tmp_path, [annotation(SQUARE, "Tumor"), annotation(square(20, 0, 3), group)])
    )
    assert (regions.geometry.area, regions.unknown_groups) == (109, ())


def test_an_unknown_group_is_ignored_beside_known_ones_and_refused_alone(tmp_path):
    necrosis = annotation(square(20, 0, 3), "Necrosis")
    beside = read_annotation(asap(tmp_path, [annotation(SQUARE), necrosis]))
    assert (beside.geometry.area, beside.unknown_groups) == (100, ("Necrosis",))
    assert ["Necrosis" in notice for notice in beside.notices] == [True]
    with pytest.raises(AnnotationError, match="Necrosis"):
        read_annotation(asap(tmp_path, [necrosis]))


def test_what_an_unknown_group_counts_as_can_be_set(tmp_path):
    path = asap(tmp_path, [annotation(SQUARE, "Necrosis")])
    ignored = read_annotation(path, AnnotationOptions(unknown_group="ignore"))
    assert (ignored.geometry.area, ignored.unknown_groups) == (0, ("Necrosis",))
    assert read_annotation(path, AnnotationOptions(unknown_group="tumor")).geometry.area == 100
    with pytest.raises(AnnotationError, match="Necrosis"):
        read_annotation(path, AnnotationOptions(unknown_group="error"))
    assert read_annotation(path, AnnotationOptions(tumor_groups=["necrosis"])).geometry.area == 100


def test_a_group_that_is_part_of_a_known_group_has_its_role(tmp_path):
    groups = '<Group Name="lesion 7" PartOfGroup="macro"/><Group Name="macro" PartOfGroup="Tumor"/>'
    regions = read_annotation(asap(tmp_path, [annotation(SQUARE, "lesion 7")], groups))
    assert (regions.audit[0].role, regions.audit[0].note) == ("tumor", "by its group Tumor")


def test_groups_that_contain_each_other_end_and_are_unknown(tmp_path):
    groups = '<Group Name="a" PartOfGroup="b"/><Group Name="b" PartOfGroup="a"/>'
    path = asap(tmp_path, [annotation(SQUARE, "a"), annotation(SQUARE)], groups)
    assert read_annotation(path).unknown_groups == ("a",)


def test_a_group_cannot_have_both_roles():
    with pytest.raises(ValueError, match="two roles"):
        AnnotationOptions(tumor_groups=["A"], exclusion_groups=["a "])


TUMOR = {"name": "Tumor", "color": [200, 0, 0]}


def test_a_collection_a_feature_and_a_list_give_the_same_regions(tmp_path):
    one = feature("Polygon", [closed(SQUARE)], TUMOR, "lesion")
    for value in ({"type": "FeatureCollection", "features": [one]}, one, [one]):
        regions = read_annotation(geojson(tmp_path, value))
        assert regions.geometry.area == 100
        assert (regions.audit[0].name, regions.audit[0].group) == ("lesion", "Tumor")


def test_qupath_holes_and_multipolygons_keep_their_area(tmp_path):
    holed = [closed(SQUARE), closed(square(1, 1, 2)), closed(square(5, 5, 2))]
    far = [closed(square(100, 100, 4))]
    regions = read_annotation(geojson(tmp_path, [feature("MultiPolygon", [holed, far], TUMOR)]))
    assert regions.geometry.area == 100 - 4 - 4 + 16
    assert [row.points for row in regions.audit] == [12, 4]


def test_qupath_points_and_lines_are_reported_as_not_areal(tmp_path):
    value = [feature("Point", [1, 2], TUMOR), feature("LineString", [[1, 2], [3, 4]], TUMOR)]
    value.append(feature("Polygon", [closed(SQUARE)], TUMOR))
    regions = read_annotation(geojson(tmp_path, value))
    assert [row.action for row in regions.audit] == ["not areal", "not areal", "kept"]


@pytest.mark.parametrize(
    "classification",
    [
        {"name": "Tumor: Positive"},
        {"names": ["Tumor", "Positive"]},
        {"names": ["Tumor", "Negative"]},
        {"name": "tumor"},
        "Tumor",
        {"name": "metastases"},
    ],
)
def test_derived_qupath_classes_have_the_role_of_their_base(tmp_path, classification):
    path = geojson(tmp_path, feature("Polygon", [closed(SQUARE)], classification))
    assert read_annotation(path).geometry.area == 100


@pytest.mark.parametrize(
    "properties",
    [
        lambda name: {"type": name},  # TIAToolbox
        lambda name: {"label": {"value": name}, "group": name, "type": "polyline"},  # large_image
        lambda name: {"class": name, "id": 3},  # GeoPandas
        lambda name: {"label": name},
        lambda name: {"terms": [name]},  # Cytomine
        lambda name: {"class_name": name},
        lambda name: {"Classification": name, "name": "lesion"},
        lambda name: {"annotationClass": {"name": name}},
        lambda name: {"labels": [name]},
        lambda name: {"classification": {"name": name}, "type": "Stroma"},
    ],
)
def test_the_class_is_found_in_the_properties_of_other_tools(tmp_path, properties):
    def one(name, points):
        polygon = {"type": "Polygon", "coordinates": [closed(points)]}
        return {"type": "Feature", "geometry": polygon, "properties": properties(name)}

    regions = read_annotation(geojson(tmp_path, [one("Tumor", SQUARE), one("Stroma", square(20, 0, 5))]))
    assert (regions.geometry.area, regions.unknown_groups) == (100, ("Stroma",))


def test_any_property_that_names_a_known_group_is_the_class(tmp_path):
    def one(name, points):
        return {**feature("Polygon", [closed(points)], name=name), "id": None}

    path = geojson(tmp_path, [one("Tumor", SQUARE), one("Stroma", square(20, 0, 5))])
    regions = read_annotation(path)
    assert (regions.geometry.area, [row.action for row in regions.audit]) == (100, ["kept", "ignored"])


def test_a_class_derived_from_an_unknown_one_is_unknown_whatever_its_suffix(tmp_path):
    cells = {"names": ["Immune cells", "Negative"]}
    path = geojson(tmp_path, [feature("Polygon", [closed(SQUARE)], c) for c in (TUMOR, cells)])
    regions = read_annotation(path)
    assert (regions.geometry.area, regions.unknown_groups) == (100, ("Immune cells: Negative",))


@pytest.mark.parametrize("kind", ["detection", "cell", "tile"])
def test_objects_that_any_qupath_version_detected_are_no_annotations(tmp_path, kind):
    """The type is ``objectType`` from QuPath 0.4 on, ``object_type`` in 0.3, and the id before."""
    for version in ("objectType", "object_type", "id"):
        for named, area in ((kind, 0), ("annotation", 100)):
            one = feature("Polygon", [closed(SQUARE)])
            del one["properties"]["objectType"]
            if version == "id":
                one["id"] = f"Path{named.title()}Object"
            else:
                one["properties"][version] = named
            regions = read_annotation(geojson(tmp_path, one), AnnotationOptions(unknown_group="ignore"))
            assert (regions.geometry.area, regions.unknown_groups) == (area, () if area else (kind,))
            one["properties"]["classification"] = TUMOR
            assert read_annotation(geojson(tmp_path, one)).geometry.area == 100


@pytest.mark.parametrize(
    "properties", [None, {}, {"classification": None}, {"classification": {"name": None}}]
)
def test_a_feature_without_properties_is_ungrouped(tmp_path, properties):
    bare = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [closed(SQUARE)]}}
    for value in (bare, {**bare, "properties": properties}):
        regions = read_annotation(geojson(tmp_path, {"type": "FeatureCollection", "features": [value]}))
        assert (regions.geometry.area, regions.audit[0].note) == (100, "in no group")


def test_collections_of_geometries_third_coordinates_and_open_rings_are_read(tmp_path):
    flat = {"type": "Polygon", "coordinates": [[[x, y, 0] for x, y in SQUARE]]}
    point = {"type": "Point", "coordinates": [1, 2]}
    value = {"type": "Feature", "geometry": {"type": "GeometryCollection", "geometries": [flat, point]}}
    regions = read_annotation(geojson(tmp_path, value))
    assert [(row.action, row.area_after) for row in regions.audit] == [("kept", 100), ("not areal", 0)]


def test_a_byte_order_mark_and_another_encoding_are_read(tmp_path):
    path = tmp_path / "a.GeoJSON"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(feature("Polygon", [closed(SQUARE)])).encode())
    assert read_annotation(path).geometry.area == 100
    path.write_bytes(path.read_bytes().decode("utf-8-sig").encode("utf-16"))
    assert read_annotation(path).geometry.area == 100
    xml = asap(tmp_path, [annotation(SQUARE, name="é")], prolog='<?xml version="1.0" encoding="UTF-16"?>')
    xml.write_bytes(xml.read_text(encoding="utf-8").encode("utf-16"))
    assert read_annotation(xml).audit[0].name == "é"


BOMB = '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>'
EXTERNAL = '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
DTD = '<?xml version="1.0"?><!DOCTYPE l SYSTEM "http://localhost/l.dtd">'


@pytest.mark.parametrize("prolog", [BOMB, EXTERNAL, DTD])
def test_bombs_external_entities_and_dtds_are_refused(tmp_path, prolog):
    with pytest.raises(AnnotationError):
        read_annotation(asap(tmp_path, [annotation(SQUARE)], prolog=prolog))


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.xml", b"", "is empty"),
        ("a.geojson", b"", "is empty"),
        ("a.xml", b"<html><body/></html>", "its root is"),
        (
            "a.xml",
            b'<Annotations><Annotation Id="1"><Vertex X="1" Y="2"/></Annotation></Annotations>',
            "root",
        ),
        ("a.xml", b"\x89PNG\r\n\x1a\n", "not well-formed"),
        ("a.xml", b'<ASAP_Annotations><Annotations><Annotation Name="a', "cut short"),
        ("a.xml", b'<?xml version="1.0" encoding="klingon"?><ASAP_Annotations/>', "XML"),
        ("a.geojson", b'{"a": 1}', "not GeoJSON"),
        ("a.geojson", b'{"type": "Feature", "geometry', "not JSON"),
        ("a.json", b"\xff\xfe\x00", "not JSON"),
        ("a.json", b"[" * 200_000, "too deep"),
        ("a.json", b"3", "not GeoJSON"),
        ("a.csv", b"1,2", "not an annotation format"),
    ],
)
def test_empty_and_foreign_files_are_refused(tmp_path, name, content, fault):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AnnotationError, match=fault) as caught:
        read_annotation(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    (tmp_path / "folder.xml").mkdir()
    for name in ("none.xml", "folder.xml"):
        with pytest.raises(AnnotationError):
            read_annotation(tmp_path / name)


@pytest.mark.parametrize(
    "value", ["NaN", "inf", "-Infinity", "1e999", "1e30", "", "12 000", "1_0", "1.234,5", "abc"]
)
def test_an_impossible_coordinate_is_refused_in_xml(tmp_path, value):
    with pytest.raises(AnnotationError, match="'a'"):
        read_annotation(asap(tmp_path, [annotation([(0, 0), (value, 0), (4, 4)])]))


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "1e999", "1e30", "1" + "0" * 400, '"1"', "true", "null", "[1]"]
)
def test_an_impossible_coordinate_is_refused_in_geojson(tmp_path, value):
    path = tmp_path / "a.geojson"
    path.write_text(f'{{"type": "Polygon", "coordinates": [[[0, 0], [{value}, 0], [4, 4]]]}}')
    with pytest.raises(AnnotationError):
        read_annotation(path)


def test_deep_nesting_of_elements_and_geometries_is_refused(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text("<html>" + "<a>" * 100_000 + "</a>" * 100_000 + "</html>")
    with pytest.raises(AnnotationError):
        read_annotation(path)
    nested: dict = {"type": "GeometryCollection", "geometries": []}
    for _ in range(80):
        nested = {"type": "GeometryCollection", "geometries": [nested]}
    with pytest.raises(AnnotationError):
        read_annotation(geojson(tmp_path, nested))


def test_a_scribble_that_would_take_hours_to_overlay_is_refused_at_once(tmp_path):
    rng = random.Random(0)
    scribble = [(rng.randrange(100_000), rng.randrange(100_000)) for _ in range(20_000)]
    with pytest.raises(AnnotationError):
        read_annotation(asap(tmp_path, [annotation(scribble)]))


@pytest.mark.parametrize("name", ["a.json", "a.xml"])
def test_a_file_larger_than_any_annotations_is_refused(tmp_path, name):
    path = tmp_path / name
    with path.open("wb") as stream:
        stream.truncate(65 * 2**20)
    with pytest.raises(AnnotationError):
        read_annotation(path)


def test_options_load_without_geometry():
    code = "import sys, wsi_assets.annotations.options; print({'shapely', 'numpy'} & sys.modules.keys())"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    )


def test_names_are_stored_as_one_short_line_of_valid_text(tmp_path):
    name = "first\nsecond \ud800" + "x" * 1000
    path = geojson(tmp_path, feature("Polygon", [closed(SQUARE)], {"name": "Tumor"}, name))
    assert read_annotation(path).audit[0].name.startswith("first second ?x")
    assert len(read_annotation(path).audit[0].name.encode()) == 200
