"""Where an unfinished store lives, who may work on it, and how it takes the old one's place.

Formats of stores do not belong here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsi_assets.errors import StoreError
from wsi_assets.files import exchange


def building_folder(path: Path) -> Path:
    """Where the store at ``path`` is built; a fixed name, so that the next build finds and continues it."""
    return path.with_name(f".building-{path.name}")


def salvage_folders(path: Path) -> list[Path]:
    """What builds for another plan left unfinished."""
    return sorted(path.parent.glob(f".salvage-*-{path.name}"))


def set_aside(path: Path) -> None:
    """Turn an unfinished build into salvage."""
    number = 0
    while (salvage := path.with_name(f".salvage-{number}-{path.name}")).exists():
        number += 1
    building_folder(path).rename(salvage)


def forget(path: Path) -> None:
    """Remove what unfinished builds left beside the store."""
    for folder in (building_folder(path), *salvage_folders(path)):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Own the store at ``path`` for writing; the lock goes with the process, however it ends.

    Raises:
        StoreError: another process builds it now.
    """
    lock = path.with_name(f".lock-{path.name}")
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                "is being built by another process", path=path, remedy="Wait for it to end, then run again"
            ) from error
        yield
    finally:
        os.close(handle)


def publish(finished: Path, path: Path) -> None:
    """Put ``finished`` in the place of ``path``, file or folder, and remove the old one.

    Where the file system can exchange two names at once, a reader always finds the old or the new store.
    Elsewhere a folder's place is empty for the moment between two renames; :func:`recover` mends a kill
    there.
    """
    if path.is_dir():
        retired = _retired(path)
        shutil.rmtree(retired, ignore_errors=True)
        if exchange(finished, path):
            finished.rename(retired)
        else:
            path.rename(retired)
            finished.rename(path)
        shutil.rmtree(retired, ignore_errors=True)
    else:
        finished.replace(path)
    with contextlib.suppress(OSError):
        sync(path.parent)


def recover(path: Path) -> None:
    """Bring back a store whose builder was killed while it exchanged folders."""
    retired = _retired(path)
    if retired.exists():
        if path.exists():
            shutil.rmtree(retired, ignore_errors=True)
        else:
            retired.rename(path)


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Journal:
    """Lines of JSON, each written after the work it tells of; a torn last line is not read."""

    def __init__(self, path: Path):
        self._stream = path.open("ab")

    def write(self, record: Any) -> None:
        """Append one record."""
        self._stream.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Let go of the file."""
        self._stream.close()

    @staticmethod
    def read(path: Path) -> list[Any]:
        """All whole records; a torn last line is cut off the file, so that it can be continued."""
        records: list[Any] = []
        end = 0
        with contextlib.suppress(FileNotFoundError, ValueError), path.open("rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                records.append(json.loads(line))
                end += len(line)
        if path.exists() and path.stat().st_size != end:
            os.truncate(path, end)
        return records


def _retired(path: Path) -> Path:
    return path.with_name(f".retired-{path.name}")
