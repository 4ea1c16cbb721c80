"""Each gate says no to the fault it is for, and names it."""

from __future__ import annotations

import json

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_assets.orchestration import catalog, gates
from wsi_assets.orchestration.build import build_definitions
from wsi_assets.orchestration.curation import CURATION
from wsi_assets.orchestration.settings import Settings


def entry(slide: str, *patches: tuple[int, int, int]) -> dict:
    return {"slide_path": f"{slide}.tif", "patches": list(patches)}


def is_test(path: str) -> bool:
    return "test" in path


INDEX = [entry("tumor_001", (0, 0, 1), (0, 256, 0), (256, 0, 0)), entry("test_001", (0, 0, 0), (0, 256, 1))]


def test_a_sample_of_the_index_passes():
    sampled = [entry("tumor_001", (0, 0, 1), (256, 0, 0)), INDEX[1]]
    assert gates.sample_is_of_index(INDEX, sampled, is_test).passed


def test_a_sample_from_before_the_slides_moved_is_of_the_index_all_the_same():
    moved = [{**one, "slide_path": f"moved/{one['slide_path']}"} for one in INDEX]
    assert gates.sample_is_of_index(moved, INDEX, is_test).passed


@pytest.mark.parametrize(
    ("sampled", "named"),
    [
        ([entry("tumor_001", (0, 0, 0)), INDEX[1]], "tumor_001"),
        ([entry("tumor_001", (7, 7, 1)), INDEX[1]], "tumor_001"),
        ([INDEX[0], entry("test_001", (0, 0, 0))], "test_001"),
        ([INDEX[0]], "test_001"),
        ([*INDEX, entry("unknown", (0, 0, 1))], "unknown"),
    ],
    ids=["another label", "another place", "part of a test slide", "no test slide", "another slide"],
)
def test_a_sample_that_is_not_of_its_index_is_named(sampled, named):
    verdict = gates.sample_is_of_index(INDEX, sampled, is_test)
    assert not verdict.passed
    assert named in verdict.text


def test_classes_are_counted_without_the_test_slides():
    assert gates.has_both_classes(INDEX, is_test).passed
    assert not gates.has_both_classes([entry("tumor_001", (0, 0, 1)), INDEX[1]], is_test).passed
    assert not gates.has_both_classes([entry("normal_001", (0, 0, 0)), INDEX[1]], is_test).passed


def test_a_store_must_have_the_content_and_the_number_its_index_asks_for():
    assert gates.store_equals_index("d", "d", 98, 2, 100).passed
    assert not gates.store_equals_index("d", "d", 98, 1, 100).passed
    assert not gates.store_equals_index("d", "e", 98, 2, 100).passed


@given(st.integers(0, 50), st.integers(1, 1000), st.floats(0, 1))
def test_unreadable_patches_are_bounded_by_share(lost, wanted, most):
    assert gates.few_quarantined(lost, wanted, most).passed == (lost / wanted <= most)


def test_a_patient_on_two_sides_is_named_and_a_split_by_slide_says_why():
    row = {"patient": "tumor_001", "side": "train"}
    other = {"patient": "tumor_002", "side": "val"}
    assert gates.no_leakage([row, other], "patient").passed
    verdict = gates.no_leakage([row, {**row, "side": "test"}, other], "slide")
    assert not verdict.passed
    assert "tumor_001: test and train" in verdict.text
    assert "by slide" in verdict.text


@pytest.mark.parametrize(
    ("row", "passes"),
    [
        ({"figure": "roc_auc", "value": 0.9, "low (95 %)": 0.8}, True),
        ({"figure": "roc_auc", "value": 0.6, "low (95 %)": 0.4}, False),
        ({"figure": "roc_auc", "value": None, "low (95 %)": None, "remark": "one class"}, False),
        ({"figure": "something else", "value": 0.9}, False),
    ],
)
def test_better_than_chance_means_the_whole_interval(row, passes):
    assert gates.beats_chance([row]).passed == passes


def test_without_an_interval_the_auc_itself_counts_and_the_gate_says_so():
    verdict = gates.beats_chance([{"figure": "roc_auc", "value": 0.488, "low (95 %)": None}])
    assert not verdict.passed
    assert verdict.text == "AUC 0.488 (no interval), chance is 0.5"
    assert gates.beats_chance([{"figure": "roc_auc", "value": 0.512}]).passed


def test_a_model_must_beat_the_larger_class():
    figures = {"majority_share": 0.8, "val_acc": 0.9, "val_auc": 0.95}
    assert gates.beats_majority({**figures, "better_than_majority": True}).passed
    assert not gates.beats_majority({**figures, "better_than_majority": False}).passed
    assert not gates.beats_majority({}).passed


def test_a_report_is_complete_with_both_files_and_every_test_slide(tmp_path):
    assert not gates.report_is_complete(tmp_path, ["test_001"]).passed
    (tmp_path / "report.html").write_text("<html>")
    (tmp_path / "metrics.json").write_text("{")
    assert not gates.report_is_complete(tmp_path, ["test_001"]).passed
    (tmp_path / "metrics.json").write_text(json.dumps({"patch": {"per_slide": {"test_001": {}}}}))
    assert gates.report_is_complete(tmp_path, ["test_001"]).passed
    missing = gates.report_is_complete(tmp_path, ["test_001", "test_002"])
    assert not missing.passed
    assert "test_002" in missing.text


def test_a_slide_made_with_other_parameters_is_named_with_the_difference():
    parameters = {"a": {"work_level": 7}, "b": {"work_level": 7}, "odd": {"work_level": 5}}
    verdict = gates.made_alike(parameters)
    assert not verdict.passed
    assert verdict.text == "odd: work_level=5 instead of 7"
    del parameters["odd"]
    assert gates.made_alike(parameters).passed


CHAIN = catalog.LEVEL_ASSETS


def test_a_level_of_one_piece_has_no_breaks():
    made = dict.fromkeys(CHAIN, "v")
    assert gates.chain_breaks(CHAIN, made, made) == {}
    assert gates.chain_breaks(CHAIN, {"slide_index": "v"}, {"slide_index": "v"}) == {}


def test_what_was_made_from_an_earlier_asset_is_named_with_all_below_it():
    made = dict.fromkeys(CHAIN, "v")
    breaks = gates.chain_breaks(CHAIN, made, {**made, "patch_store": "w"})
    assert list(breaks) == ["patch_store", "trained_model", "test_predictions", "evaluation"]
    assert "sampled_index" in breaks["patch_store"]
    assert "patch_store" in breaks["trained_model"]


def test_every_asset_of_a_level_has_its_gates_and_only_corruption_blocks(tmp_path):
    graph = build_definitions(Settings(tmp_path, None, tmp_path / "storage")).resolve_asset_graph()
    specs = {key: graph.get(key) for key in graph.asset_check_keys}
    assert {key.asset_key.to_user_string() for key in specs} == set(catalog.LEVEL_ASSETS)
    assert set(CURATION) < {key.name for key in specs if key.asset_key == dg.AssetKey("slide_index")}
    assert {key.name for key, node in specs.items() if node.blocking} == {
        "sample_is_of_index",
        "store_equals_its_index",
        "few_patches_unreadable",
        "patches_show_their_slides",
    }
    assert all(len(node.description or "") > 30 for node in specs.values())
