"""Detect whether a slide or an annotation changed: by its content, or quickly by size and time."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from wsi_assets.slides.file_access import unreadable
from wsi_assets.slides.listing import SlideFile

NO_ANNOTATION, CORRECTED = "none", ", corrected "
"""Annotation version of a slide without annotation; and what joins that version and the correction's."""

_WHOLE = 4 << 20
_ENDS = 256 << 10
_BLOCK = 4 << 10
_STRIDE = 128 << 10
_AT_ONCE = 512
_THREADS = 8


def fingerprint(path: str | Path, *, whole: bool = False) -> str:
    """A digest of a slide's content, 32 hex digits; name and time of the file do not matter.

    A file up to 4 MiB is read whole. Of a larger file are read its size, its first and last 256 KiB (where
    TIFF keeps the length of every tile), and 4 KiB of every 128 KiB between them, in 0.06 to 0.2 s a GB. This
    detects an incomplete copy, a slide encoded again, and a hole of 128 KiB and its repair, but not bytes
    changed in place between the samples. If a slide has several files, all of them count.

    Args:
        whole: read a file of any size whole, as for annotations, where a single digit may change.

    Raises:
        SlideError: the file is missing or cannot be read.
    """
    path = Path(path)
    total = hashlib.blake2b(digest_size=16)
    try:
        for name, part in _parts(path):
            total.update(name.encode() + b"\0" + _digest_of(part, whole))
    except OSError as error:
        raise unreadable(path, error) from error
    return total.hexdigest()


def annotation_version(slide: SlideFile) -> str:
    """The version of a slide's annotation: fingerprints of its file and of its correction.

    Raises:
        SlideError: as for :func:`fingerprint`.
    """
    read = partial(fingerprint, whole=True)
    version = NO_ANNOTATION if slide.annotation_path is None else read(slide.annotation_path)
    return version + (f"{CORRECTED}{read(slide.correction_path)}" if slide.correction_path else "")


def signature(path: str | Path) -> tuple[int, int]:
    """(sum of the sizes in bytes, sum of the modification times in ns) of a slide's files.

    The sum of the times changes with each file; the latest time would not, if an older file takes the place
    of a file.

    Raises:
        SlideError: the file is missing or cannot be reached.
    """
    path = Path(path)
    try:
        stats = [part.stat() for _, part in _parts(path)]
    except OSError as error:
        raise unreadable(path, error) from error
    return sum(stat.st_size for stat in stats), sum(stat.st_mtime_ns for stat in stats)


def _parts(path: Path) -> Iterator[tuple[str, Path]]:
    """(name within the slide, file) of every file of a slide; the name of the slide's own file is ""."""
    if path.is_dir():
        yield from _files_in(path)
        return
    yield "", path
    suffix = path.suffix.lower()
    if suffix == ".mrxs" and path.with_suffix("").is_dir():
        yield from _files_in(path.with_suffix(""))
    elif suffix in {".vms", ".vmu"}:
        text = path.read_text(encoding="utf-8", errors="replace")
        named = {line.partition("=")[2].strip() for line in text.splitlines() if "=" in line}
        beside = (path.parent / name for name in sorted(named) if name and Path(name).name == name)
        yield from ((file.name, file) for file in beside if file.is_file())


def _files_in(folder: Path) -> list[tuple[str, Path]]:
    # Path.rglob skips folders without permission; such a folder must not count as empty.
    next(folder.iterdir(), None)
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return sorted((file.relative_to(folder).as_posix(), file) for file in files)


def _digest_of(path: Path, whole: bool) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is a pipe, socket or device instead of a file")  # reading it could wait forever
    state = hashlib.blake2b(digest_size=16)
    # Threads help because reads wait for the disk.
    with path.open("rb", buffering=0) as stream, ThreadPoolExecutor(_THREADS) as pool:
        size = os.fstat(stream.fileno()).st_size
        state.update(size.to_bytes(8, "big"))
        spans = [(0, size)] if whole or size <= _WHOLE else _samples(size)
        groups = [spans[at : at + _AT_ONCE] for at in range(0, len(spans), _AT_ONCE)]
        for digest in pool.map(partial(_digest_of_spans, stream.fileno()), groups):
            state.update(digest)
    return state.digest()


def _digest_of_spans(file: int, spans: list[tuple[int, int]]) -> bytes:
    part = hashlib.blake2b(digest_size=16)
    for start, length in spans:
        while length:
            data = os.pread(file, min(length, 1 << 20), start)
            if not data:
                raise OSError("it was shortened while it was read")
            part.update(data)
            start, length = start + len(data), length - len(data)
    return part.digest()


def _samples(size: int) -> list[tuple[int, int]]:
    """(start, length) of the parts of a large file that are read."""
    inner = range(_ENDS, size - _ENDS - _BLOCK, _STRIDE)
    return [(0, _ENDS), *((start, _BLOCK) for start in inner), (size - _ENDS, _ENDS)]
