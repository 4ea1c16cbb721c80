"""What a careful lab would look at twice is found, and a sound cohort gives no findings."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_assets.annotations import read_annotation
from wsi_assets.index import IndexOptions, TissueOptions, curation, find_tissue, index_slide
from wsi_assets.slides import open_slide
from wsi_assets_tests.index.fakes import ArraySlide, entry_of, tissue_of, tumor_box

FULL = np.ones((64, 64), bool)


@pytest.fixture(scope="module")
def cohort(real_data):
    found = []
    for path in sorted((real_data / "cohort" / "images").iterdir()):
        annotation = real_data / "cohort" / "annotations" / f"{path.stem}.xml"
        with open_slide(path) as slide:
            tissue = find_tissue(slide, TissueOptions(), path.stem)
        found.append((tissue, read_annotation(annotation) if annotation.exists() else None))
    return found


def test_a_sound_cohort_gives_no_findings(cohort):
    tissues = [tissue for tissue, _ in cohort]
    index = {t.slide_id: index_slide(t, tumor, 0, IndexOptions()) for t, tumor in cohort}
    assert curation.annotation_outside(cohort) == []
    assert curation.annotation_off_tissue(cohort) == []
    assert curation.tissue_share_out_of_range(tissues) == []
    assert curation.duplicate_slides(tissues) == []
    assert curation.mixed_magnifications(index) == []
    assert curation.tissue_mask_too_coarse(index) == []
    assert curation.longer_word_holds_test(index) == []
    # tumor_004_node_1 is a normal node of a tumor patient, and its name says tumor all the same.
    assert [finding.slide_id for finding in curation.no_tumor_patches(index)] == ["tumor_004_node_1"]


def test_a_tumor_slide_without_annotation_is_found():
    slides = [
        ("tumor_002", None),
        ("Tumor_001", None),
        ("tumor_003", "/a/tumor_003.xml"),
        ("normal_001", None),
        ("tumor_004", None),
    ]
    found = [finding.slide_id for finding in curation.annotation_missing(slides)]
    assert found == ["Tumor_001", "tumor_002", "tumor_004"]


def test_an_annotated_slide_without_tumor_patches_is_found():
    tissue = tissue_of("a", FULL)
    entry = index_slide(tissue, tumor_box(0, 0, 60, 60), 0, IndexOptions(label_rule="fraction"), "/a.xml")
    (finding,) = curation.no_tumor_patches({"a": entry})
    assert "none of 4 patches" in finding.message
    assert (
        curation.no_tumor_patches(
            {"a": index_slide(tissue, tumor_box(0, 0, 256, 256), 0, IndexOptions(), "/a.xml")}
        )
        == []
    )
    assert curation.no_tumor_patches({"a": index_slide(tissue, None, 0, IndexOptions())}) == []


def test_annotation_outside_the_slide_are_found():
    tissue = tissue_of("a", FULL)
    assert curation.annotation_outside([(tissue, tumor_box(0, 0, 512, 512))]) == []
    (finding,) = curation.annotation_outside([(tissue, tumor_box(0, 256, 512, 512))])
    assert finding.message.startswith("50% of the tumor area lies outside the 512 x 512 slide")


def test_annotations_on_glass_are_found():
    half = FULL.copy()
    half[:, 32:] = False
    assert curation.annotation_off_tissue([(tissue_of("a", half), tumor_box(0, 0, 256, 300))]) == []
    (finding,) = curation.annotation_off_tissue([(tissue_of("a", half), tumor_box(0, 192, 256, 256))])
    assert "only 25% of the tumor area" in finding.message


def test_slides_with_hardly_any_tissue_or_glass_are_found():
    tissues = [
        tissue_of("all", FULL),
        tissue_of("half", FULL, tissue_share=0.5),
        tissue_of("none", FULL, tissue_share=0.0),
        tissue_of("void", FULL, tissue_share=0.0, threshold=None),
    ]
    found = {finding.slide_id: finding.message for finding in curation.tissue_share_out_of_range(tissues)}
    assert set(found) == {"all", "none", "void"}
    assert "no data" in found["void"]


def test_mixed_magnifications_in_a_level_are_found():
    index = {
        name: index_slide(tissue_of(name, FULL, base=base), None, 1, IndexOptions(patch_size=64))
        for name, base in (("a", 40.0), ("b", 40.0), ("c", 20.0))
    }
    (finding,) = curation.mixed_magnifications(index)
    assert (finding.slide_id, finding.message) == (
        "c",
        "magnification 10 at level 1, where the median slide has 20",
    )


def test_the_same_file_under_two_names_is_found(cohort):
    tissue = cohort[0][0]
    (finding,) = curation.duplicate_slides([tissue, replace(tissue, slide_id="copy")])
    assert finding.slide_id == "test_073_node_1"
    assert finding.message == "is the same file as copy"


def test_a_copy_compressed_anew_is_found(real_data, cohort):
    with open_slide(real_data / "cohort" / "images" / "tumor_064_node_1.tif") as slide:
        pixels = slide.read_region(0, 0, 0, 2048, 2048).pixels
    coarse = cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR)
    copy = find_tissue(ArraySlide("/slides/x_copy.tif", coarse), TissueOptions(), "another")
    (finding,) = curation.duplicate_slides([*(tissue for tissue, _ in cohort), copy])
    assert (finding.slide_id, finding.message) == ("x_copy", "looks the same as tumor_064_node_1")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), noise=st.integers(1, 14))
def test_slides_look_the_same_exactly_if_their_tissue_differs_little_on_average(seed, noise):
    rng = np.random.default_rng(seed)
    base = np.full((32, 32, 3), 255, np.int16)
    base[4:20, 6:25] = rng.integers(60, 200, (16, 19, 3))
    looks = [base, np.where(base < 255, base + rng.integers(-noise, noise + 1, base.shape), 255)]
    looks.append(np.roll(base, 3, axis=0))
    tissues = [
        tissue_of(f"s{i}", FULL, thumbnail=look.astype(np.uint8).tobytes()) for i, look in enumerate(looks)
    ]
    found = {(finding.slide_id, finding.message[-2:]) for finding in curation.duplicate_slides(tissues)}
    same = set()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        shown = (looks[i].min(axis=2) < 250) | (looks[j].min(axis=2) < 250)
        if np.abs(looks[i] - looks[j])[shown].mean() < 4:
            same.add((f"s{j}", f"s{i}"))
    assert found == same


@settings(max_examples=30)
@given(seed=st.integers(0, 2**20), tolerance=st.sampled_from([0.5, 4.0, 20.0]))
def test_duplicates_are_those_of_comparing_every_pair(seed, tolerance):
    """Looks of any darkness and extent, some all but alike; only the plain rule says which are the same."""
    rng = np.random.default_rng(seed)
    looks = []
    for _ in range(12):
        look = np.full((32, 32, 3), 255, np.int16)
        high, wide = rng.integers(1, 33, 2)
        look[:high, :wide] = rng.integers(40, 240) + rng.integers(-20, 16, (high, wide, 3))
        looks.append(look)
        looks += [np.where(look < 255, look + rng.integers(-9, 10, look.shape), 255) for _ in range(2)]
    looks = [np.clip(look, 0, 255).astype(np.uint8) for look in looks]
    rng.shuffle(looks)
    tissues = [tissue_of(f"s{i:02}", FULL, thumbnail=look.tobytes()) for i, look in enumerate(looks)]
    same = []
    for j, later in enumerate(looks):
        for i, first in enumerate(looks[:j]):
            shown = (first.min(axis=2) < 250) | (later.min(axis=2) < 250)
            if np.abs(first.astype(int) - later)[shown].mean() < tolerance:
                same.append((f"s{j:02}", f"looks the same as s{i:02}"))
    assert [(f.slide_id, f.message) for f in curation.duplicate_slides(tissues, tolerance)] == sorted(same)


def test_patches_that_the_tissue_mask_hardly_resolves_are_found():
    """At a working level of 7 a mask pixel is 128 level-0 pixels wide, half a patch of 256."""
    tissue = tissue_of("a", np.ones((16, 16), bool), 128.0, work_level=7)
    for level, size, across, work_level in (
        (0, 256, 2, 7),
        (2, 64, 2, 7),
        (0, 224, 1.75, 7),
        (0, 128, 1, 6),
        (1, 48, 0.75, 6),
    ):
        entry = index_slide(tissue, None, level, IndexOptions(patch_size=size))
        found = curation.tissue_mask_too_coarse({"a": entry})
        assert len(found) == (across < 1.5)
        for finding in found:
            assert f"is {across} times as wide as a pixel of the tissue mask" in finding.message
            assert finding.message.endswith(f"set work_level to {work_level}")


def test_slides_of_an_intestine_are_not_for_testing_without_a_word():
    by_chance = ["intestine_003", "GTEX-11DXY-0426-Testis"]
    meant = ["test_001", "Test001", "lab-TEST-2", "TestSet_001", "tests_1", "testing_02", "TESTA_1"]
    found = curation.longer_word_holds_test(
        {name: entry_of(name, 0, 1) for name in [*by_chance, *meant, "tumor_001"]}
    )
    assert {finding.slide_id for finding in found} == set(by_chance)
