"""The entry point Dagster loads; it holds no logic."""

from wsi_assets.orchestration.build import build_definitions

defs = build_definitions()
