"""What MLflow has not taken: kept in a folder beside the level's files until it does.

``level_N/mlflow_pending/<key>/`` holds ``pending.json`` (the run and its notes) and the notes' files, by hard
link where the file system has them. Nothing here talks to MLflow.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from wsi_assets.files import publish_file, write_json
from wsi_assets.orchestration.mlflow_notes import Note

LIST_NAME = "pending.json"


@dataclass(frozen=True)
class RunIdentity:
    """A run by our own key, so that it has an identity before, and whether or not, MLflow gives it one.

    Attributes:
        key: also a tag of the run, by which it is found.
        name: as shown in MLflow.
        tags: of the run.
        started: milliseconds since 1970.
    """

    key: str
    name: str
    tags: dict[str, str]
    started: int


def keep(folder: Path, identity: RunIdentity, notes: Sequence[Note]) -> None:
    """Add notes to those kept in ``folder`` already, in order; their files are kept with them."""
    known, kept = read(folder) if is_pending(folder) else (identity, [])
    number = 1 + max((int(note.file.parent.name) for note in kept if note.file), default=0)
    for offset, note in enumerate(notes):
        name = note.file.name if isinstance(note.file, Path) else note.content.get("name", "")
        target = None if note.file is None else folder / str(number + offset) / name
        if target is not None:
            _keep_file(note.file, target)
        kept.append(replace(note, file=target))
    keep_only(folder, known, kept)


def keep_only(folder: Path, identity: RunIdentity, notes: Sequence[Note]) -> None:
    """Keep these of the notes that ``folder`` holds, and no others."""
    rows = [
        {**asdict(note), "file": None if note.file is None else note.file.relative_to(folder).as_posix()}
        for note in notes
    ]
    write_json(folder / LIST_NAME, {"run": asdict(identity), "notes": rows})


def read(folder: Path) -> tuple[RunIdentity, list[Note]]:
    """The run and the notes kept in ``folder``."""
    stored = json.loads((folder / LIST_NAME).read_text(encoding="utf-8"))
    notes = [
        Note(row["kind"], row["content"], None if row["file"] is None else folder / row["file"])
        for row in stored["notes"]
    ]
    return RunIdentity(**stored["run"]), notes


def is_pending(folder: Path) -> bool:
    return (folder / LIST_NAME).is_file()


def forget(folder: Path) -> None:
    """Remove what has been delivered, and the level's folder of pending runs when it was the last."""
    shutil.rmtree(folder)
    if not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def pending_folders(parent: Path) -> list[Path]:
    """Folders with notes below a level's folder of pending runs, oldest first."""
    return sorted((path.parent for path in parent.glob(f"*/{LIST_NAME}")), key=lambda f: f.stat().st_mtime)


def _keep_file(source: Path | bytes, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if isinstance(source, Path):
        with contextlib.suppress(OSError):  # file systems without hard links
            os.link(source, target)
            return
    with publish_file(target) as aside:
        aside.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
