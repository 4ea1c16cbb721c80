"""Sampling keeps all tumour, spreads normal patches fairly, and a new slide moves only the margin."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsi_assets.errors import ConfigError
from wsi_assets.index import (
    SamplingOptions,
    counts,
    incomplete_slides,
    sample_index,
    slide_table,
    unknown_incomplete,
)
from wsi_assets.index.sampling import PER_PATCH, apportion
from wsi_assets_tests.index.fakes import entry_of

cohorts = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 120)), min_size=1, max_size=8)
ratios = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.3])


def cohort(sizes, prefix="slide"):
    return [entry_of(f"{prefix}_{i:02d}", *size) for i, size in enumerate(sizes)]


def chosen(entries):
    return {(e["slide_path"], y, x) for e in entries for y, x, t in e["patches"] if not t}


@settings(max_examples=60, deadline=None)
@given(sizes=cohorts, ratio=ratios, cap=st.none() | st.integers(0, 40), seed=st.integers(0, 5))
def test_all_tumour_and_the_asked_number_of_normal_patches_are_kept(sizes, ratio, cap, seed):
    options = SamplingOptions(normal_per_tumor=ratio, max_normal_per_slide=cap, seed=seed)
    entries = cohort(sizes)
    before, after = counts(entries), counts(sample_index(entries, options))
    assert after["tumor"] == before["tumor"]
    limits = [normal if cap is None else min(normal, cap) for _, normal in sizes]
    wanted = round(ratio * before["tumor"]) if before["tumor"] else sum(limits)
    assert after["normal"] == min(wanted, sum(limits))
    for row, limit in zip(slide_table(sample_index(entries, options)), limits, strict=True):
        assert row["normal"] <= limit


@settings(max_examples=60, deadline=None)
@given(sizes=cohorts, seed=st.integers(0, 5))
def test_chosen_patches_keep_their_order_and_their_own_values(sizes, seed):
    entries = cohort(sizes)
    for before, after in zip(entries, sample_index(entries, SamplingOptions(seed=seed)), strict=True):
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
def test_a_new_slide_moves_only_the_margin(tmp_path_factory, sizes, new, name, ratio, cap, incomplete):
    listed = tmp_path_factory.getbasetemp() / "incomplete.txt"
    listed.write_text("slide_00\na_new\n")
    options = SamplingOptions(
        normal_per_tumor=ratio,
        max_normal_per_slide=cap,
        incomplete_slides=str(listed) if incomplete else None,
    )
    old_entries = cohort(sizes)
    old = chosen(sample_index(old_entries, options))
    after = sample_index(sorted([*old_entries, entry_of(name, *new)], key=lambda e: e["slide_path"]), options)
    kept = {patch for patch in chosen(after) if name not in patch[0]}
    # The old slides' choice only grows or only shrinks: nothing is exchanged, whatever the totals do.
    assert kept <= old or old <= kept


@settings(max_examples=60, deadline=None)
@given(sizes=cohorts)
def test_the_order_of_slides_does_not_matter(sizes):
    entries = cohort(sizes)
    assert chosen(sample_index(entries, SamplingOptions())) == chosen(
        sample_index(entries[::-1], SamplingOptions())
    )


def test_another_seed_chooses_other_patches():
    entries = cohort([(50, 1000)])
    one, other = (chosen(sample_index(entries, SamplingOptions(seed=seed))) for seed in (1, 2))
    assert len(one) == len(other) == 50
    assert len(one & other) < 15


def test_the_choice_is_spread_over_the_slide():
    (entry,) = sample_index(cohort([(200, 2000)]), SamplingOptions())
    places = [x // 256 - 200 for _, x, t in entry["patches"] if not t]
    quarters = [sum(500 * q <= place < 500 * (q + 1) for place in places) for q in range(4)]
    assert sum(quarters) == 200
    assert all(30 <= quarter <= 70 for quarter in quarters)


def test_normal_patches_come_from_slides_in_proportion():
    sampled = sample_index(cohort([(100, 0), (0, 100), (0, 300), (0, 600)]), SamplingOptions())
    assert [row["normal"] for row in slide_table(sampled)] == [0, 10, 30, 60]


def test_a_capped_slide_leaves_its_share_to_the_others():
    options = SamplingOptions(max_normal_per_slide=40)
    sampled = sample_index(cohort([(100, 0), (0, 100), (0, 300), (0, 600)]), options)
    assert [row["normal"] for row in slide_table(sampled)] == [0, 20, 40, 40]


numbers = {
    "available": st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 50), min_size=1),
    "total": st.integers(0, 300),
    "cap": st.none() | st.integers(0, 30),
}


@settings(max_examples=200, deadline=None)
@given(**numbers)
@example(available={"a": 3, "b": 1, "c": 1}, total=3, cap=None)
def test_patches_go_by_webster_s_claims_and_equal_claims_by_slide_id(available, total, cap):
    claims = sorted(
        (Fraction(2 * j - 1, 2 * count), name)
        for name, count in available.items()
        for j in range(1, min(count, count if cap is None else cap) + 1)
    )
    given_to = Counter(name for _, name in claims[:total])
    assert apportion(available, total, cap) == {name: given_to[name] for name in available}


@settings(max_examples=60, deadline=None)
@given(**numbers)
@example(available={"a": 3, "b": 1, "c": 1}, total=2, cap=None)
def test_one_more_patch_to_give_never_takes_one_from_a_slide(available, total, cap):
    fewer, more = apportion(available, total, cap), apportion(available, total + 1, cap)
    assert all(fewer[name] <= more[name] for name in available)
    assert sum(more.values()) - sum(fewer.values()) in (0, 1)


def test_test_slides_keep_every_patch_and_do_not_count_in_the_balance():
    entries = [entry_of("Test_001", 500, 900), entry_of("tumor_001", 10, 400)]
    whole, train = slide_table(sample_index(entries, SamplingOptions()))
    assert (whole["tumor"], whole["normal"]) == (500, 900)
    assert (train["tumor"], train["normal"]) == (10, 10)


def test_incompletely_annotated_slides_give_tumour_but_no_normal_patches(tmp_path):
    listed = tmp_path / "incomplete.txt"
    listed.write_text("# not all outlined\nTUMOR_015  # by the lab\n\n")
    entries = [entry_of("normal_001", 0, 200), entry_of("tumor_015", 20, 500)]
    normal, tumor = slide_table(sample_index(entries, SamplingOptions(incomplete_slides=str(listed))))
    assert (tumor["tumor"], tumor["normal"], normal["normal"]) == (20, 0, 20)


@pytest.mark.parametrize(
    "line", ["tumor_015.tif", "Tumor_015.SVS", "/data/images/tumor_015.tif  # by the lab"]
)
def test_incompletely_annotated_slides_may_be_listed_by_their_files(tmp_path, line):
    listed = tmp_path / "incomplete.txt"
    listed.write_text(f"{line}\n")
    entries = [entry_of("normal_001", 0, 200), entry_of("tumor_015", 20, 500)]
    _, tumor = slide_table(sample_index(entries, SamplingOptions(incomplete_slides=str(listed))))
    assert (tumor["tumor"], tumor["normal"]) == (20, 0)


def test_listed_slides_that_are_not_in_the_index_are_told(tmp_path):
    listed = tmp_path / "incomplete.txt"
    listed.write_text("tumor_051\nTumor_015\n")
    entries = [entry_of("tumor_015", 20, 500)]
    assert unknown_incomplete(entries, SamplingOptions(incomplete_slides=str(listed))) == ["tumor_051"]
    for source in ("CAMELYON16", None):
        assert unknown_incomplete(entries, SamplingOptions(incomplete_slides=source)) == []


def test_the_shipped_camelyon16_list_holds_the_twenty_training_slides_and_test_114():
    listed = incomplete_slides("camelyon16")
    assert len(listed) == 21
    assert {"tumor_010", "tumor_110", "test_114"} <= listed
    assert "tumor_001" not in listed


def test_a_list_that_cannot_be_read_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="incompletely annotated slides cannot be read"):
        incomplete_slides(tmp_path / "missing.txt")


def test_a_cohort_without_tumour_keeps_its_normal_patches_up_to_the_cap():
    entries = cohort([(0, 30), (0, 80)])
    assert counts(sample_index(entries, SamplingOptions()))["normal"] == 110
    assert counts(sample_index(entries, SamplingOptions(max_normal_per_slide=50)))["normal"] == 80


def test_the_ranks_are_the_same_on_every_machine():
    (entry,) = sample_index(cohort([(3, 30)]), SamplingOptions())
    assert [x // 256 for _, x, _ in entry["patches"]] == [0, 1, 2, 4, 7, 13]  # as first computed
