"""Sampling keeps all tumor, spreads normal patches equally, and a new slide moves only the margin."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_assets.errors import ConfigError, SlideIndexError
from wsi_assets.index import (
    SamplingOptions,
    counts,
    incomplete_slides,
    load_index,
    partial_tumor,
    sample_index,
    save_index,
    slide_table,
    unknown_incomplete,
)
from wsi_assets.index.sampling import equal_shares
from wsi_assets.index.slide_index import PER_PATCH
from wsi_assets_tests.index.fakes import entry_of, index_of

cohorts = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 120)), min_size=1, max_size=8)
ratios = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.3, None])


def cohort(sizes, prefix="slide"):
    return index_of(*((f"{prefix}_{i:02d}", *size) for i, size in enumerate(sizes)))


def chosen(index):
    return {(slide_id, y, x) for slide_id, e in index.items() for y, x, t in e["patches"] if not t}


@settings(max_examples=60, deadline=None)
@given(sizes=cohorts, ratio=ratios, cap=st.none() | st.integers(0, 40), seed=st.integers(0, 5))
def test_all_tumor_and_the_wanted_number_of_normal_patches_are_kept(sizes, ratio, cap, seed):
    options = SamplingOptions(normal_per_tumor=ratio, max_normal_per_slide=cap, seed=seed, val_size=None)
    index = cohort(sizes)
    before, after = counts(index), counts(sample_index(index, options))
    assert after["tumor"] == before["tumor"]
    limits = [normal if cap is None else min(normal, cap) for _, normal in sizes]
    wanted = sum(limits) if ratio is None or not before["tumor"] else round(ratio * before["tumor"])
    assert after["normal"] == min(wanted, sum(limits))
    for row, limit in zip(slide_table(sample_index(index, options)), limits, strict=True):
        assert row["normal"] <= limit


@settings(max_examples=60, deadline=None)
@given(sizes=cohorts, seed=st.integers(0, 5))
def test_chosen_patches_keep_their_order_and_their_own_values(sizes, seed):
    index = cohort(sizes)
    sampled = sample_index(index, SamplingOptions(seed=seed, normal_per_tumor=1))
    assert list(sampled) == list(index)
    for before, after in zip(index.values(), sampled.values(), strict=True):
        at = [before["patches"].index(patch) for patch in after["patches"]]
        assert at == sorted(at)
        for key in PER_PATCH:
            assert after[key] == [before[key][i] for i in at]


@settings(max_examples=150, deadline=None)
@given(
    sizes=cohorts,
    new=st.tuples(st.integers(0, 30), st.integers(0, 120)),
    name=st.sampled_from(["a_new", "z_new", "test_new"]),
    ratio=ratios,
    cap=st.none() | st.integers(0, 40),
    incomplete=st.booleans(),
)
def test_a_new_slide_changes_little_of_what_is_chosen_from_others(
    tmp_path_factory, sizes, new, name, ratio, cap, incomplete
):
    listed = tmp_path_factory.getbasetemp() / "incomplete.txt"
    listed.write_text("slide_00\na_new\n")
    options = SamplingOptions(
        val_size=None,
        normal_per_tumor=ratio,
        max_normal_per_slide=cap,
        incomplete_slides=str(listed) if incomplete else None,
    )
    index = cohort(sizes)
    old = chosen(sample_index(index, options))
    after = sample_index(dict(sorted([*index.items(), (name, entry_of(name, *new))])), options)
    kept = {patch for patch in chosen(after) if patch[0] != name}
    # The old slides' choice only grows or only shrinks: nothing is exchanged, whatever the totals do.
    assert kept <= old or old <= kept


@settings(max_examples=60, deadline=None)
@given(sizes=cohorts)
def test_the_order_of_slides_does_not_matter(sizes):
    index, options = cohort(sizes), SamplingOptions(normal_per_tumor=1)
    backwards = dict(reversed(index.items()))
    assert chosen(sample_index(index, options)) == chosen(sample_index(backwards, options))


def test_another_seed_chooses_other_patches():
    index = cohort([(50, 1000)])
    one, other = (
        chosen(sample_index(index, SamplingOptions(normal_per_tumor=1, seed=seed))) for seed in (1, 2)
    )
    assert len(one) == len(other) == 50
    assert len(one & other) < 15


def test_the_choice_is_spread_over_the_slide():
    (entry,) = sample_index(cohort([(200, 2000)]), SamplingOptions(normal_per_tumor=1)).values()
    places = [x // 256 - 200 for _, x, t in entry["patches"] if not t]
    quarters = [sum(500 * q <= place < 500 * (q + 1) for place in places) for q in range(4)]
    assert sum(quarters) == 200
    assert all(30 <= quarter <= 70 for quarter in quarters)


def test_slides_give_equally_many_normal_patches_whatever_their_size():
    options = SamplingOptions(normal_per_tumor=1)
    sampled = sample_index(cohort([(90, 0), (0, 100), (0, 300), (0, 600)]), options)
    assert [row["normal"] for row in slide_table(sampled)] == [0, 30, 30, 30]


def test_a_slide_with_fewer_than_its_share_leaves_the_rest_to_the_others():
    options = SamplingOptions(normal_per_tumor=1)
    sampled = sample_index(cohort([(100, 0), (0, 10), (0, 300), (0, 600)]), options)
    assert [row["normal"] for row in slide_table(sampled)] == [0, 10, 45, 45]


def test_no_ratio_keeps_the_full_index():
    index = cohort([(3, 500), (0, 40)])
    sampled = sample_index(index, SamplingOptions(normal_per_tumor=None))
    assert [entry["patches"] for entry in sampled.values()] == [e["patches"] for e in index.values()]


numbers = {
    "available": st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 50), min_size=1),
    "total": st.integers(0, 300),
}


@settings(max_examples=200, deadline=None)
@given(**numbers)
def test_shares_are_equal_to_within_one_unless_a_slide_gives_all_it_has(available, total):
    shares = equal_shares(available, total)
    assert sum(shares.values()) == min(total, sum(available.values()))
    free = [share for name, share in shares.items() if share < available[name]]
    assert not free or max(shares.values()) - min(free) <= 1


@settings(max_examples=60, deadline=None)
@given(**numbers)
def test_one_more_patch_to_give_never_takes_one_from_a_slide(available, total):
    fewer, more = equal_shares(available, total), equal_shares(available, total + 1)
    assert all(fewer[name] <= more[name] for name in available)


def test_test_slides_keep_every_patch_and_do_not_count_in_the_balance():
    index = index_of(("Test_001", 500, 900), ("tumor_001", 10, 400))
    whole, train = slide_table(sample_index(index, SamplingOptions(normal_per_tumor=1)))
    assert (whole["tumor"], whole["normal"]) == (500, 900)
    assert (train["tumor"], train["normal"]) == (10, 10)


def test_incompletely_annotated_slides_give_tumor_but_no_normal_patches(tmp_path):
    listed = tmp_path / "incomplete.txt"
    listed.write_text("# not all annotationd\nTUMOR_015  # by the lab\n\n")
    index = index_of(("normal_001", 0, 200), ("tumor_015", 20, 500))
    options = SamplingOptions(incomplete_slides=str(listed), normal_per_tumor=1)
    normal, tumor = slide_table(sample_index(index, options))
    assert (tumor["tumor"], tumor["normal"], normal["normal"]) == (20, 0, 20)


@pytest.mark.parametrize(
    "line", ["tumor_015.tif", "Tumor_015.SVS", "/data/images/tumor_015.tif  # by the lab"]
)
def test_incompletely_annotated_slides_may_be_listed_by_their_files(tmp_path, line):
    listed = tmp_path / "incomplete.txt"
    listed.write_text(f"{line}\n")
    index = index_of(("normal_001", 0, 200), ("tumor_015", 20, 500))
    options = SamplingOptions(incomplete_slides=str(listed), normal_per_tumor=1)
    _, tumor = slide_table(sample_index(index, options))
    assert (tumor["tumor"], tumor["normal"]) == (20, 0)


def test_listed_slides_that_are_not_in_the_index_are_named(tmp_path):
    listed = tmp_path / "incomplete.txt"
    listed.write_text("tumor_051\nTumor_015\n")
    index = index_of(("tumor_015", 20, 500))
    assert unknown_incomplete(index, SamplingOptions(incomplete_slides=str(listed))) == ["tumor_051"]
    for source in ("CAMELYON16", None):
        assert unknown_incomplete(index, SamplingOptions(incomplete_slides=source)) == []


def test_the_shipped_camelyon16_list_holds_the_twenty_training_slides_and_test_114():
    listed = incomplete_slides("camelyon16")
    assert len(listed) == 21
    assert {"tumor_010", "tumor_110", "test_114"} <= listed
    assert "tumor_001" not in listed


def test_a_list_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(ConfigError):
        incomplete_slides(tmp_path / "missing.txt")


def test_a_cohort_without_tumor_keeps_its_normal_patches_up_to_the_cap():
    index = cohort([(0, 30), (0, 80)])
    assert counts(sample_index(index, SamplingOptions()))["normal"] == 110
    assert counts(sample_index(index, SamplingOptions(max_normal_per_slide=50)))["normal"] == 80


def test_the_ranks_are_the_same_on_every_machine():
    (entry,) = sample_index(cohort([(3, 30)]), SamplingOptions(normal_per_tumor=1)).values()
    assert [x // 256 for _, x, _ in entry["patches"]] == [0, 1, 2, 4, 7, 13]  # as first computed


def test_patches_with_too_little_tumor_are_neither_class_but_are_kept():
    index = index_of(("tumor_001", 4, 50), ("test_001", 2, 8))
    for entry in index.values():
        entry["config"] |= {"label_rule": "fraction", "tumor_threshold": 0.5}
        entry["tumor_fraction"][-3:] = [0.2, 0.4, 0.01]
    sampled = sample_index(index, SamplingOptions(normal_per_tumor=2))
    train, test = slide_table(sampled)
    assert (train["tumor"], train["normal"], train["partial"]) == (4, 8, 3)
    assert (test["tumor"], test["normal"], test["partial"]) == (2, 5, 3)
    assert partial_tumor(sampled["tumor_001"]).sum() == 3


def test_the_same_values_under_another_rule_are_ordinary_normal_patches():
    entry = entry_of("slide", 2, 5)
    entry["tumor_fraction"][-1] = 0.3
    entry["config"] |= {"label_rule": "center"}
    assert not partial_tumor(entry).any()


def test_test_slides_are_those_whose_ids_match_the_pattern_of_the_index():
    index = index_of(("intestine_1", 5, 100), ("holdout_2", 5, 100))
    for entry in index.values():
        entry["config"]["test_pattern"] = "^holdout"
    assert [row["test"] for row in slide_table(index)] == [False, True]
    sampled = sample_index(index, SamplingOptions(normal_per_tumor=1))
    assert [row["normal"] for row in slide_table(sampled)] == [5, 100]


def test_an_index_of_another_program_with_the_specification_s_keys_only_is_sampled():
    keys = ("slide_path", "label", "annotation_path", "level", "magnification", "patches")
    foreign = {
        slide_id: {key: entry[key] for key in keys}
        for slide_id, entry in index_of(("a", 3, 90), ("test_b", 1, 9)).items()
    }
    rows = slide_table(sample_index(foreign, SamplingOptions(normal_per_tumor=2)))
    assert [(row["tumor"], row["normal"]) for row in rows] == [(3, 6), (1, 9)]


@pytest.mark.parametrize(
    "value", [[], [entry_of("a", 1, 1)], {"a": {"patches": []}}, {"a": []}, {1: {}}, None]
)
def test_values_that_are_not_an_index_are_refused(value):
    with pytest.raises(SlideIndexError):
        sample_index(value, SamplingOptions())


def test_an_index_survives_its_file(tmp_path):
    index = index_of(("a", 3, 9), ("test_b", 1, 2))
    save_index(tmp_path / "index_level_0.pkl", index)
    assert load_index(tmp_path / "index_level_0.pkl") == index
    with (tmp_path / "index_level_0.pkl").open("rb") as stream:
        assert pickle.load(stream) == index
