"""The sensors: one watches the slide folder, one predicts what is new.

The first adds partitions and reports what changed; it never removes a slide. Regions of what is new or
changed follow by their automation conditions.
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
"""New slides that one poll reads; the rest wait, so that no poll runs into Dagster's time limit."""


def build_slide_folder_sensor(poll_seconds: int) -> dg.SensorDefinition:
    """The sensor, polling as often as the slide folder's disk can bear."""

    @dg.sensor(
        name="slide_folder",
        minimum_interval_seconds=poll_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Lists the slide folder every {poll_seconds} s (WSI_POLL_SECONDS). A new or changed "
        "slide or annotation whose size and time held still over two polls gets its partition and an "
        "observation. Nothing is ever removed: an empty or unreachable folder is reported and waited for. "
        "Costs a listing of the folder, and some megabytes of reading for each slide that changed.",
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
            # What the last poll left: a digest of everything if nothing was left to do, else slide id ->
            # digest of what was seen of it, for slides that are new or changed.
            settled, waited = json.loads(context.cursor or '["", {}]')
            if digest(now, sorted(registered)) == settled:
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
    """The partitions and events of one poll that saw something new."""
    known = known_slides(context.instance, now)
    waiting = {
        slide_id: digest(files) for slide_id, files in now.items() if is_changed(files, known[slide_id])
    }
    # Sizes and times are those of one poll ago: no longer being copied.
    still = [slide_id for slide_id in sorted(waiting) if waited.get(slide_id) == waiting[slide_id]]
    # A slide put back after it was retired is registered first: news of a partition that is not there are
    # lost.
    back = {one for one in still if one not in registered and _is_retired(known[one])}
    settled_ones = [folder.slide(one) for one in still if one not in back]
    seen, unread = observe_all(settled_ones[:MOST_A_POLL], known)
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
    settled = "" if waiting or new else digest(now, sorted(registered))
    return dg.SensorResult(
        dynamic_partitions_requests=requests,
        asset_events=events + found,
        cursor=json.dumps([settled, waiting]),
        skip_reason="; ".join(parts + faults[:5]),
    )


def _is_retired(known: Seen) -> bool:
    return SLIDE_IMAGE in known and known[SLIDE_IMAGE].version == RETIRED


def build_prediction_sensor(poll_seconds: int) -> dg.SensorDefinition:
    """The switch that predicts slides by themselves, at the levels whose parameters say so.

    No stock automation condition knows the level of a partition of slides and levels: one would ask for every
    slide at every level that has a model. This asks for what `wsi-assets predict` would make, each once.
    """

    @dg.sensor(
        name="predict_new_slides",
        job_name=PREDICT_SLIDES,
        minimum_interval_seconds=poll_seconds,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="The switch for slide_prediction: while it is on, slides that are new or changed are "
        "predicted at the levels for which parameters.yaml says predict_new_slides, by their model; a newer "
        "model predicts all of them again. One that failed waits until its file or the model changes.",
    )
    def predict_new_slides(
        context: dg.SensorEvaluationContext,
        folder: SlideFolderResource,
        storage: StorageResource,
        mlflow: MlflowResource,
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        asked, asking = json.loads(context.cursor or "{}"), {}
        registered = context.instance.get_dynamic_partitions(SLIDES.name)
        levels = context.instance.get_dynamic_partitions(LEVELS.name)
        faults = []
        try:
            said = storage.parameters.read()
            known = known_slides(context.instance, folder.slides().keys() & set(registered))
        except (SlideError, ConfigError) as error:
            yield dg.SkipReason(str(error))
            return
        images = {one: seen[SLIDE_IMAGE].version for one, seen in known.items() if SLIDE_IMAGE in seen}
        for level in levels:
            options: Any = options_of(SLIDE_PREDICTION, level, said)
            if not options.predict_new_slides:
                continue
            try:
                detector = find_detector(storage, mlflow, level, options.model, said)
            except ModelError as error:
                faults.append(str(error))
                continue
            for one in unpredicted(storage, level, detector, images, said):
                inputs = detector.inputs(images[one], storage.version(TISSUE_REGIONS, one))
                asking[both(one, level)] = digest(inputs, options.model_dump())
        context.update_cursor(json.dumps(asking))
        news = {key for key, inputs in asking.items() if asked.get(key) != inputs}
        for level in levels:
            for stretch in stretches([both(one, level) for one in registered], news, SLIDES_PER_RUN):
                yield dg.RunRequest(tags=range_tags(stretch))
        if not news:
            yield dg.SkipReason("; ".join([f"{len(asking)} wait or have failed", *faults]))

    return predict_new_slides
