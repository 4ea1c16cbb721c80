"""The Dagster home: the folder of runs and events that the command line and the UI share."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import sqlalchemy
from alembic.script import ScriptDirectory

from wsi_assets.errors import ConfigError
from wsi_assets.orchestration.settings import Settings

LOCATION = "wsi_assets.definitions"
"""Module of the Dagster definitions; also the name of the code location."""

SQLITE_STORAGES = (
    "dagster._core.storage.event_log.sqlite.sqlite_event_log",
    "dagster._core.storage.runs.sqlite.sqlite_run_storage",
    "dagster._core.storage.schedules.sqlite.sqlite_schedule_storage",
)
"""Modules of Dagster, which are private."""

MOST_KEPT = 8
"""Databases whose connections are kept; each run has one of its own, beside four of the home."""


def prepare_home(settings: Settings) -> Path:
    """Create the Dagster home and set the environment variables of this process for it and for ``settings``.

    The home is ``DAGSTER_HOME``, by default ``dagster_home`` in the storage folder. An existing
    ``dagster.yaml`` is kept.

    Returns:
        path of the home.

    Raises:
        ConfigError: the folder cannot be written.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or settings.storage_dir / "dagster_home").absolute()
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "dagster.yaml").exists():
            shutil.copyfile(_shipped_settings(), home / "dagster.yaml")
    except OSError as error:
        raise ConfigError(
            f"cannot be written ({error.strerror})", path=home, remedy="Choose a storage folder of your own"
        ) from error
    os.environ.update(settings.to_environment(), DAGSTER_HOME=str(home))
    return home


def isolated_home(home: Path) -> Settings:
    """Settings for a self-contained folder, such as that of the demo.

    Removes the ``WSI_*`` variables, ``DAGSTER_HOME`` and ``MLFLOW_TRACKING_URI`` from the environment of this
    process, so that the demo does not write to a lab's own Dagster home or MLflow server.
    """
    for name in list(os.environ):
        if name.startswith("WSI_") or name in ("DAGSTER_HOME", "MLFLOW_TRACKING_URI"):
            del os.environ[name]
    return Settings.from_environment({}, home=home)


@contextlib.contextmanager
def open_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Prepare the home and open its Dagster instance, for runs in this process.

    The output of steps is not captured: Dagster would start four processes per step, which break a Ctrl-C.

    Raises:
        ConfigError: the home cannot be written.
    """
    home = prepare_home(settings)
    unkept = {"module": "dagster.core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
    with (
        _kept_connections(),
        dg.DagsterInstance.local_temp(str(home), overrides={"compute_logs": unkept}) as instance,
    ):
        finish_databases(instance)
        yield instance


def finish_databases(instance: dg.DagsterInstance) -> None:
    """Create what the instance's database of events lacks.

    Dagster creates its tables only if there is no file. If a process was killed in between, every later one
    would fail and ask for ``dagster instance migrate``.
    """
    events = instance.event_log_storage
    events.reindex_events()
    events.reindex_assets()


def look_into_instance(settings: Settings) -> contextlib.AbstractContextManager[dg.DagsterInstance]:
    """The instance of the home if it exists, else a temporary empty one."""
    there = Path(os.environ.get("DAGSTER_HOME") or settings.storage_dir / "dagster_home").exists()
    return open_instance(settings) if there else dg.DagsterInstance.ephemeral()


@contextlib.contextmanager
def _kept_connections() -> Iterator[None]:
    """Within this context, Dagster's SQLite storages keep their connections, and do not wait for the disk.

    Dagster makes an engine and a connection, and compiles its SQL, again for each of the hundreds of events
    of a run. A power cut may lose the last events but cannot damage the database; artefacts have their own
    records.
    """
    engines: dict[str, sqlalchemy.Engine] = {}  # the one used last is at the end

    def create_engine(url: str, **options: Any) -> sqlalchemy.Engine:
        engine = engines.pop(url, None)
        if engine is None:
            engine = sqlalchemy.create_engine(url, **{**options, "poolclass": sqlalchemy.QueuePool})
            sqlalchemy.event.listen(engine, "connect", _tune)
            engine.dispose = lambda: None  # Dagster disposes of an engine after each event
        engines[url] = engine
        if len(engines) > MOST_KEPT:
            engines.pop(next(iter(engines))).pool.dispose()
        return engine

    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [engine.pool.dispose() for engine in engines.values()])
        for module in SQLITE_STORAGES:
            stack.enter_context(mock.patch(f"{module}.create_engine", create_engine))
        # The revisions of Dagster's tables are read from dozens of files for each new run.
        read_once = functools.cache(ScriptDirectory.from_config)
        stack.enter_context(mock.patch.object(ScriptDirectory, "from_config", read_once))
        yield


def _tune(connection: sqlite3.Connection, _: Any) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA journal_mode = WAL")  # Dagster sets this after creating its tables


def _shipped_settings() -> Path:
    # In a checkout the file is in the root folder, where `dg dev` reads it; a wheel has it in this package.
    installed = Path(__file__).with_name("dagster.yaml")
    return installed if installed.exists() else Path(__file__).parents[2] / "dagster.yaml"
