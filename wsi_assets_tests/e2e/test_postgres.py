"""Dagster's records in PostgreSQL, as documented, on a private server of Debian's package.

The server is this module's own: another port, another folder, no word to one that may run on the machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from wsi_assets.orchestration.orphaned_runs import fail_orphaned_runs
from wsi_assets_tests.e2e.platform import Platform
from wsi_assets_tests.ports import free_port

pytestmark = pytest.mark.trial

PROJECT = Path(__file__).parents[2]
ACCOUNT = "postgres"
"""The system user of Debian's package; the server refuses to run as root."""


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """A running server that wants a password; the variables with which clients find its empty database."""
    if importlib.util.find_spec("dagster_postgres") is None:
        pytest.skip("dagster-postgres is not installed (pip install 'wsi-assets[postgres]')")
    programs = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
    if programs is None or not (programs / "initdb").exists():
        pytest.skip("no PostgreSQL server (apt-get install postgresql)")
    user = {"user": ACCOUNT, "group": ACCOUNT, "extra_groups": []} if os.geteuid() == 0 else {}

    # Not pytest's folder, which no other user may enter.
    folder = Path(tempfile.mkdtemp(prefix="wsi_postgres_"))
    try:
        if user:
            shutil.chown(folder, ACCOUNT, ACCOUNT)
        port = str(free_port())
        access = {"PGHOST": "127.0.0.1", "PGPORT": port, "PGUSER": "wsi", "PGPASSWORD": "a b/c@d:é"}
        (folder / "password").write_text(access["PGPASSWORD"] + "\n", encoding="utf-8")
        (folder / "password").chmod(0o644)
        subprocess.run(
            [
                *(programs / "initdb", "-D", folder / "data", "-U", access["PGUSER"], "-E", "UTF8", "-N"),
                *("--locale=C", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}"),
            ],
            **user,
            cwd=folder,
            check=True,
            capture_output=True,
        )
        with (folder / "log").open("wb") as log:
            postgres = subprocess.Popen(
                [
                    *(programs / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", port),
                    *("-k", folder, "-c", "fsync=off"),
                ],
                **user,
                cwd=folder,
                stdout=log,
                stderr=log,
            )
        try:
            deadline = time.monotonic() + 60
            while (made := _client("createdb", "dagster", access, programs)).returncode:
                if postgres.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(made.stderr + (folder / "log").read_text())
                time.sleep(0.2)
            yield {**access, "PGDATABASE": "dagster"}
        finally:
            postgres.terminate()
            try:
                postgres.wait(20)
            except subprocess.TimeoutExpired:
                postgres.send_signal(signal.SIGQUIT)
                postgres.wait(20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _client(
    program: str, argument: str, access: dict[str, str], programs: Path
) -> subprocess.CompletedProcess[str]:
    command = [programs / program, argument]
    return subprocess.run(command, env={**os.environ, **access}, capture_output=True, text=True, check=False)


def home_on_postgres(storage: Path) -> Path:
    """A Dagster home with the settings that are shipped and the documented section for PostgreSQL."""
    home = storage / "dagster_home"
    home.mkdir(parents=True)
    page = (PROJECT / "docs/dagster.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"```yaml\n(storage:\n.*?)```", page, re.DOTALL)
    shipped = (PROJECT / "dagster.yaml").read_text(encoding="utf-8")
    (home / "dagster.yaml").write_text(f"{shipped}\n{section}", encoding="utf-8")
    return home


def databases(folder: Path) -> list[Path]:
    """Files below the folder that begin as sqlite's do, whatever their name."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return [file for file in files if file.open("rb").read(16) == b"SQLite format 3\0"]


@pytest.fixture(scope="module")
def twice(server, command_line, cohort, tmp_path_factory):
    """The same command two times on one home, and how each went."""
    folder = tmp_path_factory.mktemp("postgres")
    home = home_on_postgres(folder / "storage")
    command = ["run", "--level", 0, "--upto", "slide_index", *cohort, "--storage", folder / "storage"]
    return home, [command_line(*command, cwd=folder, **server) for _ in range(2)]


@pytest.fixture
def instance(server, twice, monkeypatch) -> Iterator[dg.DagsterInstance]:
    for variable, value in server.items():
        monkeypatch.setenv(variable, value)
    with dg.DagsterInstance.from_config(str(twice[0])) as found:
        yield found


def test_the_index_is_made_once_and_then_found_up_to_date(twice):
    home, (first, second) = twice
    assert first.returncode == 0, first.stdout + first.stderr
    assert second.returncode == 0, second.stdout + second.stderr
    assert "nothing to do, everything is up to date" not in first.stdout
    assert "nothing to do, everything is up to date" in second.stdout
    entries = pickle.loads((home.parent / "level_0/index_level_0.pkl").read_bytes())
    assert sum(len(entry["patches"]) for entry in entries.values()) == 89


def test_runs_events_and_partitions_are_in_postgres(instance, server):
    import psycopg2

    with contextlib.closing(psycopg2.connect("")) as connection, connection.cursor() as cursor:

        def ask(query: str) -> set:
            cursor.execute(query)
            return {row[0] for row in cursor.fetchall()}

        assert ask("select current_database() || inet_server_port()") == {"dagster" + server["PGPORT"]}
        runs = ask("select run_id from runs where status = 'SUCCESS'")
        assert runs
        assert ask("select status from runs") == {"SUCCESS"}
        assert runs == {run.run_id for run in instance.get_runs()}
        made = ask("select asset_key from event_logs where dagster_event_type = 'ASSET_MATERIALIZATION'")
        assert made == {'["tissue_regions"]', '["annotation_regions"]', '["slide_index"]'}
        slides = ask("select partition from dynamic_partitions")
    assert {"tumor_001_node_1", "test_073_node_1"} <= slides


def test_no_sqlite_file_is_left_in_the_home(twice):
    assert databases(twice[0]) == []
    # MLflow's records are another matter; the search does find what it looks for.
    import sqlite3

    with sqlite3.connect(twice[0].parent / "seen.db") as seen:
        seen.execute("create table anything (a)")
    seen.close()
    assert twice[0].parent / "seen.db" in databases(twice[0].parent)


def test_a_pool_admits_one_step_at_a_time_there(instance):
    slots = instance.event_log_storage
    slots.initialize_concurrency_limit_to_default("gpu")
    try:
        assert slots.claim_concurrency_slot("gpu", "first", "trained_model").is_claimed
        assert not slots.claim_concurrency_slot("gpu", "second", "trained_model").is_claimed
        slots.free_concurrency_slots_for_run("first")
        assert slots.claim_concurrency_slot("gpu", "second", "trained_model").is_claimed
    finally:
        for run in ("first", "second"):
            slots.free_concurrency_slots_for_run(run)


def test_a_run_of_perhaps_another_machine_is_left_alone(instance, monkeypatch):
    monkeypatch.setattr("wsi_assets.orchestration.orphaned_runs.GRACE_SECONDS", 0)

    @dg.job
    def elsewhere():
        pass

    far = instance.create_run_for_job(elsewhere, status=dg.DagsterRunStatus.STARTED)
    try:
        assert fail_orphaned_runs(instance, print) == []
        assert instance.get_run_by_id(far.run_id).status is dg.DagsterRunStatus.STARTED
    finally:
        instance.delete_run(far.run_id)


def test_the_running_platform_follows_a_dropped_slide(server, real_data, tmp_path, monkeypatch):
    for variable, value in server.items():
        monkeypatch.setenv(variable, value)
    platform = Platform(tmp_path)
    home = home_on_postgres(platform.storage)
    slide = "test_073_node_1"
    platform.start()
    try:
        shutil.copy(real_data / "cohort" / "images" / f"{slide}.tif", platform.images)
        platform.wait(lambda: slide in platform.slides(), "the partition")
        platform.wait(lambda: platform.made_by("tissue_regions", slide), "the regions")
        platform.wait(platform.is_idle, "the end of the run")
    finally:
        platform.stop()
    assert databases(home) == []
