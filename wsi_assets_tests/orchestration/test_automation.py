"""What follows by itself and what does not, tick by tick, on real Dagster evaluation without a daemon."""

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.automation import (
    SLIDES_PER_RUN,
    outlines_are_out_of_date,
    tissue_is_out_of_date,
)
from wsi_assets.orchestration.build import build_definitions
from wsi_assets.orchestration.by_slide import for_each_slide
from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.lineage import (
    DATA_VERSION_TAG,
    MADE_FROM_TAG,
    Recorded,
    recorded,
    version_of,
)
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.registry import Sighting, observation
from wsi_assets.orchestration.schedules import (
    followers_out_of_date,
    index_is_out_of_date,
    own_config,
    ranges,
    too_many_missing,
)
from wsi_assets.orchestration.settings import Settings

TISSUE, OUTLINES = "tissue_regions", "annotation_regions"


class Ticks:
    """An instance in which files are seen and regions are made by hand, and what a tick asks for."""

    def __init__(self, home):
        self.instance = dg.DagsterInstance.ephemeral()
        self.definitions = build_definitions(Settings(home / "images", None, home / "storage"))
        self.cursor = None

    def see(self, slide_id: str, slide: str, outline: str = "none") -> None:
        self.instance.add_dynamic_partitions(SLIDES.name, [slide_id])
        self.report(slide_id, slide, outline)

    def report(self, slide_id: str, slide: str, outline: str = "none") -> None:
        sighting = Sighting(slide_id, f"{slide_id}.tif", None, f"{slide}{outline}", slide, outline)
        self.instance.report_runless_asset_event(observation(sighting))

    def make(self, asset: str, slide_id: str, made_from: str) -> None:
        version = version_of(asset, {}, made_from)
        if asset == OUTLINES:
            tissue = recorded(self.instance, TISSUE, [slide_id])[slide_id].version
            version = version_of(asset, {}, [made_from, tissue])
        tags = {DATA_VERSION_TAG: version, MADE_FROM_TAG: made_from}
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(asset, partition=slide_id, tags=tags, metadata={"parameters": {}})
        )

    def make_both(self, slide_id: str, slide: str, outline: str = "none") -> None:
        self.make(TISSUE, slide_id, slide)
        self.make(OUTLINES, slide_id, outline)

    def tick(self) -> dict[str, set[str]]:
        result = dg.evaluate_automation_conditions(
            self.definitions,
            self.instance,
            asset_selection=dg.AssetSelection.assets(*catalog.SLIDE_ASSETS),
            cursor=self.cursor,
        )
        self.cursor = result.cursor
        asked = {
            asset: set(result.get_requested_partitions(dg.AssetKey(asset))) for asset in catalog.SLIDE_ASSETS
        }
        return {asset: slides for asset, slides in asked.items() if slides}


@pytest.fixture
def ticks(tmp_path) -> Ticks:
    return Ticks(tmp_path)


def test_a_new_slide_gets_tissue_and_outlines_at_once_and_only_once(ticks):
    assert ticks.tick() == {}
    ticks.see("tumor_001", "s1")
    assert ticks.tick() == {TISSUE: {"tumor_001"}, OUTLINES: {"tumor_001"}}
    assert ticks.tick() == {}


def test_slides_seen_before_the_first_tick_are_not_forgotten(ticks):
    ticks.see("tumor_001", "s1")
    assert TISSUE in ticks.tick()


def test_slides_that_are_made_already_are_left_alone(ticks):
    ticks.see("tumor_001", "s1")
    ticks.make_both("tumor_001", "s1")
    assert ticks.tick() == {}


def test_an_observation_stored_before_its_partition_is_not_lost(ticks):
    ticks.tick()
    ticks.report("tumor_001", "s1")
    assert ticks.tick() == {}
    ticks.instance.add_dynamic_partitions(SLIDES.name, ["tumor_001"])
    assert ticks.tick() == {TISSUE: {"tumor_001"}, OUTLINES: {"tumor_001"}}


def test_a_changed_outline_re_does_the_outline_only(ticks):
    ticks.see("tumor_001", "s1")
    ticks.make_both("tumor_001", "s1")
    ticks.tick()
    for outline in ("o1", "o2", "none"):
        ticks.report("tumor_001", "s1", outline)
        assert ticks.tick() == {OUTLINES: {"tumor_001"}}
        ticks.make(OUTLINES, "tumor_001", outline)
        assert ticks.tick() == {}


