"""The entry point Dagster loads; it holds no logic."""

import warnings

with warnings.catch_warnings():
    # While this loads: which beta features are used, and why, is said in orchestration/automation.py.
    warnings.filterwarnings("ignore", message=".* is currently in (beta|preview)")
    from wsi_assets.orchestration.build import build_definitions

    defs = build_definitions()
