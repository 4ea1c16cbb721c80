"""Whether a slide or an annotation changed: by content, or cheaply by size and time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from wsi_assets.errors import SlideError

_WHOLE = 8 << 20
_ENDS = 256 << 10
_BLOCK = 64 << 10
_BLOCKS = 32


def fingerprint(path: str | Path) -> str:
    """32 hex digits that stay while the content stays, whatever the file's time or name.

    A file up to 8 MiB is read whole. Of a larger one: its size, its first and last 256 KiB (where TIFF keeps
    its directories with the length of every tile) and 32 blocks of 64 KiB evenly spread. So a copy cut short,
    a slide scanned again or coded again is seen; bytes changed in place between the blocks are not.

    A slide of several files counts with all of them: a DICOM folder, a MIRAX companion folder, the images
    that a Hamamatsu .vms or .vmu names.

    Raises:
        SlideError: the file is missing or does not read.
    """
    path = Path(path)
    total = hashlib.blake2b(digest_size=16)
    try:
        for name, part in _parts(path):
            total.update(name.encode() + b"\0" + _digest_of(part))
    except OSError as error:
        raise _unreadable(path, error) from error
    return total.hexdigest()


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
        raise _unreadable(path, error) from error
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
        yield from ((name, path.parent / name) for name in sorted(named) if name and _is_beside(path, name))


def _files_in(folder: Path) -> list[tuple[str, Path]]:
    # Path.rglob passes over folders it may not enter; a folder that does not list must not pass for empty.
    next(folder.iterdir(), None)
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return sorted((file.relative_to(folder).as_posix(), file) for file in files)


def _is_beside(path: Path, name: str) -> bool:
    return Path(name).name == name and (path.parent / name).is_file()


def _digest_of(path: Path) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    with path.open("rb", buffering=0) as stream:
        size = stream.seek(0, 2)
        state.update(size.to_bytes(8, "big"))
        for start, length in _spans(size):
            stream.seek(start)
            remaining = length
            while remaining:
                data = stream.read(remaining)
                if not data:
                    raise OSError("it became shorter while it was read")
                state.update(data)
                remaining -= len(data)
    return state.digest()


def _spans(size: int) -> list[tuple[int, int]]:
    if size <= _WHOLE:
        return [(0, size)]
    inner = size - 2 * _ENDS - _BLOCK
    blocks = [(_ENDS + inner * i // (_BLOCKS - 1), _BLOCK) for i in range(_BLOCKS)]
    return [(0, _ENDS), *blocks, (size - _ENDS, _ENDS)]


def _unreadable(path: Path, error: OSError) -> SlideError:
    if isinstance(error, FileNotFoundError):
        return SlideError("does not exist", path=path, remedy="Check the path, or that its disk is mounted")
    return SlideError(
        f"cannot be read ({error.strerror or error})", path=path, remedy="Check its permissions and its disk"
    )
