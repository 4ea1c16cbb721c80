"""Facts about finding slides: ids, patients, annotations, what is left out and why, and what has changed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_assets.annotations import read_annotation
from wsi_assets.errors import AnnotationError, ConfigError, SlideError
from wsi_assets.slides import (
    SlideFile,
    annotation_version,
    find_slides,
    fingerprint,
    is_test_slide,
    open_slide,
    patient_of,
    patients_of,
    signature,
    slide_id_of,
)
from wsi_assets.slides.fingerprints import NO_ANNOTATION
from wsi_assets_tests.slides.made import picture, write_pyramid


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
def annotations(tmp_path):
    folder = tmp_path / "annotations"
    folder.mkdir()
    return folder


def test_a_slides_id_is_its_file_stem_and_a_folders_whole_name():
    assert slide_id_of("/data/Tumor_001.TIF") == "Tumor_001"
    assert slide_id_of("/data/scan.2.ome.tiff") == "scan.2.ome"
    assert slide_id_of("/data/1.2.840.10008.5") == "1.2.840.10008.5"
    assert slide_id_of("tumor_001.xml") == "tumor_001"


def test_nodes_of_one_patient_are_one_patient():
    assert patient_of("patient_004_node_4") == patient_of("patient_004_node_2") == "patient_004"
    assert patient_of("Patient_004_NODE_4") == "Patient_004"
    assert patient_of("tumor_001") == "tumor_001"
    assert patient_of("TCGA-AA-0001-01Z", r"^(TCGA-\w+-\w+)") == "TCGA-AA-0001"
    assert patient_of("other", r"^(TCGA-\w+-\w+)") == "other"


def test_patients_that_differ_in_capitals_are_one():
    ids = ["patient_004_node_2", "Patient_004_Node_4", "patient_005_node_1"]
    assert set(patients_of(ids).values()) == {"Patient_004", "patient_005"}
    assert patients_of(ids) == patients_of(reversed(ids))


@pytest.mark.parametrize("pattern", ["(", "no group"])
def test_a_pattern_that_names_no_patient_is_refused(pattern):
    with pytest.raises(ConfigError, match="patient_pattern"):
        patient_of("tumor_001", pattern)


def test_a_pattern_that_finds_no_patient_at_all_is_refused_and_does_not_split_patients():
    pattern = r"^(TCGA-\w+-\w+)-"
    with pytest.raises(ConfigError, match="P12_a") as caught:
        patients_of(["P12_b", "P12_a"], pattern)
    assert repr(pattern) in str(caught.value)
    assert "\n" not in str(caught.value)
    found = patients_of(["TCGA-AA-0001-01Z", "P12_a"], pattern)
    assert found == {"TCGA-AA-0001-01Z": "TCGA-AA-0001", "P12_a": "P12_a"}
    assert patients_of([], pattern) == {}
    assert patients_of(["a", "b"]) == {"a": "a", "b": "b"}


def test_test_slides_are_found_in_any_case():
    assert is_test_slide("test_001")
    assert is_test_slide("Test_001")
    assert not is_test_slide("tumor_001")
    assert is_test_slide("Holdout_7", r"^holdout_\d+$")
    assert not is_test_slide("test_001", r"^holdout_\d+$")


def test_a_test_pattern_must_be_a_regular_expression():
    with pytest.raises(ConfigError, match="test_pattern") as caught:
        is_test_slide("test_001", "(")
    assert "\n" not in str(caught.value)


def test_every_format_is_listed_and_nothing_else(images):
    names = [
        "a.svs",
        "b.tif",
        "c.TIFF",
        "d.ndpi",
        "e.vms",
        "f.vmu",
        "g.mrxs",
        "h.scn",
        "i.svslide",
        "j.bif",
        "k.czi",
    ]
    touch(images, *names, "notes.txt", "thumb.jpg", ".hidden.svs", ".partial-x1.tif", ".trash/z.svs")
    listing = find_slides(images)
    assert [slide.slide_id for slide in listing.slides] == list("abcdefghijk")
    assert (listing.left_out, listing.notices) == ({}, ())


def test_subfolders_are_searched_and_links_followed(images, tmp_path):
    touch(images, "batch1/a.svs", "batch1/deep/b.tif")
    touch(tmp_path / "elsewhere", "c.svs", "d.svs")
    (images / "linked").symlink_to(tmp_path / "elsewhere")
    (images / "loop").symlink_to(images)
    assert [slide.slide_id for slide in find_slides(images).slides] == ["a", "b", "c", "d"]


def test_a_dicom_folder_is_one_slide(images):
    touch(images, "1.2.840.5/level0.dcm", "1.2.840.5/level1.dcm", "1.2.840.5/label.dcm", "b.tif")
    assert [(slide.slide_id, slide.path) for slide in find_slides(images).slides] == [
        ("1.2.840.5", images / "1.2.840.5"),
        ("b", images / "b.tif"),
    ]


def test_loose_dicom_files_are_left_out_and_not_many_slides(images):
    touch(images, "level0.dcm", "level1.dcm", "b.tif")
    listing = find_slides(images)
    assert [slide.slide_id for slide in listing.slides] == ["b"]
    assert "folder of its own" in listing.left_out["*.dcm"]


def test_a_mirax_companion_folder_is_part_of_its_slide(images):
    touch(images, "scan.mrxs", "scan/Slidedat.ini", "scan/Data0000.dat", "scan/stray.tif")
    assert [slide.slide_id for slide in find_slides(images).slides] == ["scan"]


def test_unused_annotations_in_the_slide_folder_are_a_notice(images, annotations):
    """ASAP writes them there; unseen, a cohort of tumor slides would pass for normal ones."""
    touch(images, "tumor_001.tif", "tumor_001.xml", "tumor_002.tif", "tumor_002.xml", "readme.xml")
    touch(annotations, "tumor_002.xml")
    for folder, count in ((annotations, 1), (None, 2)):
        (notice,) = find_slides(images, folder).notices
        assert f"not used ({count}), e.g. {images}/tumor_001.xml." in notice
    assert not any("not used" in notice for notice in find_slides(images, images).notices)


def test_an_annotation_copied_from_macos_belongs_to_its_slide(images, annotations):
    """There accents are marks of their own; unmatched, a tumor slide would pass for a normal one."""
    touch(images, unicodedata.normalize("NFC", "größe_001.tif"))
    touch(annotations, unicodedata.normalize("NFD", "größe_001.xml"))
    listing = find_slides(images, annotations)
    assert not listing.notices
    assert listing.slides[0].annotation_path.parent == annotations


def test_annotations_belong_to_the_slide_of_the_same_id_in_any_case(images, annotations):
    touch(images, "Tumor_001.tif", "normal_001.tif", "a_tumor_002.tif")
    touch(annotations, "sub/tumor_001.XML", "A_Tumor_002.geojson", "readme.txt")
    found = {slide.slide_id: slide.annotation_path for slide in find_slides(images, annotations).slides}
    assert found == {
        "Tumor_001": annotations / "sub/tumor_001.XML",
        "a_tumor_002": annotations / "A_Tumor_002.geojson",
        "normal_001": None,
    }


@pytest.mark.parametrize(
    ("slides", "annotated", "key", "said"),
    [
        (["x.svs", "x.tif"], [], "x", "share this id"),
        (["x.svs", "X.svs"], [], "X", "share this id"),
        (["one/x.svs", "two/x.svs"], [], "x", "share this id"),
        (["x.svs"], ["x.xml", "X.geojson"], "x", "2 annotations"),
        (["x...y.svs"], [], "x...y", "three full stops"),
        (["x\ny.svs"], [], "x y", "control character"),
        (["__x.svs"], [], "__x", "two underscores"),
        (["x" * 245 + ".svs"], [], "x" * 245, "bytes"),
        ([os.fsdecode(b"x\xe4.svs")], [], "x\\udce4", "UTF-8"),
        (["a.ome.x.tif", "a.ome.y.tif"], ["a_mask.png"], "a.ome.y", "a_mask.png"),
    ],
)
def test_slides_without_a_unique_and_valid_id_are_left_out(images, annotations, slides, annotated, key, said):
    touch(images, "good.svs", *slides)
    touch(annotations, *annotated)
    listing = find_slides(images, annotations)
    assert [slide.slide_id for slide in listing.slides] == ["good"]
    assert key in listing.left_out
    assert said in listing.left_out[key]
    assert "\n" not in listing.left_out[key]


def test_a_broken_link_is_left_out(images):
    touch(images, "a.svs")
    (images / "gone.svs").symlink_to(images / "nowhere.svs")
    listing = find_slides(images)
    assert [slide.slide_id for slide in listing.slides] == ["a"]
    assert list(listing.left_out) == ["gone"]


def lock(monkeypatch, folder):
    """Let the system refuse to stat what lies in a folder, as to a user who may not enter it."""
    original = os.stat

    def refusing(path, *args, follow_symlinks=True, **kwargs):
        if follow_symlinks and not isinstance(path, int):
            real = Path(os.path.realpath(path))
            if folder in real.parents:
                raise PermissionError(13, "Permission denied", os.fspath(path))
        return original(path, *args, follow_symlinks=follow_symlinks, **kwargs)

    monkeypatch.setattr(os, "stat", refusing)


def test_a_link_into_a_folder_that_may_not_be_entered_costs_no_other_slide(images, tmp_path, monkeypatch):
    touch(images, "a.svs")
    touch(tmp_path / "locked", "b.svs")
    (images / "b.svs").symlink_to(tmp_path / "locked/b.svs")
    lock(monkeypatch, tmp_path / "locked")
    listing = find_slides(images)
    assert [slide.slide_id for slide in listing.slides] == ["a"]
    assert listing.left_out["b"] == (
        f"it cannot be reached (Permission denied): {images}/b.svs. "
        "Check its permissions and those of the folders it lies in"
    )
    with pytest.raises(SlideError, match=r"b\.svs"):
        open_slide(images / "b.svs")


def test_a_folder_that_cannot_be_reached_is_an_error_and_not_empty(images, tmp_path, monkeypatch):
    touch(images, "a.svs")
    touch(tmp_path / "locked", "batch/b.svs")
    (images / "batch").symlink_to(tmp_path / "locked/batch")
    lock(monkeypatch, tmp_path / "locked")
    # To such a user a link to a folder is no folder, and os.walk lists it among the files.
    monkeypatch.setattr(
        os, "walk", lambda top, **_: [(str(top), [], [path.name for path in Path(top).iterdir()])]
    )
    for folder in (tmp_path / "locked/batch", images):
        with pytest.raises(SlideError, match="batch"):
            find_slides(folder)


def test_a_slide_without_read_permission_is_named_as_such(images, monkeypatch):
    touch(images, "a.svs", "dicom/level0.dcm")
    opened = Path.open

    def denied(path, *args, **kwargs):
        if images in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)
    for name in ("a.svs", "dicom"):
        with pytest.raises(SlideError):
            open_slide(images / name)


def test_each_folder_with_dicom_files_is_a_slide_and_other_slides_in_it_are_notices(images):
    touch(images, "case1/x.dcm", "case1/a.svs", "case1/sub/a.svs", "case1/sub/y.dcm", "case2/x.dcm", "c.svs")
    listing = find_slides(images)
    assert [slide.slide_id for slide in listing.slides] == ["c", "case1", "case2", "sub"]
    assert listing.left_out == {}
    assert [notice.split(": ")[1].split(". ")[0] for notice in listing.notices] == [
        f"{images}/case1/a.svs",
        f"{images}/case1/sub/a.svs",
    ]


def test_an_annotation_without_a_slide_costs_no_slide_and_is_a_notice(images, annotations):
    touch(images, "a.svs")
    touch(annotations, "a.xml", "b.xml", "sub/c\n.json")
    listing = find_slides(images, annotations)
    assert [slide.slide_id for slide in listing.slides] == ["a"]
    assert listing.left_out == {}
    assert listing.notices == (
        f"annotation without a slide: {annotations / 'b.xml'}",
        f"annotation without a slide: {annotations}/sub/c .json",
    )


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_empty(images, tmp_path, monkeypatch):
    with pytest.raises(SlideError):
        find_slides(tmp_path / "typo")
    with pytest.raises(SlideError):
        find_slides(images, tmp_path / "typo")
    touch(images, "a.svs", "locked/b.svs")
    with pytest.raises(SlideError):
        find_slides(images / "a.svs")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(SlideError):
        find_slides(images)


def test_the_shared_cohort_is_complete(real_data):
    listing = find_slides(real_data / "cohort/images", real_data / "cohort/annotations")
    assert len(listing.slides) == 7
    assert sum(slide.annotation_path is not None for slide in listing.slides) == 6
    assert (listing.left_out, listing.notices) == ({}, ())


def test_a_fingerprint_follows_content_and_nothing_else(tmp_path):
    first, second = tmp_path / "a.tif", tmp_path / "b.tif"
    first.write_bytes(b"slide" * 1000)
    second.write_bytes(b"slide" * 1000)
    os.utime(second, (1, 1))
    assert fingerprint(first) == fingerprint(second)
    assert len(fingerprint(first)) == 32
    assert signature(first) != signature(second)
    second.write_bytes(b"slide" * 999 + b"slidE")
    assert fingerprint(first) != fingerprint(second)


@given(st.integers(9 << 20, 40 << 20), st.integers(1, 1 << 20))
def test_a_large_file_cut_short_has_another_fingerprint(tmp_path_factory, size, less):
    path = tmp_path_factory.getbasetemp() / "large.bin"
    with path.open("wb") as stream:
        stream.truncate(size)
    whole = fingerprint(path)
    with path.open("wb") as stream:
        stream.truncate(size - less)
    assert fingerprint(path) != whole


def test_other_pixels_in_as_many_bytes_and_an_annotation_edited_anywhere_are_seen(tmp_path):
    rng = np.random.default_rng(0)
    for seed, name in enumerate(("a.tif", "b.tif")):
        tissue = picture(2048, 2048, seed=seed)
        write_pyramid(tmp_path / name, [tissue], tile=512, compression=None, photometric="rgb")
    one, other = tmp_path / "a.tif", tmp_path / "b.tif"
    assert one.stat().st_size == other.stat().st_size > 4 << 20
    assert fingerprint(one) != fingerprint(other)
    path, data = tmp_path / "a.xml", bytearray(rng.bytes(6 << 20))
    versions = set()
    for place in (0, 2_000_001, 3_333_333):
        data[place] ^= 1
        path.write_bytes(data)
        versions.add(annotation_version(SlideFile("a", one, path)))
    assert len(versions) == 3


@pytest.mark.parametrize("place", [0, 200_000, -1, -200_000])
def test_a_change_at_either_end_of_a_large_file_is_seen(tmp_path, place):
    path = tmp_path / "large.bin"
    with path.open("wb") as stream:
        stream.truncate(50 << 20)
    before = fingerprint(path)
    with path.open("r+b") as stream:
        stream.seek(place, 0 if place >= 0 else 2)
        stream.write(b"!")
    assert fingerprint(path) != before


@pytest.mark.parametrize(
    ("slide", "part"),
    [("dicom", "dicom/level1.dcm"), ("scan.mrxs", "scan/Data0000.dat"), ("scan.vms", "scan_0.jpg")],
)
def test_a_slide_of_several_files_changes_with_any_of_them(tmp_path, slide, part):
    touch(tmp_path, "dicom/level0.dcm", "dicom/level1.dcm", "scan.mrxs", "scan/Data0000.dat", "scan_0.jpg")
    (tmp_path / "scan.vms").write_text(
        "[Virtual Microscope Specimen]\nImageFile=scan_0.jpg\nMapFile=gone.jpg\n"
    )
    before = fingerprint(tmp_path / slide), signature(tmp_path / slide)
    whole = (tmp_path / part).read_bytes()
    (tmp_path / part).write_bytes(b"longer")
    assert fingerprint(tmp_path / slide) != before[0]
    assert signature(tmp_path / slide) != before[1]
    # Of the same size and older than any other, as a copy that keeps its times is.
    (tmp_path / part).write_bytes(whole)
    os.utime(tmp_path / part, (1, 1))
    assert fingerprint(tmp_path / slide) == before[0]
    assert signature(tmp_path / slide) != before[1]


@pytest.mark.parametrize("of", [fingerprint, signature])
def test_a_missing_file_has_no_fingerprint(tmp_path, of):
    with pytest.raises(SlideError):
        of(tmp_path / "gone.svs")


def test_names_and_options_load_without_any_heavy_library():
    code = (
        "import sys, wsi_assets.slides.options, wsi_assets.slides;"
        "from wsi_assets.slides import Level, Scale, ScaleOptions, find_slides, fingerprint, patient_of;"
        "print([m for m in ('numpy', 'cv2', 'openslide', 'tifffile', 'imagecodecs') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "name",
    [
        "a.isyntax",
        "a.vsi",
        "a.kfb",
        "a.svs.gz",
        "a.svs.zip",
        "a.svs.part",
        "a/Slidedat.ini",
        "a.svs/notes.txt",
    ],
)
def test_slides_of_other_formats_are_left_out_with_a_reason(images, annotations, name):
    touch(images, "good.svs", name)
    touch(annotations, "a.xml")
    listing = find_slides(images, annotations)
    assert [slide.slide_id for slide in listing.slides] == ["good"]
    assert list(listing.left_out) == ["a"]
    assert listing.notices == ()


def test_files_that_are_no_slides_are_named_in_one_line_and_texts_are_not(images):
    touch(images, "a.svs", "b.jpg", "c.jpg", "d.xyz", "readme.txt", "list.csv", "a.svs.md5")
    (notice,) = find_slides(images).notices
    assert ".jpg (2), .xyz (1)" in notice


def test_pipes_and_sockets_are_named_and_never_waited_for(images, annotations, monkeypatch):
    touch(images, "good.svs")
    for path in (images / "pipe.svs", images / "other", annotations / "good.xml"):
        os.mkfifo(path)
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(images)  # a socket's path is short
        server.bind("socket.tif")
        listing = find_slides(images, annotations)
        assert [slide.slide_id for slide in listing.slides] == ["good"]
        assert list(listing.left_out) == ["pipe", "socket"]
        for path in (images / "pipe.svs", images / "socket.tif"):
            with pytest.raises(SlideError):
                open_slide(path)
            with pytest.raises(SlideError):
                fingerprint(path)
    with pytest.raises(AnnotationError):
        read_annotation(annotations / "good.xml")


@pytest.mark.parametrize(
    "name",
    [
        "a.ndpa",
        "a.tif.ndpa",
        "a.qpdata",
        "a.csv",
        "a.png",
        "a_mask.tif",
        "a-annotations.geojson",
        "a labels.xml",
    ],
)
def test_a_slide_whose_annotation_is_not_understood_is_not_normal(images, annotations, name):
    touch(images, "a.tif", "b.tif")
    touch(annotations, name)
    listing = find_slides(images, annotations)
    (found,) = [slide for slide in listing.slides if slide.slide_id == "b"]
    assert found.annotation_path is None
    (slide,) = [slide for slide in listing.slides if slide.slide_id == "a"] or [None]
    if slide is None:
        assert str(annotations / name) in listing.left_out["a"]
    else:
        assert slide.annotation_path == annotations / name
        with pytest.raises(AnnotationError):
            read_annotation(slide.annotation_path)


def test_a_readable_annotation_counts_before_files_of_other_formats(images, annotations):
    touch(images, "a.tif")
    touch(annotations, "a.xml", "a.qpdata", "a.png", "a_mask.tif", "a.xml.md5")
    listing = find_slides(images, annotations)
    assert listing.slides[0].annotation_path == annotations / "a.xml"
    assert listing.left_out == {}


@pytest.mark.parametrize(
    ("slide", "annotation"),
    [
        ("a.ome.tif", "a.geojson"),
        ("a.ome.tif", "a.ome.geojson"),
        ("a.svs", "a.svs.geojson"),
        ("a.svs", "a.geojson.gz"),
        ("a.svs", "A.XML.GZ"),
        ("a.svs", "a.zip"),
        ("a.svs", "a.svs.geojson.zip"),
    ],
)
def test_an_annotation_is_known_by_its_slides_name(images, annotations, slide, annotation):
    touch(images, slide)
    touch(annotations, annotation)
    (found,) = find_slides(images, annotations).slides
    assert found.annotation_path == annotations / annotation


def test_an_annotation_belongs_first_to_the_slide_of_exactly_its_name(images, annotations):
    touch(images, "a.ome.tif", "a.tif")
    touch(annotations, "a.geojson")
    found = {slide.slide_id: slide.annotation_path for slide in find_slides(images, annotations).slides}
    assert found == {"a": annotations / "a.geojson", "a.ome": None}


@pytest.mark.parametrize(
    ("slide_id", "patient"),
    [
        ("TCGA-A1-A0SB-01Z-00-DX1.B34C", "TCGA-A1-A0SB"),
        ("TCGA-A1-A0SB-01A-01-TSA", "TCGA-A1-A0SB"),
        ("tcga-a1-a0sb-01z-00-dx2", "tcga-a1-a0sb"),
        ("TCGA-A1-A0SB", "TCGA-A1-A0SB"),
        ("TCGA-A1-A0SBX-01", "TCGA-A1-A0SBX-01"),
        ("my_TCGA-A1-A0SB-01Z", "my_TCGA-A1-A0SB-01Z"),
        ("C3L-00001-21", "C3L-00001"),
        ("GTEX-1117F-0126", "GTEX-1117F"),
        ("TARGET-30-PARKGJ-01A", "TARGET-30-PARKGJ"),
        ("patient_004_node_4", "patient_004"),
    ],
)
def test_archives_name_a_slides_patient_by_its_first_letters(slide_id, patient):
    assert patient_of(slide_id) == patient


@pytest.mark.parametrize("size", [20 << 20, 100 << 20])
@pytest.mark.parametrize("hole", [128 << 10, 1 << 20])
def test_a_hole_left_by_copying_and_its_repair_change_the_fingerprint(tmp_path, size, hole):
    path = tmp_path / "s.tif"
    whole = np.random.default_rng(0).bytes(size)
    path.write_bytes(whole)
    before = fingerprint(path)
    for start in (size // 3, size // 2 + 77_777):
        with path.open("r+b") as stream:
            stream.seek(start)
            stream.write(bytes(hole))
        assert fingerprint(path) != before
        with path.open("r+b") as stream:
            stream.seek(start)
            stream.write(whole[start : start + hole])
        assert fingerprint(path) == before


@pytest.mark.parametrize("name", ["a.xml.bak", "a.svs.json.old", "A.GEOJSON.tmp"])
def test_an_annotation_under_another_ending_does_not_count_as_missing(images, annotations, name):
    touch(images, "a.svs")
    touch(annotations, name)
    (slide,) = find_slides(images, annotations).slides
    assert slide.annotation_path == annotations / name


def test_a_folder_named_as_an_annotation_is_one_that_cannot_be_read(images, annotations):
    touch(images, "a.svs")
    (annotations / "a.xml").mkdir()
    (slide,) = find_slides(images, annotations).slides
    with pytest.raises(AnnotationError):
        read_annotation(slide.annotation_path)


def test_a_correction_belongs_to_the_slide_it_is_named_after(images, annotations):
    touch(images, *(f"{name}.tif" for name in ("a", "b", "c", "d")))
    touch(annotations, "a.xml", "corrections/A.geojson", "corrections/b.tif.json", "Corrections/d.qpdata")
    touch(annotations, "corrections/c.json", "corrections/c.geojson", "corrections/ghost.geojson")
    listing = find_slides(images, annotations)
    found = {
        slide.slide_id: [path and path.name for path in (slide.annotation_path, slide.correction_path)]
        for slide in listing.slides
    }
    assert found == {"a": ["a.xml", "A.geojson"], "b": [None, "b.tif.json"], "d": [None, "d.qpdata"]}
    assert "2 corrections" in listing.left_out["c"]
    (stray,) = listing.strays
    assert "ghost.geojson" in stray
    assert listing.notices == (stray,)


def test_the_version_of_an_annotation_follows_its_correction(images, annotations):
    touch(images, "a.tif")
    versions = []
    for name in ("", "a.xml", "corrections/a.json"):
        if name:
            touch(annotations, name)
        (slide,) = find_slides(images, annotations).slides
        versions.append(annotation_version(slide))
    (annotations / "a.xml").unlink()
    versions.append(annotation_version(find_slides(images, annotations).slides[0]))
    assert len(set(versions)) == 4
    assert versions[0] == NO_ANNOTATION
