"""When slides' regions are made without being asked: one rule for both assets, and the sensor applying it.

A rule only says what is out of date; how it is made is in the assets. Levels follow on schedules, in
:mod:`.schedules`. Nothing here requests a model.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass

import dagster as dg

from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.lineage import Recorded, recorded, version_of
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.registry import Sighting, known_sightings
from wsi_assets.orchestration.unfinished import slides_in_work

# Batches of slides and a rule of our own are what slides need; that Dagster calls them beta is no
# news to a user.
warnings.filterwarnings("ignore", category=dg.BetaWarning)

SLIDES_PER_RUN = 50
"""Slides whose regions one run makes: a run costs seconds to start, and ten thousand of them hide a fault."""

EVENTS_A_PAGE = 1000


def tissue_is_out_of_date(seen: Sighting | None, tissue: Recorded | None) -> bool:
    """Whether tissue was made from other bytes than the slide holds now; its outline does not matter."""
    return seen is not None and (tissue is None or tissue.made_from != seen.slide_version)


def outlines_are_out_of_date(
    seen: Sighting | None, tissue: Recorded | None, outlines: Recorded | None
) -> bool:
    """Whether outlines were made from another file, or beside other tissue, than there is now."""
    if seen is None or outlines is None:
        return seen is not None
    if outlines.made_from != seen.annotation_version:
        return True
    now = [seen.annotation_version, tissue.version if tissue else None]
    return tissue is not None and outlines.version != version_of(
        "annotation_regions", outlines.parameters, now
    )


@dataclass(frozen=True)
class MadeFromOtherFiles(dg.AutomationCondition):
    """True for slides whose regions were made from other contents than the slide folder holds now.

    Only slides that something happened to since the last tick are compared, and each is requested once
    for it: a slide that fails waits for its file, or a user, to change something.
    """

    asset: str

    @property
    def name(self) -> str:
        return f"{self.asset} made from other files"

    @property
    def description(self) -> str:
        return "The slide's files changed since its regions were made, or it has none. Asked once a change"

    def evaluate(self, context: dg.AutomationContext) -> dg.AutomationResult:
        instance = context.asset_graph_view.instance
        state = json.loads(context.cursor) if context.cursor else {"after": {}, "pending": []}
        pending = set(state["pending"])
        requested = context.get_previous_requested_subset(context.key)
        if requested is not None:
            pending -= requested.expensively_compute_partition_keys()
        for source in self._sources:
            touched, state["after"][source] = _touched(instance, source, state["after"].get(source))
            pending |= touched
        every_slide = instance.get_dynamic_partitions(SLIDES.name)
        registered = pending & set(every_slide)
        # Before the records are read: a run that ends in between has written them. While a run of many slides
        # goes on, a slide's record may for a moment be the one Dagster writes for all of them.
        in_work = slides_in_work(instance, every_slide) if registered else set()
        stale = self._out_of_date(instance, registered)
        # A sensor's observations are stored before its partitions: what is not registered yet will be.
        state["pending"] = sorted((pending - registered) | stale)
        return dg.AutomationResult(
            context,
            context.candidate_subset.compute_intersection_with_partition_keys(stale - in_work),
            cursor=json.dumps(state),
        )

    @property
    def _sources(self) -> tuple[str, ...]:
        return ("slide_file",) if self.asset == "tissue_regions" else ("slide_file", "tissue_regions")

    def _out_of_date(self, instance: dg.DagsterInstance, slides: set[str]) -> set[str]:
        seen = known_sightings(instance, slides)
        tissue = recorded(instance, "tissue_regions", slides)
        if self.asset == "tissue_regions":
            return {s for s in slides if tissue_is_out_of_date(seen.get(s), tissue.get(s))}
        outlines = recorded(instance, "annotation_regions", slides)
        return {s for s in slides if outlines_are_out_of_date(seen.get(s), tissue.get(s), outlines.get(s))}


def follow_slide_files(asset: str) -> dg.AutomationCondition:
    """The condition under which ``asset``, of the slide assets, is made again by itself."""
    tissue = dg.AssetSelection.assets("tissue_regions")
    ready = dg.AutomationCondition.any_deps_missing().allow(tissue)
    busy = dg.AutomationCondition.any_deps_in_progress().allow(tissue)
    rule = MadeFromOtherFiles(asset) & ~dg.AutomationCondition.in_progress()
    return (rule if asset == "tissue_regions" else rule & ~ready & ~busy).with_label(
        "the slide's files changed"
    )


def build_slides_follow(look_every_seconds: int) -> dg.AutomationConditionSensorDefinition:
    """The sensor that applies the conditions of the slide assets, as often as the folder is looked at."""
    return dg.AutomationConditionSensorDefinition(
        "slides_follow",
        target=dg.AssetSelection.assets(*catalog.SLIDE_ASSETS),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=look_every_seconds,
        use_user_code_server=True,
        run_tags={catalog.LAUNCHED_BY: "slides_follow"},
        description="Makes the regions of slides whose files are new or changed: an outline that arrives or "
        f"changes re-does the outline only. Up to {SLIDES_PER_RUN} slides share a run; one bad slide fails "
        "alone, and is tried again when its file changes. Costs two small queries a look.",
    )


def _touched(instance: dg.DagsterInstance, source: str, after: int | None) -> tuple[set[str], int | None]:
    """Slides that events of ``source`` newer than ``after`` speak of, and the newest such event."""
    fetch = instance.fetch_observations if source == "slide_file" else instance.fetch_materializations
    slides: set[str] = set()
    newest, page_cursor = after, None
    while True:
        page = fetch(
            dg.AssetRecordsFilter(dg.AssetKey(source), after_storage_id=after),
            limit=EVENTS_A_PAGE,
            cursor=page_cursor,
        )
        slides |= {record.partition_key for record in page.records if record.partition_key}
        newest = max((newest or 0, *(record.storage_id for record in page.records)))
        if not page.has_more:
            return slides, newest
        page_cursor = page.cursor
