"""Curation checks find faulty slides, and a sound cohort passes them all."""

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
    index = {t.slide_id: index_slide(t, tumor, 0, IndexOptions(), tumor and "/a.xml") for t, tumor in cohort}
    plain = {t.slide_id: (t.to_plain(), tumor and tumor.to_plain()) for t, tumor in cohort}
    found = curation.curate(index, plain.__getitem__)
    # tumor_004_node_1 is a normal node of a tumor patient, and its name says tumor all the same.
    assert [slide_id for slide_id, _ in found.pop("no_tumor_patches")] == ["tumor_004_node_1"]
    assert [slide_id for slide_id, _ in found.pop("name_contradicts_annotation")] == ["tumor_004_node_1"]
    assert not any(found.values())
    assert len(found) == len(curation.CURATION) - 2


def test_a_tumor_slide_without_annotation_is_found_unless_the_cohort_labels_it_normal():
    index = {name: entry_of(name, 0, 2) for name in ("tumor_002", "Tumor_001", "tumor_003", "normal_001")}
    index["tumor_003"]["annotation_path"] = "/a/tumor_003.xml"
    assert [slide_id for slide_id, _ in curation.name_contradicts_annotation(index)] == [
        "tumor_002",
        "Tumor_001",
    ]
    index["tumor_002"]["cohort_label"] = "normal"
    assert [slide_id for slide_id, _ in curation.name_contradicts_annotation(index)] == ["Tumor_001"]
    assert [slide_id for slide_id, _ in curation.no_tumor_patches(index)] == ["Tumor_001", "tumor_003"]


def test_an_annotated_slide_without_tumor_patches_is_found():
    tissue = tissue_of("a", FULL)
    entry = index_slide(tissue, tumor_box(0, 0, 60, 60), 0, IndexOptions(label_rule="fraction"), "/a.xml")
    ((_, message),) = curation.no_tumor_patches({"a": entry})
    assert "none of 4 patches" in message
    whole = index_slide(tissue, tumor_box(0, 0, 256, 256), 0, IndexOptions(), "/a.xml")
    normal = index_slide(tissue, None, 0, IndexOptions())
    assert not list(curation.no_tumor_patches({"a": whole, "b": normal}))


def test_annotations_outside_the_slide_are_found():
    tissue = tissue_of("a", FULL)
    assert not list(curation.annotation_outside(tissue, tumor_box(0, 0, 512, 512)))
    ((_, message),) = curation.annotation_outside(tissue, tumor_box(0, 256, 512, 512))
    assert message.startswith("50% of the tumor area lies outside the 512 x 512 slide")


def test_annotations_on_glass_are_found():
    half = FULL.copy()
    half[:, 32:] = False
    assert not list(curation.annotation_off_tissue(tissue_of("a", half), tumor_box(0, 0, 256, 300)))
    ((_, message),) = curation.annotation_off_tissue(tissue_of("a", half), tumor_box(0, 192, 256, 256))
    assert "only 25% of the tumor area" in message


@pytest.mark.parametrize(
    ("share", "threshold", "found"), [(1.0, 12.0, 1), (0.5, 12.0, 0), (0.0, 12.0, 1), (0.0, None, 1)]
)
def test_slides_with_hardly_any_tissue_or_glass_are_found(share, threshold, found):
    tissue = tissue_of("a", FULL, tissue_share=share, threshold=threshold)
    assert len(list(curation.tissue_share_out_of_range(tissue))) == found


def test_mixed_magnifications_in_a_level_are_found():
    index = {
        name: index_slide(tissue_of(name, FULL, base=base), None, 1, IndexOptions(patch_size=64))
        for name, base in (("a", 40.0), ("b", 40.0), ("c", 20.0))
    }
    assert list(curation.mixed_magnifications(index)) == [
        ("c", "magnification 10 at level 1, where the median slide has 20")
    ]


def test_the_same_file_under_two_names_is_found(cohort):
    tissue = cohort[0][0]
    found = curation.duplicate_slides([tissue, replace(tissue, slide_id="copy")])
    assert found == [("test_073_node_1", "is the same file as copy")]


def test_a_copy_that_was_compressed_again_is_found(real_data, cohort):
    with open_slide(real_data / "cohort" / "images" / "tumor_064_node_1.tif") as slide:
        pixels = slide.read_region(0, 0, 0, 2048, 2048).pixels
    coarse = cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR)
    copy = find_tissue(ArraySlide("/slides/x_copy.tif", coarse), TissueOptions(), "another")
    found = curation.duplicate_slides([*(tissue for tissue, _ in cohort), copy])
    ((copied, finding),) = found
    assert copied == "x_copy"
    assert "tumor_064_node_1" in finding


@settings(max_examples=30)
@given(seed=st.integers(0, 2**20), tolerance=st.sampled_from([0.5, 4.0, 20.0]))
def test_duplicates_are_those_of_comparing_every_pair(seed, tolerance):
    """Thumbnails of any darkness and extent, some of them almost equal, compared pair by pair as oracle."""
    rng = np.random.default_rng(seed)
    thumbnails = []
    for _ in range(12):
        thumbnail = np.full((32, 32, 3), 255, np.int16)
        high, wide = rng.integers(1, 33, 2)
        thumbnail[:high, :wide] = rng.integers(40, 240) + rng.integers(-20, 16, (high, wide, 3))
        thumbnails.append(thumbnail)
        for _ in range(2):
            noisy = thumbnail + rng.integers(-9, 10, thumbnail.shape)
            thumbnails.append(np.where(thumbnail < 255, noisy, 255))
    thumbnails = [np.clip(thumbnail, 0, 255).astype(np.uint8) for thumbnail in thumbnails]
    rng.shuffle(thumbnails)
    tissues = [tissue_of(f"s{i:02}", FULL, thumbnail=one.tobytes()) for i, one in enumerate(thumbnails)]
    same = []
    for j, later in enumerate(thumbnails):
        for i, first in enumerate(thumbnails[:j]):
            shown = (first.min(axis=2) < 250) | (later.min(axis=2) < 250)
            if np.abs(first.astype(int) - later)[shown].mean() < tolerance:
                same.append((f"s{j:02}", f"s{i:02}"))
    found = curation.duplicate_slides(tissues, tolerance)
    assert sorted((later, finding.split()[-1]) for later, finding in found) == sorted(same)


def test_patches_too_small_for_the_tissue_mask_are_found():
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
        found = list(curation.tissue_mask_too_coarse({"a": entry}))
        assert len(found) == (across < 1.5)
        for _, message in found:
            assert f"{across} pixels of the tissue mask" in message
            assert message.endswith(f"set work_level to {work_level}")


def test_test_slides_by_accident_are_found():
    by_chance = ["intestine_003", "GTEX-11DXY-0426-Testis"]
    meant = ["test_001", "Test001", "lab-TEST-2", "TestSet_001", "tests_1", "testing_02", "TESTA_1"]
    found = curation.longer_word_holds_test(
        {name: entry_of(name, 0, 1) for name in [*by_chance, *meant, "tumor_001"]}
    )
    assert {slide_id for slide_id, _ in found} == set(by_chance)
