"""Runs whose process died are marked as failed; other runs are not changed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import dagster as dg
import pytest

from wsi_assets.orchestration.orphaned_runs import fail_orphaned_runs, is_alive

SCRIPT = """
import os, time
import dagster as dg

@dg.op(pool="gpu")
def waits():
    print("waiting", flush=True)
    time.sleep(600)

@dg.job
def training():
    waits()

if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance:
        training.execute_in_process(instance=instance)
"""

CONFIG = "concurrency: {pools: {default_limit: 1, granularity: op}}\ntelemetry: {enabled: false}\n"


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "dagster.yaml").write_text(CONFIG)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def test_a_killed_run_is_marked_as_failed_and_its_slot_freed(home):
    script = home / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert "waiting" in process.stdout.readline()
        with dg.DagsterInstance.get() as instance:
            assert fail_orphaned_runs(instance, pytest.fail) == [], "its process lives"
            process.kill()
            process.wait()
            lines: list[str] = []
            (failed,) = fail_orphaned_runs(instance, lines.append)
            assert instance.get_run_by_id(failed).status == dg.DagsterRunStatus.FAILURE
            assert len(lines) == 1
            assert fail_orphaned_runs(instance, pytest.fail) == []
            assert instance.event_log_storage.get_concurrency_info("gpu").claimed_slots == []


def test_a_process_that_started_after_the_run_is_not_its_process():
    now = time.time()
    assert is_alive(os.getpid(), now)
    assert not is_alive(os.getpid(), now - 10_000_000)
    assert is_alive(None, now), "it may not have logged its process yet"
    assert not is_alive(None, now - 3600)
