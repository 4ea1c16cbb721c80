"""Sensors: one watches the slide folder, one requests predictions of new slides.

The first adds partitions and reports changed files; it never removes a slide. Automation conditions then
make the regions of new and changed slides.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from wsi_assets.errors import ConfigError, ModelError, SlideError
from wsi_assets.files import digest
from wsi_assets.orchestration.assets.slide_prediction import (
    PREDICT_SLIDES,
    SLIDE_PREDICTION,
    find_detector,
    unpredicted,
)
from wsi_assets.orchestration.assets.slides import TISSUE_REGIONS
from wsi_assets.orchestration.config import options_of
from wsi_assets.orchestration.mlflow import MlflowResource
from wsi_assets.orchestration.partition_batches import SLIDES_PER_RUN
from wsi_assets.orchestration.partitions import LEVELS, SLIDES, both, range_tags, stretches
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets.orchestration.slide_folder import (
    RETIRED,
    SLIDE_IMAGE,
    Seen,
    doubt,
    is_changed,
    known_slides,
    news,
    news_of_levels,
    observe_all,
    signature_of,
)
from wsi_assets.orchestration.storage import StorageResource

MOST_A_POLL = 500
"""Most new or changed slides read in one poll, to stay below Dagster's time limit; the next poll goes on."""


def build_slide_folder_sensor(poll_seconds: int) -> dg.SensorDefinition:
    """The sensor that watches the slide folder, with at least ``poll_seconds`` between two polls."""

    @dg.sensor(
        name="slide_folder",
        minimum_interval_seconds=poll_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Lists the slide folder every {poll_seconds} s (WSI_POLL_SECONDS). A new or changed "
        "slide or annotation whose size and time are the same in two polls gets a partition and an "
        "observation. Nothing is ever removed; an empty or unreachable folder is reported and listed again. "
        "Each poll lists the folder and reads some megabytes of each changed slide.",
    )
    def slide_folder(
        context: dg.SensorEvaluationContext, folder: SlideFolderResource, storage: StorageResource
    ) -> dg.SensorResult | dg.SkipReason:
        try:
            listing = folder.list()
            registered = set(context.instance.get_dynamic_partitions(SLIDES.name))
            faults = [*listing.strays, *(f"{name}: {why}" for name, why in listing.left_out.items())]
            now: dict[str, dict[str, str]] = {}
            for slide in listing.slides:
                try:
                    now[slide.slide_id] = signature_of(slide)
                except SlideError as error:
                    faults.append(str(error))
            # The cursor of the last poll: a digest of the whole folder if no slide was left to report, and
            # slide id -> digest of its signature for slides that were new or changed.
            reported, waited = json.loads(context.cursor or '["", {}]')
            if digest(now, sorted(registered)) == reported:
                return dg.SkipReason("; ".join([f"{len(now)} slides, nothing new", *faults[:5]]))
            doubt(folder, registered, storage)
        except (SlideError, ConfigError) as error:
            context.log.warning(str(error))
            return dg.SkipReason(f"{error}. Nothing was changed")
        return _poll(context, folder, storage, now, waited, registered, faults)

    return slide_folder


