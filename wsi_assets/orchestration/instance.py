"""The Dagster home: the folder of runs and events that the command line and the UI share."""

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
"""Module of the Dagster definitions; also the name of the code location."""


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
        _swift_records(home),
        dg.DagsterInstance.local_temp(str(home), overrides={"compute_logs": unkept}) as instance,
    ):
        yield instance


def look_into_instance(settings: Settings) -> contextlib.AbstractContextManager[dg.DagsterInstance]:
    """The instance of the home if it exists, else a temporary empty one."""
    there = Path(os.environ.get("DAGSTER_HOME") or settings.storage_dir / "dagster_home").exists()
    return open_instance(settings) if there else dg.DagsterInstance.ephemeral()


@contextlib.contextmanager
def _swift_records(home: Path) -> Iterator[None]:
    """Within this context, SQLite does not wait for the disk at each of the hundreds of events of a run.

    A power cut may lose the last events but cannot damage the database; artefacts have their own records.
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
            connection.execute("PRAGMA journal_mode = WAL")  # Dagster sets this after creating its tables
            # Dagster opens a connection for every event. Closing the last one writes the whole log into the
            # database, so one connection is kept open.
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
    # In a checkout the file is in the root folder, where `dg dev` reads it; a wheel has it in this package.
    installed = Path(__file__).with_name("dagster.yaml")
    return installed if installed.exists() else Path(__file__).parents[2] / "dagster.yaml"
