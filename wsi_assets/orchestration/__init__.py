"""The asset graph and the command line's way through it.

Of Dagster 1.13 this uses, beside what is stable, public and documented:

* beta or preview, each because nothing stable does it: ``observable_source_asset`` (files that others write,
  by partition), ``BackfillPolicy`` (many slides a run), ``partitions_def`` of asset checks (one result a
  level), ``MultiToSingleDimensionPartitionMapping`` (a slide at a level is made from both),
  ``AutomationConditionSensorDefinition`` with a default status (conditions apply without a click);
* not public, in ``orphaned_runs``: ``DagsterInstance.all_logs`` (the process number that a run logs),
  ``DagsterInstance.report_run_failed`` and ``EventLogStorage.free_concurrency_slots_for_run`` (what the UI's
  button and the daemon do). Dagster's run monitoring asks the launcher whether a run lives; its local one
  cannot say, and runs of the command line have neither launcher nor daemon. Without this a killed run holds
  its pool for ever; the public API can only delete a run, with its log;
* reserved tags, in ``cli_run``: ``.dagster/repository``, by which the page of a job finds its runs, and
  ``dagster/asset_partition_range_start`` and ``_end``: no public call takes a range. They are what ``dagster
  asset materialize --partition-range`` sets and what Dagster's discussion 11653 shows for run requests.
"""
