"""The Dagster asset graph, and the code that runs it from the command line.

Besides the stable public API of Dagster 1.13, this package uses:

* beta or preview features for which there is no stable equivalent: ``observable_source_asset`` (the user's
  files, by partition), ``BackfillPolicy`` (many slides in one run), ``partitions_def`` of asset checks (one
  result per level), ``MultiToSingleDimensionPartitionMapping`` (a prediction depends on its slide and its
  level), ``AutomationConditionSensorDefinition`` with a default status (automation is on without a click);
* private API, in ``orphaned_runs``: ``DagsterInstance.all_logs`` (the process id that a run logged),
  ``DagsterInstance.report_run_failed`` and ``EventLogStorage.free_concurrency_slots_for_run`` (as the UI and
  the daemon use them). Dagster's run monitoring asks the run launcher whether a run is alive; the local
  launcher cannot tell, and command-line runs have neither launcher nor daemon. Without these calls a killed
  run would occupy its pool for ever: the public API can only delete a run together with its log;
* private modules, in ``instance``: ``create_engine`` of the SQLite storages is replaced during a command.
  Otherwise Dagster makes an engine and a connection for each event, which takes a sixth of a short command;
* reserved tags: ``.dagster/repository`` in ``cli_run``, by which the page of a job lists its runs, and
  ``dagster/asset_partition_range_start`` and ``_end`` in ``partitions``, because no public function takes a
  range. ``dagster asset materialize --partition-range`` sets the same tags, and Dagster's discussion 11653
  recommends them for run requests.
"""
