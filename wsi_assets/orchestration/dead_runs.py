"""Runs whose process died without a word: they would be "started" for ever and keep their slots.

Dagster's code server notices when a run that it started dies, but not when it died itself (power cut,
killed machine), and nobody watches runs of the command line. What was made stays; a new run continues.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg

GRACE_SECONDS = 60
"""A run younger than this may not have told its process yet."""


def fail_dead_runs(instance: dg.DagsterInstance, tell: Callable[[str], None]) -> list[str]:
    """Mark runs as failed whose process is gone from this machine; returns their ids.

    Only for a home in local files, which one machine uses: on a shared database the process may live
    elsewhere. Runs that have yet to start are left to Dagster's own start timeout.
    """
    if type(instance.run_storage).__name__ != "SqliteRunStorage":
        return []
    failed = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        run, begun = record.dagster_run, record.start_time or record.create_timestamp.timestamp()
        pid = process_of(instance, run.run_id)
        if is_dead(pid, begun, time.time()):
            instance.report_run_failed(
                run,
                f"Its process {pid or ''} is gone: it was killed, the machine was switched off, or a full "
                "disk kept it from recording its end. Run it again; it continues.",
            )
            failed.append(run.run_id)
            tell(f"Run {run.run_id[:8]} of {run.job_name} had lost its process and is marked as failed")
    return failed


def free_slots(instance: dg.DagsterInstance) -> None:
    """Take slots of pools back from runs that ended without giving them, and their places in the queue.

    The daemon does so too where it runs; a run of the command line would wait for it for ever.
    """
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    holders = set()
    for pool in storage.get_concurrency_keys():
        told = storage.get_concurrency_info(pool)
        holders |= {slot.run_id for slot in told.claimed_slots} | {step.run_id for step in told.pending_steps}
    for run_id in sorted(holders):
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            storage.free_concurrency_slots_for_run(run_id)


def process_of(instance: dg.DagsterInstance, run_id: str) -> int | None:
    """The process that executes a run's steps or watches over them, None if none was ever told."""
    found = None
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        told = entry.dagster_event.engine_event_data.metadata.get("pid") if entry.dagster_event else None
        # Steps have processes of their own; the run's is the one told outside of any step.
        if told is not None and entry.step_key is None:
            found = int(told.value)
    return found


def is_dead(pid: int | None, begun: float, now: float) -> bool:
    """Whether a run begun then (seconds since 1970) can have no living process now.

    A process younger than the run is another one that got the same number.
    """
    if pid is None:
        # From the future it is by a clock that was put back since.
        return abs(now - begun) >= GRACE_SECONDS
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's, who may share this home
    return (_started(pid) or begun) > begun + GRACE_SECONDS


def _started(pid: int) -> float | None:
    """When a process started, None where the system does not tell."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
