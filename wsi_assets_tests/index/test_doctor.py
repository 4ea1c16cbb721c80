"""What the doctor says of slides."""

from __future__ import annotations

import pytest

from wsi_assets.errors import ConfigError
from wsi_assets.index.doctor import SlideHealth, _downsamples, add_patients_and_sides, examine
from wsi_assets.slides import Cohort, SlideFile, SlideRow


@pytest.mark.parametrize(
    ("downsamples", "shown"),
    [
        ([1.0], "1"),
        ([1.0, 4.0, 16.003], "1, 4, 16.003"),
        ([1.0, 2.0, 4.0, 8.0, 16.0], "1, 2 … 16"),
        ([1.0, 2.0, 4.016, 8.0, 16.1, 32.2], "1, 2 … 32.2"),
    ],
)
def test_many_downsamples_are_shown_by_their_ends(downsamples, shown):
    assert _downsamples(downsamples) == shown


def test_a_slides_patient_and_side_are_the_cohorts_or_else_its_names():
    rows = [SlideHealth(name) for name in ("test_1", "patient_2_node_1", "patient_2_node_2", "S21")]
    add_patients_and_sides(
        rows, Cohort(rows={"s21": SlideRow("P9", "test"), "patient_2_node_2": SlideRow(split="train")})
    )
    assert [(row.patient, row.side) for row in rows] == [
        ("", "test"),
        ("patient_2", "train"),
        ("patient_2", "train"),
        ("P9", "test"),
    ]
    with pytest.raises(ConfigError):
        add_patients_and_sides(
            rows, Cohort(rows={"s21": SlideRow("test_1", "train"), "test_1": SlideRow(split="test")})
        )


@pytest.mark.parametrize(("label", "problems"), [(None, 0), ("normal", 0), ("tumor", 1)])
def test_a_slide_labeled_tumor_without_annotation_is_a_problem(real_data, label, problems):
    path = real_data / "slides/CMU-1-Small-Region.svs"
    health = examine(SlideFile("a", path, None, SlideRow(label=label, base_mag=40.0, mpp=0.25)))
    assert (health.magnification, health.mpp) == ("40 (cohort)", "0.25")
    assert len(health.problems) == problems


def test_a_name_that_contradicts_its_annotation_is_a_problem_until_the_cohort_says_what_it_is(real_data):
    path = real_data / "slides/CMU-1-Small-Region.svs"
    problems = [
        len(examine(SlideFile("tumor_7", path, None, SlideRow(label=label))).problems)
        for label in (None, "normal")
    ]
    assert problems == [1, 0]
