"""Hard negatives: unsampled normal patches of training slides with the highest probabilities."""

from __future__ import annotations

import pytest

from wsi_assets.index import IndexOptions, SamplingOptions, TissueRegions, sample_index
from wsi_assets.index.slide_regions import SlideOptions, read_tissue
from wsi_assets.learning import (
    HardNegativeOptions,
    find_hard_negatives,
    joined,
    load_model,
    slide_grid,
    slide_probabilities,
)
from wsi_assets_tests.learning.tiny import write_darkness
from wsi_assets_tests.slides.made import picture, write_pyramid

SIZE = 32
CPU = {"device": "cpu", "num_workers": 0}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Index, sampled index and model of a training, a validation, an incomplete and a test slide."""
    folder = tmp_path_factory.mktemp("cohort")
    index = {}
    for number, slide_id in enumerate(("a_train", "b_incomplete", "c_validation", "d_test")):
        path = write_pyramid(folder / f"{slide_id}.tif", [picture(320, 320, number)])
        tissue = TissueRegions.from_plain(read_tissue(slide_id, path, SlideOptions(min_work_pixels=64)))
        index[slide_id] = slide_grid(tissue, 0, IndexOptions(), SIZE, SIZE)
        y, x, _ = index[slide_id]["patches"][0]
        index[slide_id]["patches"][0] = (y, x, True)
    (folder / "incomplete.txt").write_text("b_incomplete\n")
    options = SamplingOptions(
        normal_per_tumor=5, val_size=None, incomplete_slides=str(folder / "incomplete.txt")
    )
    sampled = sample_index(index, options)
    for slide_id, entry in sampled.items():
        entry["split"] = {"c": "validation", "d": "test"}.get(slide_id[0], "train")
    return index, sampled, options, load_model(write_darkness(folder, SIZE, 0))


def test_the_unsampled_normal_patches_with_the_highest_probabilities_are_found(cohort):
    index, sampled, _, model = cohort
    options = HardNegativeOptions(hard_negative_threshold=0.3, hard_negatives_per_slide=7, **CPU)
    found, faults = find_hard_negatives(index, sampled, model, options)
    assert faults == {}
    assert set(found) == {"a_train"}
    learned = {patch[:2] for patch in sampled["a_train"]["patches"]}
    probs = slide_probabilities(index["a_train"], model, options)
    rest = {
        patch[:2]: probability
        for patch, probability in zip(index["a_train"]["patches"], probs, strict=True)
        if not patch[2] and patch[:2] not in learned and probability >= 0.3
    }
    wanted = sorted(rest.values(), reverse=True)[:7]
    assert [probability for _, _, probability in found["a_train"]] == pytest.approx(wanted)
    assert all(rest[y, x] == pytest.approx(p) for y, x, p in found["a_train"])


def test_a_slide_whose_file_is_missing_is_reported(cohort):
    index, sampled, _, model = cohort
    gone = {**index, "a_train": {**index["a_train"], "slide_path": "gone.tif"}}
    found, faults = find_hard_negatives(gone, sampled, model, HardNegativeOptions(**CPU))
    assert (found, set(faults)) == ({}, {"a_train"})


def test_sampling_adds_only_hard_negatives_of_the_slide(cohort):
    index, sampled, options, _ = cohort
    learned = {patch[:2] for patch in sampled["a_train"]["patches"]}
    hard = [(*patch[:2], 0.9) for patch in index["a_train"]["patches"] if patch[:2] not in learned][:3]
    more = sample_index(index, options, {"a_train": hard, "b_incomplete": hard, "gone": hard})
    assert {patch[:2] for patch in more["a_train"]["patches"]} == learned | {(y, x) for y, x, _ in hard}
    assert more["b_incomplete"]["patches"] == sampled["b_incomplete"]["patches"]


def test_patches_of_several_rounds_are_joined():
    first, second = (
        {"a": [(0, 0, 0.9), (0, 32, 0.6)]},
        {"a": [(0, 32, 0.7), (32, 0, 0.8)], "b": [(0, 0, 0.5)]},
    )
    assert joined(first, second) == {"a": [(0, 0, 0.9), (32, 0, 0.8), (0, 32, 0.7)], "b": [(0, 0, 0.5)]}
