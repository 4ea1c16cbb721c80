"""What the checks said of a level's assets when these were made."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

from wsi_assets.orchestration.lineage import runs_that_made


def failed_checks(instance: dg.DagsterInstance, level: str, assets: Iterable[str]) -> list[str]:
    """One line for each check of a level's assets that failed in the run that made the asset as it is now."""
    verdicts: dict[str, list[dg.AssetCheckEvaluation]] = {}
    lines = []
    for asset, run_id in runs_that_made(instance, level, assets).items():
        if run_id not in verdicts:
            events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
            verdicts[run_id] = [event.dagster_event.asset_check_evaluation_data for event in events]
        lines += [
            f"{asset} {verdict.check_name}: {verdict.description or 'failed'}"
            for verdict in verdicts[run_id]
            if verdict.asset_key.to_user_string() == asset and not verdict.passed
        ]
    return lines
