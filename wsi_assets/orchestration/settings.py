"""Folders and server addresses, read from environment variables when the definitions are built."""

from __future__ import annotations

import os
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from wsi_assets.errors import ConfigError


@dataclass(frozen=True)
class Settings:
    """Folders (absolute paths) and server addresses.

    Attributes:
        images_dir: folder of the user's slides; never written to.
        annotations_dir: folder of the user's annotations; None if there is none.
        storage_dir: folder for everything the platform writes.
        cohort: path of the cohort table; None for ``cohort.csv`` in ``images_dir``, if it exists.
        tracking_uri: address of an MLflow server; None for the SQLite file in the storage folder.
        mlflow_url: address at which the pages of that SQLite file are served, for links.
        viewer_url: address at which the slide viewer is served, for links.
        scheduler: address or scheduler file of a Dask cluster that reads the slides; None for this machine.
        poll_seconds: shortest time between two listings of the slide folder; longer for a slow network share.
        timezone: time zone of the nightly automations.
    """

    images_dir: Path
    annotations_dir: Path | None
    storage_dir: Path
    cohort: Path | None = None
    tracking_uri: str | None = None
    mlflow_url: str = "http://127.0.0.1:5000"
    viewer_url: str = "http://127.0.0.1:5001"
    scheduler: str | None = None
    poll_seconds: int = 30
    timezone: str = "UTC"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, home: Path | None = None) -> Settings:
        """Read the ``WSI_*`` variables and ``MLFLOW_TRACKING_URI``.

        Args:
            environ: environment variables.
            home: folder of relative paths and default folders, by default the current folder.

        Raises:
            ConfigError: a variable has an impossible value.
        """
        home = Path.cwd() if home is None else Path(home).absolute()

        def folder(variable: str, default: str) -> Path:
            # Symbolic links are kept: users know a folder by the name of its link.
            return Path(os.path.normpath(home / Path(environ.get(variable) or default).expanduser()))

        # These folders are part of the database addresses of Dagster and MLflow, where % and ? are special.
        for variable in ("WSI_STORAGE_DIR", "DAGSTER_HOME"):
            if set("%?") & set(environ.get(variable) or str(home)):
                raise ConfigError(
                    "has % or ? in its name, which database addresses cannot contain",
                    path=environ.get(variable) or home,
                    remedy=f"Choose another folder ({variable})",
                )

        annotations: Path | None = folder("WSI_ANNOTATIONS_DIR", "annotations")
        # Annotations are optional, but a missing folder that the user named is reported later.
        if not environ.get("WSI_ANNOTATIONS_DIR") and not annotations.exists():
            annotations = None
        return cls(
            images_dir=folder("WSI_IMAGES_DIR", "images"),
            annotations_dir=annotations,
            storage_dir=folder("WSI_STORAGE_DIR", "storage"),
            cohort=folder("WSI_COHORT", "") if environ.get("WSI_COHORT") else None,
            tracking_uri=environ.get("MLFLOW_TRACKING_URI") or None,
            mlflow_url=environ.get("WSI_MLFLOW_URL") or cls.mlflow_url,
            viewer_url=environ.get("WSI_VIEWER_URL") or cls.viewer_url,
            scheduler=environ.get("WSI_SCHEDULER") or None,
            poll_seconds=_seconds(environ, "WSI_POLL_SECONDS", cls.poll_seconds),
            timezone=_timezone(environ, "WSI_TIMEZONE", cls.timezone),
        )

    def to_environment(self) -> dict[str, str]:
        """Environment variables from which another process reads the same settings."""
        names = {"tracking_uri": "MLFLOW_TRACKING_URI"}
        return {
            names.get(field.name, f"WSI_{field.name.upper()}"): str(getattr(self, field.name))
            for field in fields(self)
            if getattr(self, field.name) is not None
        }


def _seconds(environ: Mapping[str, str], variable: str, default: int) -> int:
    text = environ.get(variable) or str(default)
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{text!r} is not a number of seconds", remedy=f"Set {variable} to 1 or more")
    return int(text)


def _timezone(environ: Mapping[str, str], variable: str, default: str) -> str:
    name = environ.get(variable) or default
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"{name!r} is not a time zone", remedy=f"Set {variable} to a name like Europe/Amsterdam"
        ) from error
    return name
