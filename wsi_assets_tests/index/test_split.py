import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from wsi_assets.errors import SlideIndexError
from wsi_assets.index import SamplingOptions, fold_slides, sample_index, split_slides
from wsi_assets.index.split import MIN_VALIDATION_PATCHES, patients
from wsi_assets.slides.naming import patient_of


def index_of(*slides, **changes):
    """(slide id, normal patches, tumor patches) to an index with the specification's keys."""
    return {
        name: {
            "slide_path": f"{name}.tif",
            "label": patient_of(name),
            "patches": [(0, i, i >= normal) for i in range(normal + tumor)],
            **changes,
        }
        for name, normal, tumor in slides
    }


def side(sides, wanted):
    return {patient_of(name).lower() for name, found in sides.items() if found == wanted}


def held(index, sides, wanted):
    """(normal, tumor) patches of a side."""
    flags = [patch[2] for name, entry in index.items() if sides[name] == wanted for patch in entry["patches"]]
    return len(flags) - sum(flags), sum(flags)


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


@settings(deadline=None, max_examples=60)
@given(slides=cohorts, seed=st.integers(0, 9), val_size=st.floats(0.05, 0.5))
def test_training_and_validation_have_both_classes_or_there_is_no_validation(slides, seed, val_size):
    index = index_of(*slides)
    sides = split_slides(index, val_size, seed)
    if "validation" not in sides.values():
        return
    for wanted in ("train", "validation"):
        assert all(held(index, sides, wanted))
    if side(sides, "train") & side(sides, "validation"):
        # Slides were drawn because no choice of patients would do.
        shared = {name for name, found in sides.items() if found == "validation"}
        assert shared != set(index)


def test_a_tenth_of_the_patients_with_and_without_tumor_is_for_validation():
    index = index_of(*((f"patient_{p:03d}", 10, 10 if p < 40 else 0) for p in range(100)))
    validating = side(split_slides(index, 0.1, 42), "validation")
    assert len(validating) == 10
    assert sum(int(patient[-3:]) < 40 for patient in validating) == 4


def test_patients_are_added_until_validation_holds_enough_of_each_class():
    index = index_of(*((f"patient_{p:03d}", 40, 5) for p in range(40)))
    sides = split_slides(index, 0.05, 42)
    assert held(index, sides, "validation") == (240, MIN_VALIDATION_PATCHES)
    few = index_of(*((f"patient_{p:03d}", 40, 5) for p in range(6)))
    assert held(few, split_slides(few, 0.05, 42), "validation")[1] == 10  # a third, and no more


@pytest.mark.parametrize("seed", range(5))
def test_a_patient_whose_slides_differ_in_capitals_is_on_one_side(seed):
    names = [name for p in range(12) for name in (f"patient_{p:02d}_node_1", f"Patient_{p:02d}_Node_2")]
    index = index_of(*((name, 2, 2) for name in names))
    sides = split_slides(index, 0.3, seed)
    assert not side(sides, "train") & side(sides, "validation")
    assert side(sides, "validation")


def test_test_slides_neither_train_nor_validate():
    index = index_of(("a", 4, 4), ("b", 4, 4), ("TEST_001", 9, 9), ("test_b_node_2", 9, 9))
    sides = split_slides(index, 0.1, 42)
    assert {name for name, found in sides.items() if found == "test"} == {"TEST_001", "test_b_node_2"}


def test_a_single_patient_with_both_classes_can_make_a_patient_split_possible():
    index = index_of(("tumor_1", 0, 9), ("normal_1", 9, 0), ("mixed_1", 5, 5))
    for seed in range(8):
        validating = side(split_slides(index, 0.1, seed), "validation")
        assert validating in ({"mixed_1"}, {"tumor_1", "normal_1"})


def test_slides_are_drawn_if_one_patient_has_all_tumor():
    index = index_of(("patient_1_node_1", 5, 5), ("patient_1_node_2", 5, 5))
    sides = split_slides(index, 0.1, 42)
    assert sorted(sides.values()) == ["train", "validation"]


def test_a_new_patient_leaves_nearly_all_others_on_their_side():
    slides = [(f"p{p:02d}", 9, 9) for p in range(30)]
    before = split_slides(index_of(*slides), 0.2, 42)
    after = split_slides(index_of(*slides, ("p99", 9, 9)), 0.2, 42)
    assert sum(before[name] != after[name] for name in before) <= 1
    assert split_slides(index_of(*slides[::-1]), 0.2, 42) == before
    assert len({frozenset(side(split_slides(index_of(*slides), 0.2, s), "validation")) for s in range(5)}) > 1


def test_sampling_keeps_every_patch_of_validation_and_test_slides():
    index = index_of(*((f"patient_{p:02d}", 500, 10) for p in range(12)), ("test_1", 500, 10))
    sampled = sample_index(index, SamplingOptions(normal_per_tumor=5))
    assert {entry["split"] for entry in sampled.values()} == {"train", "validation", "test"}
    for name, entry in sampled.items():
        whole = len(entry["patches"]) == 510
        assert whole is (entry["split"] != "train"), name
    training = [entry for entry in sampled.values() if entry["split"] == "train"]
    flags = [patch[2] for entry in training for patch in entry["patches"]]
    assert len(flags) == 6 * sum(flags)


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_hold_whole_patients_and_every_slide_once(folds):
    index = index_of(
        *((f"patient_{p:02d}_node_{n}", 5, p % 2) for p in range(10) for n in range(2)), ("test_1", 1, 1)
    )
    fold_of = fold_slides(index, folds, 42)
    assert set(fold_of) == set(index) - {"test_1"}
    assert set(fold_of.values()) == set(range(folds))
    by_patient = {}
    for name, fold in fold_of.items():
        by_patient.setdefault(patient_of(name), set()).add(fold)
    assert all(len(found) == 1 for found in by_patient.values())
    with_tumor = [{int(name[8:10]) % 2 for name in fold_of if fold_of[name] == fold} for fold in range(folds)]
    assert all(kinds == {0, 1} for kinds in with_tumor)


def test_fewer_patients_than_folds_is_an_error():
    with pytest.raises(SlideIndexError):
        fold_slides(index_of(("a", 1, 1), ("b", 1, 1)), 3, 0)


def test_the_patient_of_an_entry_without_a_label_comes_from_its_id():
    index = index_of(("patient_1_node_1", 1, 1), ("Patient_1_node_2", 1, 1))
    for entry in index.values():
        del entry["label"]
    assert len(set(patients(index).values())) == 1
