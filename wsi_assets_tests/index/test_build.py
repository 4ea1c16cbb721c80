"""A folder of slides is indexed in one call, by what ``cohort.csv`` says where it says something."""

from __future__ import annotations

import json
import shutil

import pytest

from wsi_assets.errors import ConfigError
from wsi_assets.index import IndexOptions, SamplingOptions, build_indices, is_test, sample_index, split_slides


@pytest.fixture
def folders(tmp_path, real_data):
    """Three slides of the cohort; tumor_064_node_1 has a damaged annotation."""
    for folder, ending in (("images", ".tif"), ("annotations", ".xml")):
        (tmp_path / folder).mkdir()
        for name in ("tumor_001_node_1", "tumor_064_node_1", "tumor_004_node_1"):
            source = real_data / "cohort" / folder / f"{name}{ending}"
            if source.exists():
                shutil.copy(source, tmp_path / folder)
    (tmp_path / "annotations/tumor_064_node_1.xml").write_text("<ASAP")
    return tmp_path / "images", tmp_path / "annotations"


def indexed(folders, table):
    (folders[0] / "cohort.csv").write_text(table)
    return build_indices(*folders, [0], options=IndexOptions(patch_size=256))


def test_the_label_decides_if_the_annotation_is_missing(folders):
    silent = indexed(folders, "slide_id,mpp\nnobody,0.5\n")
    assert list(silent.left_out) == ["tumor_064_node_1"]
    assert any("nobody" in line for line in silent.notices)
    said = indexed(folders, "slide,label\ntumor_064_node_1.tif,normal\ntumor_004_node_1,tumor\n")
    assert list(said.left_out) == (["tumor_004_node_1"])
    entry = said.levels[0].index["tumor_064_node_1"]
    assert (entry["annotation_path"], entry["cohort_label"]) == (None, "normal")
    assert entry["patches"]
    assert not any(patch[2] for patch in entry["patches"])
    contradicted = indexed(folders, "slide,label\ntumor_001_node_1,normal\n")
    assert "normal" in contradicted.left_out["tumor_001_node_1"]
    unknown = indexed(folders, "slide,label\ntumor_004_node_1,unknown\ntumor_064_node_1,normal\n")
    assert "unknown" in unknown.levels[0].left_out["tumor_004_node_1"]
    assert "tumor_004_node_1" not in unknown.levels[0].index


def test_patient_split_and_scale_of_the_cohort_table_count(folders):
    table = "slide_id,patient,split,mpp\ntumor_001_node_1,P1,test,0.5\ntumor_004_node_1,P1,,\n"
    index = indexed(folders, table).levels[0].index
    assert {entry["label"] for entry in index.values()} == {"P1"}
    assert [(entry["split"], is_test(name, entry)) for name, entry in index.items()] == [("test", True)] * 2
    entry = index["tumor_001_node_1"]
    assert (entry["mpp"], entry["magnification"]) == (0.5, 20)
    with pytest.raises(ConfigError):
        table = "slide_id,patient,split\ntumor_001_node_1,,train\ntumor_004_node_1,tumor_001,test\n"
        indexed(folders, table)


def test_the_sides_that_entries_name_are_kept_and_validation_is_drawn_only_where_none_is_named():
    def index(**sides):
        patches = [(0, i, i % 2 == 0) for i in range(20)]
        return {
            name: {"slide_path": name, "label": name, "patches": patches, **({"split": side} if side else {})}
            for name, side in sides.items()
        }

    drawn = split_slides(index(test_1="train", b="train", c="test", d=None), 0.3, 42)
    assert drawn["c"] == "test"
    assert sorted(drawn[name] for name in ("test_1", "b", "d")) == ["train", "train", "validation"]
    named = index(test_1="validation", b="train", c="test", d=None)
    assert split_slides(named, 0.3, 42) == {"test_1": "validation", "b": "train", "c": "test", "d": "train"}
    sampled = sample_index(named, SamplingOptions(normal_per_tumor=0.1))
    assert [len(entry["patches"]) for entry in sampled.values()] == [20, 11, 20, 11]


def test_a_damaged_annotation_is_ignored_only_for_a_slide_labeled_normal(folders):
    whole = {"type": "Polygon", "coordinates": [[[0, 0], [9999, 0], [9999, 9999], [0, 9999], [0, 0]]]}
    (folders[1] / "corrections").mkdir()
    for name in ("tumor_001_node_1", "tumor_064_node_1"):
        drawn = {"type": "Feature", "geometry": whole, "properties": {"classification": {"name": "Other"}}}
        (folders[1] / "corrections" / f"{name}.geojson").write_text(json.dumps(drawn))
    assert list(indexed(folders, "slide_id,mpp\nnobody,0.5\n").left_out) == ["tumor_064_node_1"]
    found = indexed(folders, "slide,label\ntumor_064_node_1,normal\n")
    assert not found.left_out
    for name in ("tumor_001_node_1", "tumor_064_node_1"):
        entry = found.levels[0].index[name]
        assert entry["annotation_path"] is None
        assert entry["patches"]
        assert not any(patch[2] for patch in entry["patches"])
    (folders[1] / "corrections/tumor_064_node_1.geojson").write_text("{")
    broken = indexed(folders, "slide,label\ntumor_064_node_1,normal\n")
    assert "corrections" in broken.left_out["tumor_064_node_1"]
