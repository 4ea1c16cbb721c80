"""The entry point that Dagster loads."""

import warnings

with warnings.catch_warnings():
    # orchestration/automation.py says which beta features are used, and why.
    warnings.filterwarnings("ignore", message=".* is currently in (beta|preview)")
    from wsi_assets.orchestration.build import build_definitions

    defs = build_definitions()
