"""Where things live, read from the environment once, when definitions are built."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wsi_assets.errors import ConfigError

BACKENDS = ("lmdb", "hdf5", "fs")
"""Patch stores a user can choose: one LMDB environment, one HDF5 file, or a folder of PNG files."""


@dataclass(frozen=True)
class Settings:
    """Folders, all absolute, and the patch store new runs write.

    Attributes:
        images_dir: the user's slides; only ever read.
        annotations_dir: the user's outlines, or None where there are none.
        storage_dir: everything the platform writes.
        patch_backend: one of :data:`BACKENDS`.
        tracking_uri: an MLflow server, or None for the sqlite file in the storage folder.
        scheduler: address or scheduler file of a Dask cluster that does the work of slides, or None for this
            machine.
        look_every_seconds: how often the sensor lists the slide folder; a slow share wants fewer looks.
    """

    images_dir: Path
    annotations_dir: Path | None
    storage_dir: Path
    patch_backend: str = "lmdb"
    tracking_uri: str | None = None
    scheduler: str | None = None
    look_every_seconds: int = 30

    def __post_init__(self):
        if self.patch_backend not in BACKENDS:
            raise ConfigError(
                f"{self.patch_backend!r} is not a patch backend",
                remedy=f"Set WSI_PATCH_BACKEND to one of {', '.join(BACKENDS)}",
            )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, home: Path | None = None) -> Settings:
        """Read the ``WSI_*`` variables; whatever is not set lies under ``home``, the current folder.

        Raises:
            ConfigError: a variable has an impossible value.
        """
        home = Path.cwd() if home is None else Path(home).absolute()

        def folder(variable: str, default: str) -> Path:
            # Not resolved: a lab's folder may be a link, and its users know it by the link's name.
            return Path(os.path.normpath(home / Path(environ.get(variable) or default).expanduser()))

        annotations: Path | None = folder("WSI_ANNOTATIONS_DIR", "annotations")
        # Outlines are optional, but a folder the user named and that is not there is a mistake to report.
        if not environ.get("WSI_ANNOTATIONS_DIR") and not annotations.exists():
            annotations = None
        return cls(
            images_dir=folder("WSI_IMAGES_DIR", "images"),
            annotations_dir=annotations,
            storage_dir=folder("WSI_STORAGE_DIR", "storage"),
            patch_backend=environ.get("WSI_PATCH_BACKEND") or "lmdb",
            tracking_uri=environ.get("MLFLOW_TRACKING_URI") or None,
            scheduler=environ.get("WSI_SCHEDULER") or None,
            look_every_seconds=_seconds(environ, "WSI_LOOK_EVERY_SECONDS", 30),
        )

    def to_environment(self) -> dict[str, str]:
        """The variables that make another process arrive at the same settings."""
        values = {
            "WSI_IMAGES_DIR": str(self.images_dir),
            "WSI_STORAGE_DIR": str(self.storage_dir),
            "WSI_PATCH_BACKEND": self.patch_backend,
            "WSI_LOOK_EVERY_SECONDS": str(self.look_every_seconds),
        }
        if self.annotations_dir is not None:
            values["WSI_ANNOTATIONS_DIR"] = str(self.annotations_dir)
        if self.tracking_uri is not None:
            values["MLFLOW_TRACKING_URI"] = self.tracking_uri
        if self.scheduler is not None:
            values["WSI_SCHEDULER"] = self.scheduler
        return values


def _seconds(environ: Mapping[str, str], variable: str, default: int) -> int:
    text = environ.get(variable) or str(default)
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{text!r} is not a number of seconds", remedy=f"Set {variable} to 1 or more")
    return int(text)
