"""Facts about ``cohort.csv``: it comes before names, in the words of many tools, and faults are one line."""

from __future__ import annotations

import pytest

from wsi_assets.errors import ConfigError
from wsi_assets.slides import Cohort, SlideRow, find_slides, read_cohort, write_cohort


def table(folder, text, encoding="utf-8"):
    (folder / "cohort.csv").write_bytes(text.encode(encoding))
    return read_cohort(folder)


def test_without_a_table_all_rows_are_empty(tmp_path):
    assert read_cohort(tmp_path) == Cohort()
    assert Cohort().row("a") == SlideRow()


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("slide_id,patient,split,label,base_mag,mpp\nA,P1,test,tumor,20,0.5\n", {}),
        # CLAM, QuPath, TRIDENT, STAMP; Excel in German; a byte-order mark; spaces; empty cells and lines.
        ("case_id,slide_id,label\nP1,a,tumor_tissue\n", {"split": None, "base_mag": None, "mpp": None}),
        ("\ufeffImage;Case ID;Split;Class;Base_Mag;MPP\na.svs;P1;Testing;Tumour;20;0,5\n", {}),
        ("wsi,mpp\n/data/a.svs,0.5\n", dict.fromkeys(("patient", "split", "label", "base_mag"))),
        ("PATIENT,FILENAME\nP1,C:\\slides\\A.SVS\n", dict.fromkeys(("split", "label", "base_mag", "mpp"))),
        ("slide_id\tmpp\tpatient\r\n\r\na\t0.5\tnan\r\n\t\t\r\n", {"patient": None, "split": None}),
        ("slide_id, patient, scanner,,\na, P1, Aperio,,\n", dict.fromkeys(("split", "label", "mpp"))),
    ],
)
def test_a_table_is_read_as_tools_and_spreadsheets_write_it(tmp_path, text, row):
    whole = {"patient": "P1", "split": "test", "label": "tumor", "base_mag": 20.0, "mpp": 0.5}
    found = table(tmp_path, text).row("A")
    for name, value in {**whole, **row}.items():
        assert getattr(found, name) in (value, None if row else value)
    assert found != SlideRow()


@pytest.mark.parametrize("label", ["tumor", "TUMOUR", "normal", "normal_tissue"])
@pytest.mark.parametrize("split", ["train", "Training", "val", "valid", "validation", "TEST"])
def test_labels_and_splits_have_many_spellings(tmp_path, label, split):
    row = table(tmp_path, f"slide,label,split\na,{label},{split}\n").row("a")
    assert (row.label[0], row.split[0]) == (label[0].lower(), split[0].lower())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slide_id,split\na,holdout\n", "line 2"),
        ("slide_id,label\na,\nb,subtype_1\n", "line 3"),
        ("slide_id,base_mag\na,forty\n", "base_mag"),
        ("slide_id,mpp\na,1000\n", "mpp"),
        ("slide_id,mpp\na,nan\nb,inf\n", "line 3"),
        ("slide_id,patient\na,p\nA.tif,p\n", "line above"),
        ("slide_id,patient\n,p\n", "no slide_id"),
        ("slide_id,patient\na,p,q\n", "more cells"),
        ("slide_id,base_mag,mpp\na,40,0.5\n", "20x"),
        ("slide_id,patient,split\na,p,train\nb,P,test\n", "two sides"),
        ("slide_id,spilt\na,test\n", "split"),
        ("slide_id,image,mpp\na,a,0.5\n", "each once"),
        ("patient,split\np,test\n", "slide_id"),
        ("slide_id\na\n", "another, each once"),
        ("", "another, each once"),
    ],
)
def test_a_faulty_table_is_refused_in_one_line(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        table(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "cohort.csv"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00bad", b'slide_id,mpp\n"a,0.5\n'])
def test_a_file_that_is_not_a_table_is_refused(tmp_path, content):
    path = tmp_path / "named.csv"
    if content:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"named\.csv"):
        read_cohort(tmp_path, path)


def test_a_row_without_a_slide_is_a_notice():
    cohort = Cohort(rows={"a": SlideRow("p"), "typo": SlideRow("p")})
    (line,) = cohort.unknown(["A", "b"])
    assert "typo" in line


def test_patients_and_sides_come_from_the_table_and_else_from_names():
    cohort = Cohort(rows={"s1": SlideRow("Patient_1", "test"), "s2": SlideRow("patient_1"), "s3": SlideRow()})
    patients = cohort.patients(["s1", "s2", "s3", "patient_1_node_2"])
    assert patients == {"s1": "patient_1", "s2": "patient_1", "s3": "s3", "patient_1_node_2": "patient_1"}
    assert cohort.sides(patients) == dict.fromkeys(["s1", "s2", "patient_1_node_2"], "test")


def test_the_digest_of_a_row_follows_its_values_and_nothing_else():
    assert SlideRow("p").digest == SlideRow("p").digest != SlideRow("q").digest
    assert SlideRow("p").digest != SlideRow("p", mpp=0.5).digest


def test_a_slide_labeled_normal_needs_no_annotation(tmp_path):
    for name in ("a.svs", "a_mask.geojson"):
        (tmp_path / name).write_bytes(b"x")
    assert list(find_slides(tmp_path, tmp_path).left_out) == ["a"]
    (slide,) = find_slides(tmp_path, tmp_path, Cohort(rows={"a": SlideRow(label="normal")})).slides
    assert slide.annotation_path is None


def test_a_table_is_written_once_and_can_be_read(tmp_path):
    write_cohort(tmp_path / "cohort.csv", {"test_1": ("p", "test"), "a": ("q, r", "")})
    assert read_cohort(tmp_path).rows == {"test_1": SlideRow("p", "test"), "a": SlideRow("q, r")}
    with pytest.raises(ConfigError):
        write_cohort(tmp_path / "cohort.csv", {})
