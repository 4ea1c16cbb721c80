"""MLflow's own database after the storage folder was moved: it keeps every artefact's place as a full path.

Only for the database in the storage folder. What is logged there is for others.
"""

from __future__ import annotations

import contextlib
import sqlite3

from wsi_assets.orchestration.layout import StorageLayout

_PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}
"""Table -> its columns that hold places of artefacts; MLflow has no call that changes them."""


def follow_storage(layout: StorageLayout) -> bool:
    """Let MLflow find and write artefacts where the storage folder is now; whether anything had to change.

    Raises:
        sqlite3.OperationalError: the database cannot be read, or not written and it must be.
    """
    if not layout.mlflow_database.is_file():
        return False
    here = layout.mlflow_artifacts.as_uri()
    changed = 0
    with contextlib.closing(sqlite3.connect(layout.mlflow_database, timeout=30)) as database, database:
        for table, columns in _PLACES.items():
            # MLflow's versions differ in what they have.
            present = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
            for column in present.intersection(columns):
                places = {str(row[0]) for row in database.execute(f"SELECT DISTINCT {column} FROM {table}")}
                for before in {_root(place, layout.mlflow_artifacts.name) for place in places} - {None, here}:
                    changed += database.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (here, len(before) + 1, before, len(before) + 1, f"{before}/"),
                    ).rowcount
    return changed > 0


def _root(place: str, name: str) -> str | None:
    """The folder of artefacts a place lies in, None if it is not one of a storage folder."""
    head, found, rest = place.rpartition(f"/{name}")
    return head + found if found and place.startswith("file:") and rest[:1] in ("", "/") else None
