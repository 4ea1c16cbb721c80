"""Whether a slide or an annotation changed: by content, or cheaply by size and time."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from wsi_assets.slides.listing import SlideFile, unreadable

NO_ANNOTATION, CORRECTED = "none", ", corrected "
"""Version of the annotation of a slide that has none; what stands between that and the correction's."""

_WHOLE = 4 << 20
_ENDS = 256 << 10
_BLOCK = 4 << 10
_STRIDE = 128 << 10
_AT_ONCE = 512
_THREADS = 8


def fingerprint(path: str | Path, *, whole: bool = False) -> str:
    """32 hex digits that stay while the content stays, whatever the file's time or name.

    A file up to 4 MiB is read whole. Of a larger one: its size, its first and last 256 KiB (where TIFF keeps
    the length of every tile), and 4 KiB of every 128 KiB between, 0.06 to 0.2 s a GB. So a copy cut short, a
    slide coded again, and a hole of 128 KiB with its mending are seen; bytes changed in place between the
    samples, with all lengths kept, are not. A slide of several files counts with all of them.

    Args:
        whole: read all of a file of any size, as of annotations, where a digit may be changed in place.

    Raises:
        SlideError: the file is missing or does not read.
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
    """The version of a slide's annotation: the contents of its file and of what corrects it.

    Raises:
        SlideError: as for :func:`fingerprint`.
    """
    read = partial(fingerprint, whole=True)
    version = NO_ANNOTATION if slide.annotation_path is None else read(slide.annotation_path)
    return version + (f"{CORRECTED}{read(slide.correction_path)}" if slide.correction_path else "")


def signature(path: str | Path) -> tuple[int, int]:
    """Sums over a slide's files of their sizes in bytes and their times of change in ns.

    A sum follows each file; the latest time would miss one that gives way to an older one.

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
    """(name within the slide, file) of every file of a slide; the slide's own name takes no part."""
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
    # Path.rglob passes over folders it may not enter; a folder that does not list must not pass for empty.
    next(folder.iterdir(), None)
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return sorted((file.relative_to(folder).as_posix(), file) for file in files)


def _digest_of(path: Path, whole: bool) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is a pipe, socket or device, no file")  # which may never answer
    state = hashlib.blake2b(digest_size=16)
    # Reads wait for the disk, not for the processor.
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
                raise OSError("it became shorter while it was read")
            part.update(data)
            start, length = start + len(data), length - len(data)
    return part.digest()


def _samples(size: int) -> list[tuple[int, int]]:
    """(start, length) of what is read of a large file."""
    inner = range(_ENDS, size - _ENDS - _BLOCK, _STRIDE)
    return [(0, _ENDS), *((start, _BLOCK) for start in inner), (size - _ENDS, _ENDS)]
