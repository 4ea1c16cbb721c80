"""Index entries keep their contract, and every slide or patch that is left out has a reason."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import MultiPolygon, box

from wsi_assets.annotations import read_annotation
from wsi_assets.errors import SlideIndexError
from wsi_assets.index import IndexOptions, TissueOptions, entries, find_tissue, index_level, index_slide
from wsi_assets.index.coverage import tumor_fractions
from wsi_assets.index.patch_grid import mask_fractions, starts
from wsi_assets.slides import Level, open_slide
from wsi_assets_tests.index.fakes import tissue_of, tumor_box

KEYS = {
    *("slide_path", "label", "annotation_path", "level", "work_level", "work_downsample", "magnification"),
    *("visualisation_coords", "patches", "patch_size", "stride", "downsample", "mpp"),
    *("tissue_fraction", "tumor_fraction", "fingerprint", "config"),
}
FULL = np.ones((128, 128), bool)


@pytest.fixture(scope="module")
def cohort(real_data):
    slides = []
    for path in sorted((real_data / "cohort" / "images").iterdir()):
        with open_slide(path) as slide:
            tissue = find_tissue(slide, TissueOptions(), "f")
        annotation = real_data / "cohort" / "annotations" / f"{path.stem}.xml"
        tumor = read_annotation(annotation) if annotation.exists() else None
        slides.append((tissue, tumor, str(annotation) if annotation.exists() else None))
    return slides


@pytest.mark.parametrize(("level", "patch"), [(0, 256), (1, 128), (2, 64)])
@pytest.mark.parametrize("rule", ["fraction", "center", "any"])
def test_the_cohort_gives_exactly_its_true_patches_and_labels_at_every_level(
    real_data, cohort, level, patch, rule
):
    truth = json.loads((real_data / "cohort" / "truth.json").read_text())
    index = index_level(cohort, level, IndexOptions(patch_size=patch, label_rule=rule))
    found = {
        slide_id: [[y << level, x << level, t] for y, x, t in entry["patches"]]
        for slide_id, entry in index.index.items()
    }
    assert found == truth
    assert sum(map(len, found.values())) == 89


def test_an_entry_has_the_specified_keys_and_plain_types():
    entry = index_slide(
        tissue_of("tumor_001", FULL), tumor_box(0, 0, 600, 600), 1, IndexOptions(), "/a/t.xml"
    )
    assert set(entry) == KEYS
    assert all(type(patch[2]) is bool for patch in [*entry["patches"], *entry["visualisation_coords"]])

    def plain(value):
        if isinstance(value, dict):
            return all(type(key) is str and plain(item) for key, item in value.items())
        if type(value) in (list, tuple):
            return all(map(plain, value))
        return type(value) in (int, float, str, bool, type(None))

    assert plain(entry)
    per_patch = ("patches", "visualisation_coords", "tissue_fraction", "tumor_fraction")
    assert {len(entry[key]) for key in per_patch} == {4}


def test_an_entry_gives_places_and_scale_of_its_own_level():
    entry = index_slide(tissue_of("tumor_001_node_2", FULL), tumor_box(0, 512, 512, 512), 1, IndexOptions())
    assert entry["patches"] == [
        (0, 0, False),
        (0, 256, True),
        (256, 0, False),
        (256, 256, False),
    ]
    assert entry["visualisation_coords"] == [
        (0, 0, False),
        (0, 64, True),
        (64, 0, False),
        (64, 64, False),
    ]
    assert (entry["magnification"], entry["mpp"], entry["downsample"]) == (20.0, 0.5, 2.0)
    assert (entry["label"], entry["stride"], entry["annotation_path"]) == ("tumor_001", 256, None)


def test_a_fractional_downsample_is_not_truncated():
    levels = (Level(0, 1024, 1024, 1.0), Level(1, 255, 255, 4.0161))
    tissue = replace(tissue_of("a", FULL), levels=levels)
    edge = 2 * 64 * 4.0161
    entry = index_slide(tissue, tumor_box(0, edge, 1024, 64 * 4.0161), 1, IndexOptions(patch_size=64))
    row = [
        fraction
        for (y, _, _), fraction in zip(entry["patches"], entry["tumor_fraction"], strict=True)
        if y == 0
    ]
    assert row == pytest.approx([0, 0, 1], abs=1e-9)


def test_strides_below_and_above_the_patch_size_are_kept():
    tissue = tissue_of("a", FULL)
    dense = index_slide(tissue, tumor_box(0, 0, 64, 64), 0, IndexOptions(stride=64))
    assert len(dense["patches"]) == 13 * 13
    assert dense["tumor_fraction"][0] == pytest.approx(1 / 16)
    assert sum(fraction > 0 for fraction in dense["tumor_fraction"]) == 1
    sparse = index_slide(tissue, None, 0, IndexOptions(stride=700))
    assert [patch[:2] for patch in sparse["patches"]] == [(0, 0), (0, 700), (700, 0), (700, 700)]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**20),
    size=st.sampled_from([8, 24, 32]),
    stride=st.sampled_from([4, 7, 8, 40]),
    ratio=st.sampled_from([8.0, 8.0323]),
    least=st.sampled_from([0.0, 0.4, 1.0]),
    band=st.sampled_from([1, 50, 1 << 20]),
)
def test_patches_do_not_depend_on_the_bands_they_are_found_in(seed, size, stride, ratio, least, band):
    rng = np.random.default_rng(seed)
    mask = np.zeros((30, 24), bool)
    top, left = rng.integers(0, 20, 2)
    mask[top : top + rng.integers(0, 14), left : left + rng.integers(0, 14)] = rng.random() < 0.9
    mask &= rng.random(mask.shape) < 0.8
    tissue = replace(tissue_of("a", mask), work_downsample=ratio)
    tumor = tumor_box(*rng.uniform(0, 120, 2), *rng.uniform(1, 120, 2))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(entries, "_BAND", band)
        options = IndexOptions(patch_size=size, stride=stride, min_tissue=least)
        entry = index_slide(tissue, tumor, 0, options)
    ys, xs = (starts(side * 8, size, stride) for side in mask.shape)
    shares = mask_fractions(mask, ys, xs, size, 1 / ratio)
    rows, columns = np.nonzero((shares >= least) & (shares > 0))
    covered = tumor_fractions(tumor.geometry, ys, xs, size)[rows, columns]
    flags = (covered > 0).tolist()
    assert entry["patches"] == list(zip(ys[rows], xs[columns], flags, strict=True))
    assert entry["tissue_fraction"] == shares[rows, columns].tolist()
    assert entry["tumor_fraction"] == pytest.approx(covered, abs=1.1e-9)


def test_memory_follows_the_tissue_not_the_slide():
    """A slide of 97,792 x 221,184 pixels with tissue at two ends, a place at every 32 pixels."""
    mask = np.zeros((1728, 764), bool)
    mask[10:12, 10:12] = mask[1700:1702, 700:702] = True
    tissue = tissue_of("a", mask, 128.0)
    tracemalloc.start()
    entry = index_slide(tissue, tumor_box(0, 0, 200_000, 90_000), 0, IndexOptions(stride=32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0 < len(entry["patches"]) < 1000
    assert peak < 300e6


@pytest.mark.parametrize("stride", [1, 256])
def test_a_stride_too_small_for_the_slide_is_one_line(monkeypatch, stride):
    monkeypatch.setattr(entries, "MAX_PATCHES", 9)
    tissue = tissue_of("a", np.ones((1728, 764), bool), 128.0)
    with pytest.raises(SlideIndexError, match=f" {stride} ") as caught:
        index_slide(tissue, None, 0, IndexOptions(stride=stride))
    assert "\n" not in str(caught.value)


def test_a_patch_is_kept_from_the_asked_tissue_share_on():
    mask = np.zeros((64, 64), bool)
    mask[:, :16] = True  # half of the first column of patches
    for least, expected in ((0.5, 2), (0.51, 0), (0.0, 2)):
        entry = index_slide(tissue_of("a", mask), None, 0, IndexOptions(min_tissue=least))
        assert len(entry["patches"]) == expected


def test_a_level_that_no_slide_has_is_one_line_with_the_levels_there_are():
    slides = [(tissue_of("a", FULL, levels=3), None, None), (tissue_of("b", FULL, levels=2), None, None)]
    with pytest.raises(SlideIndexError, match=r"7.*0 to 2") as caught:
        index_level(slides, 7, IndexOptions())
    assert "\n" not in str(caught.value)
    with pytest.raises(SlideIndexError, match="7"):
        index_slide(slides[0][0], None, 7, IndexOptions())
    with pytest.raises(SlideIndexError):
        index_level([], 0, IndexOptions())


def test_a_slide_without_the_level_is_left_out_with_the_reason():
    slides = [(tissue_of("b", FULL, levels=3), None, None), (tissue_of("a", FULL, levels=1), None, None)]
    index = index_level(slides, 2, IndexOptions(patch_size=64))
    assert list(index.index) == ["b"]
    assert index.left_out == {"a": "has no level 2 (its levels: 0)"}


def test_a_slide_without_patches_stays_in_the_index_with_a_reason():
    nothing = np.zeros((128, 128), bool)
    speck = nothing.copy()
    speck[:4, :4] = True
    slides = [
        (tissue_of("glass", nothing), None, None),
        (tissue_of("speck", speck), None, None),
        (tissue_of("black", nothing, threshold=None), None, None),
        (tissue_of("tiny", np.ones((16, 16), bool)), None, None),
        (tissue_of("whole", FULL), None, None),
    ]
    index = index_level(slides, 0, IndexOptions())
    assert [name for name, entry in index.index.items() if entry["patches"]] == ["whole"]
    assert index.empty.keys() == {"glass", "speck", "black", "tiny"}
    assert len(set(index.empty.values())) == 4


def test_entries_are_sorted_by_slide_whatever_order_slides_come_in():
    slides = [(tissue_of(name, FULL), None, None) for name in ("c", "a", "b")]
    assert list(index_level(iter(slides), 0, IndexOptions()).index) == ["a", "b", "c"]


def test_slides_of_one_patient_name_the_same_patient_whatever_their_capitals():
    slides = [(tissue_of(name, FULL), None, None) for name in ("patient_1_node_1", "Patient_1_node_2")]
    index = index_level(slides, 0, IndexOptions(patch_size=64))
    assert {entry["label"] for entry in index.index.values()} == {"Patient_1"}


def test_an_empty_annotation_makes_every_patch_normal():
    tumor = tumor_box(0, 0, 10, 10)
    empty = type(tumor)(geometry=MultiPolygon(), excluded=MultiPolygon(), audit=())
    entry = index_slide(tissue_of("a", FULL), empty, 0, IndexOptions(label_rule="any"))
    assert {patch[2] for patch in entry["patches"]} == {False}
    assert set(entry["tumor_fraction"]) == {0.0}


def test_no_patch_reaches_into_an_ignored_area_and_all_others_stay():
    tissue, options = tissue_of("tumor_001", FULL), IndexOptions(patch_size=64)
    tumor = tumor_box(0, 0, 600, 600)
    before = index_slide(tissue, tumor, 1, options)
    area = box(130, 256, 250, 500)  # level 0; up to the side of a patch, not over it
    after = index_slide(tissue, replace(tumor, ignored=MultiPolygon([area])), 1, options)
    reach = [
        (y, x)
        for y, x, _ in before["patches"]
        if area.intersection(box(2 * x, 2 * y, 2 * x + 128, 2 * y + 128)).area
    ]
    assert set(before["patches"]) - set(after["patches"]) == {(y, x, True) for y, x in reach} != set()
    assert set(after["patches"]) <= set(before["patches"])
    everything = replace(tumor, ignored=MultiPolygon([box(0, 0, 2000, 2000)]))
    assert "ignored" in index_level([(tissue, everything, None)], 1, options).empty["tumor_001"]
