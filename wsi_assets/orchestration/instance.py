"""The Dagster home: one folder of runs and events that the command line and the UI share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import dagster as dg

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


def open_instance(settings: Settings) -> dg.DagsterInstance:
    """The instance of the prepared home, for work in this process.

    What steps print is not kept: Dagster starts four processes a step for that, which break a Ctrl-C.
    """
    home = prepare_home(settings)
    unkept = {"module": "dagster.core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
    return dg.DagsterInstance.local_temp(str(home), overrides={"compute_logs": unkept})


def look_into_instance(settings: Settings) -> dg.DagsterInstance:
    """The instance of the home if there is one, else an empty one that leaves nothing behind."""
    there = Path(os.environ.get("DAGSTER_HOME") or settings.storage_dir / "dagster_home").exists()
    return open_instance(settings) if there else dg.DagsterInstance.ephemeral()


def _shipped_settings() -> Path:
    # In a checkout the file stands at the top, where `dg dev` reads it; the wheel carries it in this package.
    installed = Path(__file__).with_name("dagster.yaml")
    return installed if installed.exists() else Path(__file__).parents[2] / "dagster.yaml"