def _poll(
    context: dg.SensorEvaluationContext,
    folder: SlideFolderResource,
    storage: StorageResource,
    now: Mapping[str, Mapping[str, str]],
    waited: Mapping[str, str],
    registered: set[str],
    faults: list[str],
) -> dg.SensorResult:
    """Partitions and events for new and changed slides.

    ``now`` and ``waited`` are signatures by slide id: those of this poll, and digests of the last poll's.
    """
    known = known_slides(context.instance, now)
    waiting = {
        slide_id: digest(files) for slide_id, files in now.items() if is_changed(files, known[slide_id])
    }
    # Same sizes and times as in the last poll: the files are not being copied any more.
    stable = [slide_id for slide_id in sorted(waiting) if waited.get(slide_id) == waiting[slide_id]]
    # A slide that was put back after it was retired first gets its partition and is observed in a later
    # poll, because an event for a partition that does not exist is lost.
    back = {one for one in stable if one not in registered and _is_retired(known[one])}
    to_read = [folder.slide(one) for one in stable if one not in back]
    seen, unread = observe_all(to_read[:MOST_A_POLL], known)
    faults += unread.values()
    new = sorted((seen.keys() | back | (now.keys() - waiting.keys())) - registered)
    events: list[Any] = []
    for slide_id, files in seen.items():
        del waiting[slide_id]
        events += news(storage, slide_id, files, known[slide_id], is_new=slide_id not in registered)
    requests = [SLIDES.build_add_request(new)] if new else []
    levels, found = ([], []) if waiting else news_of_levels(context.instance, storage, now)
    requests += [LEVELS.build_add_request(levels)] if levels else []
    for fault in faults:
        context.log.warning(fault)
    parts = [f"{len(now)} slides, {len(seen)} new or changed"]
    if waiting:
        parts.append(f"{len(waiting)} wait for one more poll: {', '.join(sorted(waiting)[:5])}")
    reported = "" if waiting or new else digest(now, sorted(registered))
    return dg.SensorResult(
        dynamic_partitions_requests=requests,
        asset_events=events + found,
        cursor=json.dumps([reported, waiting]),
        skip_reason="; ".join(parts + faults[:5]),
    )


def _is_retired(known: Seen) -> bool:
    return SLIDE_IMAGE in known and known[SLIDE_IMAGE].version == RETIRED


def build_prediction_sensor(poll_seconds: int) -> dg.SensorDefinition:
    """The sensor that requests predictions of new slides at levels with the parameter ``predict_new_slides``.

    An automation condition cannot distinguish levels within partitions of slides and levels: it would request
    every slide at every level that has a model. This sensor requests what `wsi-assets predict` would make,
    each prediction once.
    """

    @dg.sensor(
        name="predict_new_slides",
        job_name=PREDICT_SLIDES,
        minimum_interval_seconds=poll_seconds,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="While this is on, new and changed slides are predicted at the levels for which "
        "parameters.yaml sets predict_new_slides, with the model of the level. After a new training all "
        "slides are predicted again. A slide that failed is tried again when its file or the model changes.",
    )
    def predict_new_slides(
        context: dg.SensorEvaluationContext,
        folder: SlideFolderResource,
        storage: StorageResource,
        mlflow: MlflowResource,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        # Partition -> digest of its inputs: requests of earlier evaluations, and of this one.
        requested, missing = json.loads(context.cursor or "{}"), {}
        registered = context.instance.get_dynamic_partitions(SLIDES.name)
        levels = context.instance.get_dynamic_partitions(LEVELS.name)
        faults = []
        try:
            parameters = storage.parameters.read()
            known = known_slides(context.instance, folder.slides().keys() & set(registered))
        except (SlideError, ConfigError) as error:
            yield dg.SkipReason(str(error))
            return
        images = {one: seen[SLIDE_IMAGE].version for one, seen in known.items() if SLIDE_IMAGE in seen}
        for level in levels:
            options: Any = options_of(SLIDE_PREDICTION, level, parameters)
            if not options.predict_new_slides:
                continue
            try:
                detector = find_detector(storage, mlflow, level, options.model, parameters)
            except ModelError as error:
                faults.append(str(error))
                continue
            for one in unpredicted(storage, level, detector, images, parameters):
                inputs = detector.inputs(images[one], storage.version(TISSUE_REGIONS, one))
                missing[both(one, level)] = digest(inputs, options.model_dump())
        context.update_cursor(json.dumps(missing))
        wanted = {key for key, inputs in missing.items() if requested.get(key) != inputs}
        for level in levels:
            for stretch in stretches([both(one, level) for one in registered], wanted, SLIDES_PER_RUN):
                yield dg.RunRequest(tags=range_tags(stretch))
        if not wanted:
            waiting = f"{len(missing)} predictions are in progress or have failed"
            yield dg.SkipReason("; ".join([waiting, *faults]))

    return predict_new_slides
