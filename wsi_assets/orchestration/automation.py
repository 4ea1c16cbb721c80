"""When assets are made without being asked for: stock automation conditions, and the sensors that apply them.

Slides follow their files; an index follows its slides at night; the sampled index and the patch store follow
the index while their switch is on. No model is ever trained by an automation.

Features of Dagster that are beta or preview in 1.13 and used here, each because nothing stable does it:
``observable_source_asset`` (files that others write, by partition), ``BackfillPolicy`` (many slides a run),
``partitions_def`` of asset checks (a result a level), ``MultiToSingleDimensionPartitionMapping`` (a slide at
a level is made from the slide and the level), ``AutomationConditionSensorDefinition`` with a default status
(conditions apply without a click).
"""

from __future__ import annotations

import dagster as dg

SLIDES_AT = "0 1 * * *"
INDEX_AT = "0 2 * * *"

Condition = dg.AutomationCondition


def follow_slides(timezone: str) -> Condition:
    """Once for each new slide and each change of what it is made from; a failed one again at night.

    ``newly_missing``, not ``missing``: that would ask for a broken slide at every tick.
    """
    is_news = (Condition.newly_missing() | Condition.any_deps_updated()).since(
        Condition.newly_requested() | Condition.newly_updated()
    )
    # Tissue first, in runs of its own: in one run with it, a broken slide would cost all their annotations.
    above_first = ~Condition.any_deps_match(Condition.will_be_requested())
    failed = Condition.cron_tick_passed(SLIDES_AT, timezone) & Condition.execution_failed()
    return ((is_news | failed) & above_first & _ready()).with_label("new, changed, or failed and it is 1:00")


def follow_at_night(timezone: str) -> Condition:
    """At 2:00, for levels that exist and whose slides' regions changed since."""
    return (
        Condition.cron_tick_passed(INDEX_AT, timezone)
        & ~Condition.missing()
        & _changed_above()
        & ~Condition.in_progress()
    ).with_label("its slides changed, and it is 2:00")


def follow_index(timezone: str) -> Condition:
    """As soon as what it is made from was made again; never for a level that has none yet."""
    return (~Condition.missing() & _changed_above() & _ready()).with_label("made again above")


def follow_reports(timezone: str) -> Condition:
    """As soon as a level was evaluated again; levels without a report are left out."""
    return (_changed_above() & ~Condition.any_deps_in_progress() & ~Condition.in_progress()).with_label(
        "a level was evaluated"
    )


def build_automation_sensors(
    poll_seconds: int, slides: list[str], stores: list[str]
) -> list[dg.SensorDefinition]:
    """The sensors that apply the conditions; the one of patch stores is a switch that is off at first."""
    return [
        dg.AutomationConditionSensorDefinition(
            "slides_follow",
            target=dg.AssetSelection.assets(*slides),
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=poll_seconds,
            description="Makes the regions of slides whose files are new or changed, and at night those that "
            "failed and the slide index of levels whose slides changed. Compares levels when one was "
            "evaluated. Trains nothing.",
        ),
        dg.AutomationConditionSensorDefinition(
            "store_follows_index",
            target=dg.AssetSelection.assets(*stores),
            default_status=dg.DefaultSensorStatus.STOPPED,
            minimum_interval_seconds=poll_seconds,
            description="The switch for sampled index and patch store: while it is on, they follow their "
            "slide index on every level that has them. Only new patches are decoded. Models never follow: "
            "launch level_pipeline to train.",
        ),
    ]


def _changed_above() -> Condition:
    return Condition.any_deps_updated().since(Condition.newly_requested() | Condition.newly_updated())


def _ready() -> Condition:
    return ~Condition.any_deps_missing() & ~Condition.any_deps_in_progress() & ~Condition.in_progress()