def test_a_replaced_slide_re_does_tissue_and_then_what_is_shown_on_it(ticks):
    ticks.see("tumor_001", "s1")
    ticks.make_both("tumor_001", "s1")
    ticks.tick()
    ticks.report("tumor_001", "s2")
    assert ticks.tick() == {TISSUE: {"tumor_001"}}
    ticks.make(TISSUE, "tumor_001", "s2")
    assert ticks.tick() == {OUTLINES: {"tumor_001"}}


def test_a_slide_that_failed_waits_for_another_file(ticks):
    ticks.see("tumor_001", "s1")
    ticks.tick()
    assert [ticks.tick() for _ in range(3)] == [{}, {}, {}]
    ticks.report("tumor_001", "s2")
    assert ticks.tick()[TISSUE] == {"tumor_001"}


def test_outlines_of_slides_whose_tissue_was_made_in_a_run_that_failed_follow(ticks):
    ticks.see("good", "s1")
    ticks.see("bad", "s2")
    ticks.tick()
    ticks.make(TISSUE, "good", "s1")
    assert ticks.tick() == {OUTLINES: {"good"}}


def test_a_slide_mended_by_hand_is_not_made_a_second_time(ticks):
    ticks.see("tumor_001", "s1")
    ticks.tick()
    ticks.make_both("tumor_001", "s2")
    ticks.report("tumor_001", "s2")
    assert ticks.tick() == {}


@pytest.mark.parametrize("ends_well", [True, False])
def test_what_a_run_is_about_to_record_is_not_asked_for_again(ticks, some_job, ends_well):
    for slide_id in ("a", "b"):
        ticks.see(slide_id, "1")
        ticks.make(TISSUE, slide_id, "1")
        ticks.make(OUTLINES, slide_id, "none")

    stretch = {"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "b"}
    run = ticks.instance.create_run_for_job(some_job, tags=stretch, status=dg.DagsterRunStatus.STARTED)
    # Dagster's own record of all slides of a run says nothing of what each was made from.
    for asset in (TISSUE, OUTLINES):
        for slide_id in ("a", "b"):
            ticks.instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=slide_id))
    assert ticks.tick() == {}
    if ends_well:
        for slide_id in ("a", "b"):
            ticks.make_both(slide_id, "1")
        ticks.instance.report_run_failed(run)
        assert ticks.tick() == {}
    else:
        ticks.instance.report_run_failed(run)
        assert ticks.tick()[TISSUE] == {"a", "b"}


def test_nothing_below_the_slides_has_a_condition(ticks):
    graph = ticks.definitions.resolve_asset_graph()
    conditioned = {
        key.to_user_string()
        for key in graph.get_all_asset_keys()
        if graph.get(key).automation_condition is not None
    }
    assert conditioned == set(catalog.SLIDE_ASSETS)


def test_many_slides_share_runs(ticks):
    graph = ticks.definitions.resolve_asset_graph()
    for asset in catalog.SLIDE_ASSETS:
        assert graph.get(dg.AssetKey(asset)).backfill_policy.max_partitions_per_run == SLIDES_PER_RUN


def test_what_is_switched_on_and_what_is_not(ticks):
    repository = ticks.definitions.get_repository_def()
    running = {sensor.name for sensor in repository.sensor_defs if sensor.default_status.value == "RUNNING"}
    assert running == {"slide_folder", "slides_follow", "lineage_watch"}
    assert {schedule.name for schedule in repository.schedule_defs} == {"nightly_slides", "nightly_index"}
    assert all(schedule.default_status.value == "RUNNING" for schedule in repository.schedule_defs)
    assert {sensor.name for sensor in repository.sensor_defs} - running == {"store_follows_index"}


