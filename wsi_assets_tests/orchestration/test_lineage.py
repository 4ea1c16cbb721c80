"""What is out of date follows from versions, and slides are left out for a reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_assets.orchestration.catalog import LEVEL_ASSETS, SLIDE_ASSETS
from wsi_assets.orchestration.lineage import (
    CODE_VERSIONS,
    Recorded,
    first_out_of_date,
    usable_slides,
    version_of,
)


def expected(asset, before):
    return version_of(asset, {}, before)


def up_to_date_chain():
    versions, before = {}, None
    for asset in LEVEL_ASSETS:
        versions[asset] = before = expected(asset, before)
    return versions


def test_a_chain_made_with_these_parameters_needs_no_work():
    assert first_out_of_date(LEVEL_ASSETS, up_to_date_chain(), expected) is None


@pytest.mark.parametrize("asset", LEVEL_ASSETS)
def test_work_starts_at_the_first_asset_that_is_missing(asset):
    versions = up_to_date_chain()
    versions[asset] = None
    assert first_out_of_date(LEVEL_ASSETS, versions, expected) == asset


@pytest.mark.parametrize("asset", LEVEL_ASSETS)
def test_a_changed_parameter_makes_its_asset_the_first_out_of_date(asset):
    changed = {"lr": 0.1}
    assert (
        first_out_of_date(
            LEVEL_ASSETS,
            up_to_date_chain(),
            lambda name, before: version_of(name, changed if name == asset else {}, before),
        )
        == asset
    )


@given(workers=st.integers(0, 64), batch=st.integers(1, 512))
def test_parameters_that_only_change_the_speed_make_nothing_out_of_date(workers, batch):
    assert version_of("test_predictions", {"prediction_batch_size": batch}, "x") == version_of(
        "test_predictions", {"prediction_batch_size": 64}, "x"
    )
    assert version_of("patch_store", {"extraction_workers": workers}, "x") == version_of(
        "patch_store", {}, "x"
    )


@pytest.mark.parametrize(
    ("asset", "name"),
    [
        ("tissue_regions", "scale_table"),
        ("sampled_index", "incomplete_slides"),
        ("trained_model", "weights"),
    ],
)
def test_of_a_file_a_parameter_names_the_contents_count_and_not_the_place(tmp_path, asset, name):
    (tmp_path / "one").write_text("slide_id,mpp\na,0.25\n")
    (tmp_path / "moved").write_text("slide_id,mpp\na,0.25\n")
    before = version_of(asset, {name: str(tmp_path / "one")}, "x")
    assert version_of(asset, {name: str(tmp_path / "moved")}, "x") == before
    (tmp_path / "one").write_text("slide_id,mpp\na,0.5\n")
    assert version_of(asset, {name: str(tmp_path / "one")}, "x") != before


def test_every_made_asset_has_a_code_version():
    made = {*LEVEL_ASSETS, *SLIDE_ASSETS, "level_comparison"}
    assert made == set(CODE_VERSIONS)


def states(**changes):
    given = {
        "on_disk": {"a"},
        "registered": ["a"],
        "current": {"a": ("S1", "X1")},
        "tissue": {"a": Recorded("t1", "S1")},
        "annotation": {"a": Recorded("x1", "X1")},
    }
    return usable_slides(**{**given, **changes})


def test_a_slide_whose_regions_are_of_its_present_files_takes_part():
    assert states() == ({"a": ["t1", "x1"]}, {})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"on_disk": set()}, "not in the slide folder"),
        ({"tissue": {}}, "no tissue_regions"),
        ({"annotation": {}}, "no annotation_regions"),
        ({"current": {"a": ("S2", "X1")}}, "its file changed"),
        ({"current": {"a": ("S1", "X2")}}, "its outline changed"),
    ],
)
def test_a_slide_is_left_out_by_name_and_reason(change, reason):
    usable, left_out = states(**change)
    assert not usable
    assert reason in left_out["a"]
