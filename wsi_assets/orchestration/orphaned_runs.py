"""Mark runs as failed whose process died: they would stay "started" and keep their concurrency slots.

Dagster's code server notices the death of a run that it started, but not after it died itself (e.g. in a
power cut), and it does not watch command-line runs. Finished artefacts stay; a new run continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import dagster as dg
import psutil

GRACE_SECONDS = 60
"""A run younger than this may not have logged its process id yet."""


def fail_orphaned_runs(instance: dg.DagsterInstance, say: Callable[[str], None]) -> list[str]:
    """Mark runs as failed whose process is not on this machine any more, and free their concurrency slots.

    Does nothing if the run storage is not SQLite: with a shared database the process may be on another
    machine. Runs whose process never started are left to Dagster's start timeout.

    Args:
        say: is called with one line for each of these runs.

    Returns:
        ids of these runs.
    """
    if "sqlite" not in type(instance.run_storage).__name__.lower():
        return []
    failed = []
    unfinished = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    for record in instance.get_run_records(dg.RunsFilter(statuses=unfinished)):
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
    """Id of the process of a run: the last one logged outside of a step, since steps have own processes."""
    events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    own = [one.dagster_event.engine_event_data.metadata for one in events if one.step_key is None]
    pids = [int(metadata["pid"].value) for metadata in own if "pid" in metadata]
    return pids[-1] if pids else None


def is_alive(pid: int | None, begun: float) -> bool:
    """Whether a run may still have a living process.

    Args:
        pid: id of its process; None if none was logged.
        begun: start of the run in seconds since 1970. A process that started later only has the same id.
    """
    if pid is None:
        return abs(time.time() - begun) < GRACE_SECONDS
    try:
        return psutil.Process(pid).create_time() <= begun + GRACE_SECONDS
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True  # a process of another user, who may share this home