def test_one_bad_slide_of_a_run_costs_only_itself(tmp_path):
    layout = StorageLayout(tmp_path)

    @dg.asset(name="tissue_regions", partitions_def=dg.StaticPartitionsDefinition(["a", "b", "c"]))
    def made(context: dg.AssetExecutionContext):
        def make(slide_id: str) -> dg.MaterializeResult:
            if slide_id == "b":
                raise dg.Failure("b.tif: is damaged")
            return dg.MaterializeResult(
                value={"slide": slide_id},
                data_version=dg.DataVersion(f"version_of_{slide_id}"),
                tags={MADE_FROM_TAG: f"file_{slide_id}"},
            )

        yield from for_each_slide(context, layout, make)

    with dg.instance_for_test() as instance:
        result = dg.materialize(
            [made],
            instance=instance,
            tags={"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "c"},
            raise_on_error=False,
        )
        assert not result.success
        found = recorded(instance, "tissue_regions", ["a", "b", "c"])
    assert {key: (made.version, made.made_from) for key, made in found.items()} == {
        "a": ("version_of_a", "file_a"),
        "c": ("version_of_c", "file_c"),
    }
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "1 of 3" in failure.step_failure_data.user_failure_data.description
    assert "b.tif: is damaged" in failure.step_failure_data.user_failure_data.description
    assert layout.slide_artefact("tissue_regions", "a").is_file()


versions = st.text("ab", min_size=1, max_size=1)


@given(versions, versions, versions)
def test_tissue_does_not_depend_on_the_outline(slide, outline, made_from):
    seen = Sighting("x", "x.tif", None, "", slide, outline)
    assert tissue_is_out_of_date(seen, Recorded("v", made_from)) == (slide != made_from)
    assert tissue_is_out_of_date(seen, None)


@given(versions, versions, versions, versions)
def test_outlines_are_current_if_file_and_tissue_are_those_they_were_made_from(outline, tissue, was, was_on):
    seen = Sighting("x", "x.tif", None, "", "s", outline)
    made = Recorded(version_of(OUTLINES, {}, [was, was_on]), was)
    stale = outlines_are_out_of_date(seen, Recorded(tissue, "s"), made)
    assert stale == ((outline, tissue) != (was, was_on))


def test_a_slide_gone_from_the_folder_is_no_reason_to_make_an_index():
    both = {"a": ["t", "o", "a.tif"], "b": ["t", "o", "b.tif"]}
    index = Recorded(version_of("slide_index", {"patch_size": 128}, [1, both]), None, {"patch_size": 128})
    without_b = {"a": both["a"]}
    assert not index_is_out_of_date(1, index, both, both)
    assert not index_is_out_of_date(1, index, without_b, both)
    changed = {**without_b, "c": ["t", "o", "c.tif"]}
    assert index_is_out_of_date(1, index, changed, {**both, **changed})


def test_half_a_cohort_gone_is_a_disk_that_is_not_mounted():
    assert too_many_missing(["a", "b", "c"], ["a"])
    assert too_many_missing(["a", "b"], ["a"]) is None
    assert too_many_missing([], []) is None


def test_store_follows_its_index_only_where_it_was_made_before():
    index = Recorded("i2", None)
    old = Recorded(version_of("sampled_index", {}, "i1"), None)
    current = Recorded(version_of("sampled_index", {}, "i2"), None)
    store = Recorded(version_of("patch_store", {}, [current.version, "lmdb"]), None)
    assert followers_out_of_date({}, "lmdb") == ([], None)
    assert followers_out_of_date({"slide_index": index}, "lmdb") == ([], None)
    made = {"slide_index": index, "sampled_index": old}
    assert followers_out_of_date(made, "lmdb")[0] == ["sampled_index"]
    assert followers_out_of_date({**made, "patch_store": store}, "lmdb")[0] == [
        "sampled_index",
        "patch_store",
    ]
    made = {"slide_index": index, "sampled_index": current, "patch_store": store}
    assert followers_out_of_date(made, "lmdb") == ([], None)
    assert followers_out_of_date(made, "hdf5")[0] == ["patch_store"]


def test_a_level_keeps_its_own_parameters_but_for_those_that_are_gone():
    made = {"slide_index": Recorded("v", None, {"patch_size": 128, "of_an_older_version": 1})}
    assert own_config(made, ["slide_index"]) == {"ops": {"slide_index": {"config": {"patch_size": 128}}}}


@given(st.lists(st.integers(), unique=True), st.sets(st.integers()), st.integers(1, 4))
def test_ranges_hold_each_wanted_slide_once_and_no_other(order, wanted, at_most):
    keys, chosen = [str(key) for key in order], {str(key) for key in wanted}
    found = []
    for first, last in ranges(keys, chosen, at_most):
        stretch = keys[keys.index(first) : keys.index(last) + 1]
        assert len(stretch) <= at_most
        found += stretch
    assert found == [key for key in keys if key in chosen]
