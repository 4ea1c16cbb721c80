"""What the checks last said of a level's assets as they are now, whichever run asked them."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

from wsi_assets.orchestration.checks import ALL_CHECKS
from wsi_assets.orchestration.lineage import times_made

LOOKED_BACK = 100
"""Latest evaluations of a check, over all levels, among which a level's own is looked for."""


def failed_checks(instance: dg.DagsterInstance, level: str, assets: Iterable[str]) -> list[str]:
    """One line for each check of a level's assets that failed when it was last evaluated.

    What was said of an asset before it was made again does not count.
    """
    made = times_made(instance, level, assets)
    keys = [key for definition in ALL_CHECKS for key in definition.check_keys]
    lines = []
    for asset, since in made.items():
        for key in (key for key in keys if key.asset_key == dg.AssetKey(asset)):
            verdict = _latest(instance, key, level, since)
            if verdict is not None and not verdict.passed:
                lines.append(f"{asset} {verdict.check_name}: {verdict.description or 'failed'}")
    return lines


def _latest(
    instance: dg.DagsterInstance, key: dg.AssetCheckKey, level: str, since: float
) -> dg.AssetCheckEvaluation | None:
    """The latest evaluation of a check at a level after ``since``, seconds since 1970."""
    for record in instance.event_log_storage.get_asset_check_execution_history(key, limit=LOOKED_BACK):
        if record.partition == level and record.evaluation is not None and record.event.timestamp >= since:
            return record.evaluation
    return None
