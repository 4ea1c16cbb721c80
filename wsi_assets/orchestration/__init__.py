"""Dagster and MLflow around the domain packages: partitions, assets, checks, jobs, automation, storage."""
