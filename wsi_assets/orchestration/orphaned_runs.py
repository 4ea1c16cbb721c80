"""Runs whose process died without a word: they would be "started" for ever and keep their slots.

Dagster's code server notices when a run that it started dies, but not when it died itself (power cut, killed
machine), and nobody watches runs of the command line. What was made stays; a new run continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import dagster as dg
import psutil

GRACE_SECONDS = 60
"""A run younger than this may not have logged its process yet."""


def fail_orphaned_runs(instance: dg.DagsterInstance, say: Callable[[str], None]) -> list[str]:
    """Mark runs as failed whose process is gone from this machine, and free their slots; returns their ids.

    Only for a home in local files: on a shared database the process may live on another machine. Runs that no
    process was started for are left to Dagster's own start timeout.
    """
    if "sqlite" not in type(instance.run_storage).__name__.lower():
        return []
    failed = []
    begun_ones = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    for record in instance.get_run_records(dg.RunsFilter(statuses=begun_ones)):
        run, pid = record.dagster_run, process_of(instance, record.dagster_run.run_id)
        begun = record.start_time or record.create_timestamp.timestamp()
        if is_alive(pid, begun) or (pid is None and run.status is dg.DagsterRunStatus.STARTING):
            continue
        why = "it was killed, the machine was switched off, or a full disk kept it from recording its end"
        instance.report_run_failed(
            run, f"Its process {pid or ''} is gone: {why}. Run it again; it continues."
        )
        if instance.event_log_storage.supports_global_concurrency_limits:
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        failed.append(run.run_id)
        say(f"Run {run.run_id[:8]} of {run.job_name} had lost its process and is marked as failed")
    return failed


def process_of(instance: dg.DagsterInstance, run_id: str) -> int | None:
    """The process that a run logged outside of any step: its own; steps have processes of theirs."""
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    own = [one.dagster_event.engine_event_data.metadata for one in events if one.step_key is None]
    pids = [int(metadata["pid"].value) for metadata in own if "pid" in metadata]
    return pids[-1] if pids else None


def is_alive(pid: int | None, begun: float) -> bool:
    """Whether a run begun then (seconds since 1970) can have a living process now.

    A process younger than the run is another one that got the same number.
    """
    if pid is None:
        return abs(time.time() - begun) < GRACE_SECONDS
    try:
        return psutil.Process(pid).create_time() <= begun + GRACE_SECONDS
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True  # another user's, who may share this home
