"""Facts about GeoJSON of slides scanned in part, and about packed annotation files."""

from __future__ import annotations

import gzip
import json
import zipfile

import pytest

from wsi_assets.annotations import AnnotationOptions, read_annotation
from wsi_assets.errors import AnnotationError
from wsi_assets_tests.annotations.files import annotation, feature

BOUNDS = (768, 512, 2048, 2048)
RING = [[100, 200], [300, 200], [300, 400], [100, 400], [100, 200]]
XML = f"<A>{annotation(RING[:-1])}</A>"


def geojson(*rings):
    features = [feature("Polygon", [ring], {"name": "Tumor"}) for ring in rings]
    return json.dumps({"type": "FeatureCollection", "features": features})


def corner(path, frame="auto", bounds=BOUNDS):
    return read_annotation(path, AnnotationOptions(frame=frame), bounds=bounds).geometry.bounds[:2]


@pytest.fixture
def drawn(tmp_path):
    path = tmp_path / "s.geojson"
    path.write_text(geojson(RING))
    return path


def test_geojson_of_a_slide_with_bounds_is_refused_until_frame_is_set(drawn):
    """QuPath counts from the corner of the scanned area, other programs from that of the slide."""
    with pytest.raises(AnnotationError, match="frame"):
        corner(drawn)
    assert corner(drawn, "slide") == (100, 200)
    assert corner(drawn, "bounds") == (868, 712)


@pytest.mark.parametrize("bounds", [None, (0, 0, 2048, 2048)])
@pytest.mark.parametrize("frame", ["auto", "slide", "bounds"])
def test_the_frame_does_not_matter_if_the_scanned_area_begins_at_the_slides_corner(drawn, bounds, frame):
    assert corner(drawn, frame, bounds) == (100, 200)


@pytest.mark.parametrize("frame", ["auto", "slide", "bounds"])
def test_asaps_xml_counts_from_the_slides_corner(tmp_path, frame):
    path = tmp_path / "s.xml"
    path.write_text(XML)
    assert corner(path, frame) == (100, 200)


def test_holes_move_with_their_polygon(tmp_path):
    hole = [[150, 250], [200, 250], [200, 300], [150, 300], [150, 250]]
    path = tmp_path / "s.geojson"
    content = json.loads(geojson(RING))
    content["features"][0]["geometry"]["coordinates"].append(hole)
    path.write_text(json.dumps(content))
    geometry = read_annotation(path, AnnotationOptions(frame="bounds"), bounds=BOUNDS).geometry
    assert geometry.area == 200 * 200 - 50 * 50


def test_a_file_without_annotations_needs_no_frame(tmp_path):
    path = tmp_path / "s.geojson"
    path.write_text(geojson())
    assert read_annotation(path, bounds=BOUNDS).geometry.is_empty


def test_packed_annotations_are_read(tmp_path, drawn):
    packed = {"s.geojson.gz": gzip.compress(geojson(RING).encode()), "s.xml.gz": gzip.compress(XML.encode())}
    for name, data in packed.items():
        (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("folder/s.geojson", geojson(RING))
        archive.writestr("__MACOSX/folder/._s.geojson", "x")
        archive.writestr("readme.txt", "x")
    for name in (*packed, "s.zip"):
        assert corner(tmp_path / name, "slide") == (100, 200)
        assert read_annotation(tmp_path / name).geometry.area == 40_000


def test_archives_that_do_not_hold_one_annotation_file_are_refused(tmp_path):
    for name, members in (("none.zip", ["a.txt"]), ("two.zip", ["a.xml", "b.geojson"])):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in members:
                archive.writestr(member, geojson(RING))
    whole = gzip.compress(geojson(RING).encode())
    (tmp_path / "cut.geojson.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "no.zip").write_bytes(b"PK no archive")
    (tmp_path / "bomb.geojson.gz").write_bytes(gzip.compress(bytes(200 << 20)))
    (tmp_path / "other.txt.gz").write_bytes(whole)
    for path in tmp_path.iterdir():
        with pytest.raises(AnnotationError) as caught:
            read_annotation(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
