"""What is made by night, and what follows an index by a switch: always with a level's own parameters.

An automation condition would start these runs with the default parameters, so they are schedules and a
sensor that read the level's own. What is out of date is decided by pure functions. No model is requested.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from wsi_assets.errors import SlideError
from wsi_assets.files import digest
from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.automation import (
    SLIDES_PER_RUN,
    outlines_are_out_of_date,
    tissue_is_out_of_date,
)
from wsi_assets.orchestration.config import ASSET_CONFIG
from wsi_assets.orchestration.io_managers.patch_stores import PatchStoreIOManager
from wsi_assets.orchestration.level_state import LevelState, recorded_level
from wsi_assets.orchestration.lineage import Recorded, first_out_of_date, recorded, version_of
from wsi_assets.orchestration.partitions import LEVELS, SLIDES
from wsi_assets.orchestration.registry import known_sightings, slide_states
from wsi_assets.orchestration.resources.library import SlideLibrary
from wsi_assets.orchestration.resources.storage import Storage
from wsi_assets.orchestration.unfinished import is_busy

SLIDES_AT = "0 1 * * *"
INDEX_AT = "0 2 * * *"
FOLLOW_EVERY_LOOKS = 4
MOST_RUNS_A_NIGHT = 200

Usable = Mapping[str, Sequence[str]]


def index_is_out_of_date(level: int, index: Recorded, usable: Usable, with_missing: Usable) -> bool:
    """Whether a level's index, made with its own parameters, would come out different now.

    A slide that is merely gone from the folder is no reason: it may be an unplugged disk, and retiring it
    is the user's decision.

    Args:
        usable: what the level would be made from now.
        with_missing: the same with the slides that are gone from the folder, as they were last seen.
    """
    same = {
        version_of("slide_index", index.parameters, [level, dict(slides)])
        for slides in (usable, with_missing)
    }
    return index.version not in same


def too_many_missing(registered: Collection[str], on_disk: Collection[str]) -> str | None:
    """Why no index should be made now: more than half of the registered slides are gone from the folder."""
    gone = len(set(registered) - set(on_disk))
    if 2 * gone > len(registered):
        return f"{gone} of {len(registered)} slides are gone from the slide folder: is a disk not mounted?"
    return None


def followers_out_of_date(made: Mapping[str, Recorded], backend: str) -> tuple[list[str], str | None]:
    """Which of a level's sampled index and patch store are older than the index, and the version to come.

    Only assets that were made before follow. The version identifies the state that is asked for.
    """
    index = made.get("slide_index")
    chain = [asset for asset in ("sampled_index", "patch_store") if asset in made]
    if index is None or not chain or chain[0] != "sampled_index":
        return [], None
    versions: dict[str | None, str] = {None: index.version}

    def expected(asset: str, before: str | None) -> str:
        upstream = before or index.version
        made_from = [upstream, backend] if asset == "patch_store" else upstream
        versions[asset] = version_of(asset, made[asset].parameters, made_from)
        return versions[asset]

    stale = first_out_of_date(chain, {asset: made[asset].version for asset in chain}, expected)
    return ([], None) if stale is None else (chain[chain.index(stale) :], versions[stale])


def ranges(order: Sequence[str], wanted: Collection[str], at_most: int) -> Iterator[tuple[str, str]]:
    """First and last key of the stretches of ``order`` that are all wanted, none longer than ``at_most``."""
    stretch: list[str] = []
    for key in [*order, None]:
        if stretch and (key not in wanted or len(stretch) == at_most):
            yield stretch[0], stretch[-1]
            stretch = []
        if key in wanted:
            stretch.append(key)


def own_config(made: Mapping[str, Recorded], assets: Sequence[str]) -> dict[str, Any]:
    """Run configuration that makes ``assets`` with the parameters they have; unknown names are left out."""
    return {
        "ops": {
            asset: {
                "config": {
                    name: value
                    for name, value in made[asset].parameters.items()
                    if name in ASSET_CONFIG[asset].model_fields
                }
            }
            for asset in assets
        }
    }


@dg.schedule(
    job_name=catalog.LEVEL_PIPELINE,
    cron_schedule=INDEX_AT,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="At 2:00 UTC, makes the slide index again of every level that has one and whose slides "
    "changed, with the level's own parameters. Nothing changed, nothing runs; nothing below the index "
    "follows unless store_follows_index is on; no model is ever retrained. Costs a listing and some queries.",
)
def nightly_index(
    context: dg.ScheduleEvaluationContext, library: SlideLibrary
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    instance = context.instance
    try:
        listing = library.look()
    except SlideError as error:
        yield dg.SkipReason(str(error))
        return
    registered = instance.get_dynamic_partitions(SLIDES.name)
    doubt = too_many_missing(registered, {slide.slide_id for slide in listing.slides})
    if doubt:
        yield dg.SkipReason(doubt)
        return
    usable, _ = slide_states(instance, listing)
    with_missing, _ = slide_states(instance, listing, as_last_seen=True)
    due = []
    for level, index in recorded(instance, "slide_index", LEVELS.get_partition_keys()).items():
        if index_is_out_of_date(int(level), index, usable, with_missing):
            if is_busy(instance, level):
                context.log.warning(f"level {level} is being made: its index waits for the next night")
            else:
                due.append(level)
    for level in sorted(due):
        made = recorded_level(instance, level)
        yield dg.RunRequest(
            run_key=level,
            partition_key=level,
            asset_selection=[dg.AssetKey("slide_index")],
            run_config=own_config(made, ["slide_index"]),
            tags={catalog.LAUNCHED_BY: "nightly_index"},
        )
    if not due:
        yield dg.SkipReason("no slide of any level in use changed")


@dg.schedule(
    job_name=catalog.SLIDE_REGIONS,
    cron_schedule=SLIDES_AT,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="At 1:00 UTC, the safety net beside slides_follow: tries once more the regions of every "
    "slide that has none or whose files changed, e.g. after a full disk or a killed run. A bad slide "
    "fails once a night, in seconds, until it is replaced or retired.",
)
def nightly_slides(
    context: dg.ScheduleEvaluationContext, library: SlideLibrary
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    instance = context.instance
    try:
        there = {slide.slide_id for slide in library.look().slides}
    except SlideError as error:
        yield dg.SkipReason(str(error))
        return
    order = instance.get_dynamic_partitions(SLIDES.name)
    slides = there & set(order)
    seen = known_sightings(instance, slides)
    tissue = recorded(instance, "tissue_regions", slides)
    outlines = recorded(instance, "annotation_regions", slides)
    whole = {s for s in slides if tissue_is_out_of_date(seen.get(s), tissue.get(s))}
    rest = {
        s for s in slides - whole if outlines_are_out_of_date(seen.get(s), tissue.get(s), outlines.get(s))
    }
    wanted = [(pair, catalog.SLIDE_ASSETS) for pair in ranges(order, whole, SLIDES_PER_RUN)]
    wanted += [(pair, ("annotation_regions",)) for pair in ranges(order, rest, SLIDES_PER_RUN)]
    for (first, last), assets in wanted[:MOST_RUNS_A_NIGHT]:
        yield slides_request(first, last, assets)
    if not wanted:
        yield dg.SkipReason(f"the regions of all {len(slides)} slides are up to date")


def build_level_sensors(look_every_seconds: int) -> list[dg.SensorDefinition]:
    """The sensors over levels; they look at records only, a little less often than at the slide folder."""
    every_seconds = FOLLOW_EVERY_LOOKS * look_every_seconds

    @dg.sensor(
        job_name=catalog.LEVEL_PIPELINE,
        minimum_interval_seconds=every_seconds,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="The switch for sampled index and patch store: while it is on, they follow their slide "
        "index on every level that has them, with the level's own parameters. Only new patches are decoded. "
        "A state that failed is not tried again. Models never follow: launch level_pipeline to train.",
    )
    def store_follows_index(
        context: dg.SensorEvaluationContext, patch_io: dg.ResourceParam[PatchStoreIOManager]
    ) -> dg.SensorResult:
        asked: dict[str, str | None] = json.loads(context.cursor or "{}")
        requests = []
        for level in LEVELS.get_partition_keys():
            made = recorded_level(context.instance, level)
            assets, state = followers_out_of_date(made, patch_io.backend)
            if not assets or asked.get(level) == state or is_busy(context.instance, level):
                continue
            asked[level] = state
            requests.append(
                dg.RunRequest(
                    partition_key=level,
                    asset_selection=[dg.AssetKey(asset) for asset in assets],
                    run_config=own_config(made, assets),
                    tags={catalog.LAUNCHED_BY: "store_follows_index"},
                )
            )
        skip = None if requests else "every level's sampled index and store are as new as its index"
        return dg.SensorResult(run_requests=requests, skip_reason=skip, cursor=json.dumps(asked))

    @dg.sensor(
        job_name=catalog.LEVEL_LINEAGE,
        minimum_interval_seconds=every_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="When something of a level was made again, e.g. with other parameters, has the checks "
        "named fits_its_level say what below it is out of date. Makes nothing. Costs six queries a look.",
    )
    def lineage_watch(
        context: dg.SensorEvaluationContext, library: SlideLibrary, storage: Storage
    ) -> dg.SensorResult:
        known: dict[str, Any] = json.loads(context.cursor or "{}")
        requests = []
        for level, state in level_versions(context.instance).items():
            before = known.get(level, {"state": "", "out_of_date": []})
            if state == before["state"] or is_busy(context.instance, level):
                continue
            verdicts = LevelState(context.instance, storage.layout, library, level).lineage()
            out_of_date = [asset for asset, verdict in verdicts.items() if not verdict.passed]
            known[level] = {"state": state, "out_of_date": out_of_date}
            if out_of_date != before["out_of_date"]:
                # A run, although nothing is made: without one Dagster records a partition's check only once.
                # Not `partition_key`: a job of checks alone has no partitions of its own.
                tags = {catalog.LAUNCHED_BY: "lineage_watch", "dagster/partition": level}
                requests.append(dg.RunRequest(tags=tags))
        skip = None if requests else "no level's lineage changed"
        return dg.SensorResult(run_requests=requests, skip_reason=skip, cursor=json.dumps(known))

    return [store_follows_index, lineage_watch]


def level_versions(instance: dg.DagsterInstance) -> dict[str, str]:
    """Level -> digest of the versions of everything made of it."""
    versions: dict[str, list[str]] = {}
    for asset in catalog.LEVEL_ASSETS:
        for level, latest in recorded(instance, asset, LEVELS.get_partition_keys()).items():
            versions.setdefault(level, []).append(f"{asset}:{latest.version}")
    return {level: digest(made) for level, made in sorted(versions.items())}


def slides_request(first: str, last: str, assets: Sequence[str]) -> dg.RunRequest:
    """A run of the stretch of slides from ``first`` to ``last``, in the order they were registered."""
    tags = {catalog.LAUNCHED_BY: "nightly_slides"}
    if first != last:
        tags |= {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    return dg.RunRequest(
        run_key=f"{first}:{assets[0]}",
        partition_key=first if first == last else None,
        asset_selection=[dg.AssetKey(asset) for asset in assets],
        tags=tags,
    )


ALL_SCHEDULES = [nightly_slides, nightly_index]
