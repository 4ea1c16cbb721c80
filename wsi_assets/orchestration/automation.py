"""When Dagster makes assets automatically: automation conditions and the sensors that evaluate them.

The regions of a slide are made when its files change; the index of a level at night if slides changed; the
sampled index and the patch store when the index changes, while their sensor is switched on. No model is
trained automatically.
"""

from __future__ import annotations

import dagster as dg

SLIDES_AT = "0 1 * * *"
INDEX_AT = "0 2 * * *"

Condition = dg.AutomationCondition


def follow_slides(timezone: str) -> Condition:
    """Once for each new slide and each change of its inputs; slides that failed again at night.

    The condition is ``newly_missing`` because ``missing`` would request a broken slide at every tick.
    """
    new_or_changed = (Condition.newly_missing() | Condition.any_deps_updated()).since(
        Condition.newly_requested() | Condition.newly_updated()
    )
    # Tissue and annotations are made in separate runs: in a common run, one slide with broken tissue would
    # keep the annotations of all slides of the run from being made.
    after_upstream = ~Condition.any_deps_match(Condition.will_be_requested())
    failed = Condition.cron_tick_passed(SLIDES_AT, timezone) & Condition.execution_failed()
    wanted = (new_or_changed | failed) & after_upstream & _ready()
    return wanted.with_label("new, changed, or failed and it is 1:00")


def follow_at_night(timezone: str) -> Condition:
    """At 2:00, for levels that have an index and whose slides' regions changed since it was made."""
    return (
        Condition.cron_tick_passed(INDEX_AT, timezone)
        & ~Condition.missing()
        & _upstream_changed()
        & ~Condition.in_progress()
    ).with_label("its slides changed, and it is 2:00")


def follow_index(timezone: str) -> Condition:
    """As soon as its inputs were made again, for levels where it exists already."""
    return (~Condition.missing() & _upstream_changed() & _ready()).with_label("its inputs were made again")


def follow_reports(timezone: str) -> Condition:
    """As soon as a level was evaluated, even if other levels have no evaluation."""
    return (_upstream_changed() & ~Condition.any_deps_in_progress() & ~Condition.in_progress()).with_label(
        "a level was evaluated"
    )


def build_automation_sensors(
    poll_seconds: int, slides: list[str], stores: list[str]
) -> list[dg.SensorDefinition]:
    """The sensors that evaluate the conditions.

    Args:
        poll_seconds: shortest time between two evaluations.
        slides: names of the assets that are always automated.
        stores: names of the assets automated by a second sensor, which a user switches on in the UI.
    """
    return [
        dg.AutomationConditionSensorDefinition(
            "slides_follow",
            target=dg.AssetSelection.assets(*slides),
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=poll_seconds,
            description="Makes the regions of slides whose files are new or changed. At night, tries failed "
            "slides again and updates the slide index of levels whose slides changed. Updates the comparison "
            "of levels when a level was evaluated. Trains nothing.",
        ),
        dg.AutomationConditionSensorDefinition(
            "store_follows_index",
            target=dg.AssetSelection.assets(*stores),
            default_status=dg.DefaultSensorStatus.STOPPED,
            minimum_interval_seconds=poll_seconds,
            description="While this is on, the sampled index and the patch store are updated when the slide "
            "index changes, on every level that has them. Only new patches are decoded. Models are not "
            "trained: launch level_pipeline for that.",
        ),
    ]


def _upstream_changed() -> Condition:
    return Condition.any_deps_updated().since(Condition.newly_requested() | Condition.newly_updated())


def _ready() -> Condition:
    return ~Condition.any_deps_missing() & ~Condition.any_deps_in_progress() & ~Condition.in_progress()
