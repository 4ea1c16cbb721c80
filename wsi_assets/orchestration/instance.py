"""The Dagster home: one folder of runs and events that the command line and the UI share."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy

from wsi_assets.errors import ConfigError
from wsi_assets.orchestration.settings import Settings

LOCATION = "wsi_assets.definitions"
"""The module of the definitions, and the name of their code location."""


def prepare_home(settings: Settings) -> Path:
    """Create the home if it is not there and make it, and the settings, this process's environment.

    ``DAGSTER_HOME`` is respected; by default the home is ``dagster_home`` in the storage folder. An existing
    ``dagster.yaml`` is never overwritten.

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
    """The settings of a folder that is complete in itself, such as the demo's.

    From here on this process, and what it starts, knows no ``WSI_*`` variable, no ``DAGSTER_HOME`` and no
    MLflow server: the demo's slides must not get into the records of a lab's own.
    """
    for name in list(os.environ):
        if name.startswith("WSI_") or name in ("DAGSTER_HOME", "MLFLOW_TRACKING_URI"):
            del os.environ[name]
    return Settings.from_environment({}, home=home)


@contextlib.contextmanager
def open_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance of the prepared home, for work in this process.

    What steps print is not kept: Dagster starts four processes a step for that, which break a Ctrl-C.
    """
    home = prepare_home(settings)
    unkept = {"module": "dagster.core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
    with (
        _swift_records(home),
        dg.DagsterInstance.local_temp(str(home), overrides={"compute_logs": unkept}) as instance,
    ):
        yield instance


def look_into_instance(settings: Settings) -> contextlib.AbstractContextManager[dg.DagsterInstance]:
    """The instance of the home if there is one, else an empty one that leaves nothing behind."""
    there = Path(os.environ.get("DAGSTER_HOME") or settings.storage_dir / "dagster_home").exists()
    return open_instance(settings) if there else dg.DagsterInstance.ephemeral()


@contextlib.contextmanager
def _swift_records(home: Path) -> Iterator[None]:
    """While this is open, records in sqlite do not wait for the disk at every event; a run has hundreds.

    A power cut may cost the last events, never the database; artefacts have their records beside them.
    """
    held: dict[str, sqlite3.Connection] = {}
    inside = f"{home}{os.sep}"

    def connect(dialect: Any, _: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
        path = arguments[0]
        if dialect.name != "sqlite" or not path.startswith(inside):
            return None
        connection = sqlite3.connect(*arguments, **options)
        connection.execute("PRAGMA synchronous = NORMAL")
        if path not in held:
            connection.execute("PRAGMA journal_mode = WAL")  # as Dagster does once its tables are made
            # Dagster connects anew for every event, and the last one to close writes the whole log back.
            held[path] = sqlite3.connect(path, check_same_thread=False)
            held[path].execute("SELECT count(*) FROM sqlite_master").fetchone()
        return connection

    sqlalchemy.event.listen(sqlalchemy.Engine, "do_connect", connect)
    try:
        yield
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "do_connect", connect)
        for connection in held.values():
            connection.close()


def _shipped_settings() -> Path:
    # In a checkout the file stands at the top, where `dg dev` reads it; the wheel carries it in this package.
    installed = Path(__file__).with_name("dagster.yaml")
    return installed if installed.exists() else Path(__file__).parents[2] / "dagster.yaml"
