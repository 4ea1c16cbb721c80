"""The only room that knows Dagster and MLflow: partitions, assets, checks, jobs, automation, storage.

Science does not belong here: an asset takes its inputs, calls a domain room and returns a value with
metadata. Decisions (what changed, what is out of date) are pure functions in :mod:`.lineage`.
"""
