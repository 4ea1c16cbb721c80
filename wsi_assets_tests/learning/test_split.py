import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from wsi_assets.errors import ModelError
from wsi_assets.learning import TrainingOptions, split_patches
from wsi_assets.slides.naming import patient_of


def patches_of(*slides):
    """(slide id, normal patches, tumour patches) to slide ids and labels."""
    ids, labels = [], []
    for name, normal, tumor in slides:
        ids += [name] * (normal + tumor)
        labels += [0] * normal + [1] * tumor
    return ids, labels


def patients_of(split, ids, side):
    return {patient_of(ids[i]) for i in getattr(split, side)}


cohorts = st.lists(
    st.tuples(
        st.sampled_from([f"patient_{p:02d}_node_{n}" for p in range(14) for n in range(2)]),
        st.integers(0, 6),
        st.integers(0, 6),
    ),
    min_size=2,
    max_size=24,
    unique_by=lambda slide: slide[0],
)


@settings(deadline=None, max_examples=80)
@given(slides=cohorts, seed=st.integers(0, 9), val_size=st.floats(0.05, 0.5))
def test_no_patient_is_on_both_sides_and_both_sides_hold_both_classes(slides, seed, val_size):
    ids, labels = patches_of(*slides)
    try:
        split = split_patches(ids, labels, TrainingOptions(seed=seed, val_size=val_size))
    except ModelError:
        assert min(labels.count(0), labels.count(1)) < 2
        return
    assert sorted([*split.train, *split.val]) == list(range(len(ids)))
    for side in (split.train, split.val):
        assert set(np.array(labels)[side]) == {0, 1}
    if split.unit == "patient":
        assert not patients_of(split, ids, "train") & patients_of(split, ids, "val")
        assert not split.notes
    else:
        assert any("looks better than it would on a new patient" in note for note in split.notes)
    if split.unit == "slide":
        assert not {ids[i] for i in split.train} & {ids[i] for i in split.val}


def test_few_patients_are_stratified_too_whatever_their_sizes():
    # By share of patches alone three or four of the tumour patients would validate.
    sizes = [(f"tumor_{p}", 10, 10) for p in range(4)]
    sizes += [(f"normal_{p}", n, 0) for p, n in enumerate((10, 10, 10, 200))]
    ids, labels = patches_of(*sizes)
    val = patients_of(split_patches(ids, labels, TrainingOptions(val_size=0.25)), ids, "val")
    assert sorted(name.split("_")[0] for name in val) == ["normal", "tumor"]


@pytest.mark.parametrize("seed", range(5))
def test_a_patient_whose_slides_differ_in_capitals_is_on_one_side(seed):
    names = [name for p in range(12) for name in (f"patient_{p:02d}_node_1", f"Patient_{p:02d}_Node_2")]
    ids, labels = patches_of(*((name, 2, 2) for name in names))
    split = split_patches(ids, labels, TrainingOptions(seed=seed, val_size=0.3))
    sides = [{patient_of(ids[i]).lower() for i in side} for side in (split.train, split.val)]
    assert split.unit == "patient"
    assert not sides[0] & sides[1]


def test_a_tenth_of_the_patients_of_each_kind_validates():
    slides = [(f"patient_{p:03d}", 10, 10 if p < 40 else 0) for p in range(100)]
    ids, labels = patches_of(*slides)
    val = patients_of(split_patches(ids, labels, TrainingOptions()), ids, "val")
    assert len(val) == 10
    assert sum(int(patient[-3:]) < 40 for patient in val) == 4


def test_slides_of_one_patient_stay_together_under_the_patient_pattern():
    ids, labels = patches_of(*[(f"lab7-{p}-{s}", 3, 3) for p in range(5) for s in range(3)])
    split = split_patches(ids, labels, TrainingOptions(), r"^lab7-(\d+)-\d+$")
    assert split.unit == "patient"
    assert len({ids[i] for i in split.val}) == 3
    assert len({ids[i].split("-")[1] for i in split.val}) == 1


def test_test_slides_neither_train_nor_validate():
    ids, labels = patches_of(("a", 4, 4), ("b", 4, 4), ("TEST_001", 9, 9), ("test_b_node_2", 9, 9))
    split = split_patches(ids, labels, TrainingOptions())
    assert not [i for i in (*split.train, *split.val) if "test" in ids[i].lower()]
    assert {row["side"] for row in split.rows if "test" in row["patient"].lower()} == {"test"}


def test_a_patient_with_test_slides_and_others_is_named():
    slides = [("p1_a", 4, 4), ("p2_a", 4, 4), ("p3_a", 4, 4), ("p2_test", 9, 9)]
    split = split_patches(*patches_of(*slides), TrainingOptions(), r"^(p\d)")
    assert [note for note in split.notes if "1 patients have test slides and others (p2)" in note]
    assert not split_patches(*patches_of(*slides), TrainingOptions(), "^(.*)$").notes


def test_the_only_mixed_patient_may_be_what_makes_a_patient_split_possible():
    # Tumour-only, normal-only and one mixed patient: either the mixed one alone validates, or the others.
    ids, labels = patches_of(("tumor_1", 0, 9), ("normal_1", 9, 0), ("mixed_1", 5, 5))
    for seed in range(8):
        split = split_patches(ids, labels, TrainingOptions(seed=seed))
        assert split.unit == "patient"
        assert patients_of(split, ids, "val") in ({"mixed_1"}, {"tumor_1", "normal_1"})


@pytest.mark.parametrize(
    ("slides", "unit"),
    [
        ([("patient_1_node_1", 5, 5), ("patient_1_node_2", 5, 5)], "slide"),
        ([("patient_1_node_1", 5, 5)], "patch"),
        ([("patient_1_node_1", 50, 0), ("patient_2_node_1", 0, 50)], "patch"),
    ],
)
def test_too_few_patients_fall_back_and_say_so(slides, unit):
    ids, labels = patches_of(*slides)
    split = split_patches(ids, labels, TrainingOptions())
    assert split.unit == unit
    assert "Too few patients" in split.notes[0]


def test_one_class_cannot_be_split():
    ids, labels = patches_of(("a", 9, 1), ("b", 9, 0), ("test_1", 5, 5))
    with pytest.raises(ModelError, match="1 tumour and 18 normal") as caught:
        split_patches(ids, labels, TrainingOptions())
    assert "\n" not in str(caught.value)


def test_the_split_depends_on_seed_and_ids_and_not_on_their_order():
    slides = [(f"p{p:02d}", 2, 2) for p in range(30)]
    options = TrainingOptions(val_size=0.2)

    def val(slides, options):
        ids, labels = patches_of(*slides)
        return patients_of(split_patches(ids, labels, options), ids, "val")

    assert val(slides, options) == val(slides[::-1], options)
    assert len({frozenset(val(slides, TrainingOptions(val_size=0.2, seed=s))) for s in range(5)}) > 1


def test_the_table_counts_every_patch_once():
    ids, labels = patches_of(("a_node_1", 4, 1), ("a_node_2", 3, 2), ("b", 6, 2), ("test_1", 1, 1))
    rows = split_patches(ids, labels, TrainingOptions()).rows
    assert sum(row["tumor"] for row in rows) == sum(labels)
    assert sum(row["normal"] for row in rows) == len(labels) - sum(labels)
    assert next(row for row in rows if row["patient"] == "a")["slides"] == "a_node_1, a_node_2"
