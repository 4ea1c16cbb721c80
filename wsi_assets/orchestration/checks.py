"""Gates: facts an artefact must satisfy, shown beside it in the UI.

Only those block whose failure would corrupt what is made next.
"""

import warnings
from typing import Any

import dagster as dg

from wsi_assets.orchestration.lineage import recorded_metadata
from wsi_assets.orchestration.partitions import LEVELS

# Checks by partition are what a level needs; that Dagster calls them a preview is no news to a user.
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

WARN = dg.AssetCheckSeverity.WARN


@dg.asset_check(
    asset="slide_index",
    partitions_def=LEVELS,
    description="Every registered slide takes part in this level; fails by naming those left out and why.",
)
def every_slide_takes_part(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
    left_out = _made(context, "slide_index").get("left_out", {})
    return dg.AssetCheckResult(
        passed=not left_out,
        severity=WARN,
        description="; ".join(f"{slide}: {reason}" for slide, reason in sorted(left_out.items()))[:2000],
        metadata={"left_out": left_out},
    )


@dg.asset_check(
    asset="patch_store",
    partitions_def=LEVELS,
    blocking=True,
    description="The store holds exactly the patches of the sampled index, with their labels, but for those "
    "listed as unreadable.",
)
def store_equals_its_index(context: dg.AssetCheckExecutionContext, patch_store: Any) -> dg.AssetCheckResult:
    wanted = int(_made(context, "sampled_index").get("patches", -1))
    quarantined = int(_made(context, "patch_store").get("quarantined", 0))
    return dg.AssetCheckResult(
        passed=len(patch_store) + quarantined == wanted,
        description=f"{len(patch_store)} stored + {quarantined} unreadable of {wanted} in the index",
    )


def _made(context: dg.AssetCheckExecutionContext, asset: str) -> dict[str, Any]:
    return recorded_metadata(context.instance, asset, context.partition_key)


ALL_CHECKS = [every_slide_takes_part, store_equals_its_index]
