"""Find a cohort's slides and the annotation of each. Nothing is opened here; only names and places count."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wsi_assets.errors import SlideError, one_line
from wsi_assets.files import ASIDE_PREFIX
from wsi_assets.slides.naming import ANNOTATION_SUFFIXES, SLIDE_SUFFIXES, slide_id_of


@dataclass(frozen=True)
class SlideFile:
    """A slide on disk: its id, its file (or DICOM folder) and its annotation, if it has one."""

    slide_id: str
    path: Path
    annotation_path: Path | None


@dataclass(frozen=True)
class SlideListing:
    """``slides`` sorted by id; ``problems``: one line each on what was left out, and why."""

    slides: tuple[SlideFile, ...]
    problems: tuple[str, ...]


def find_slides(images_dir: str | Path, annotations_dir: str | Path | None = None) -> SlideListing:
    """List slides under ``images_dir`` and, by equal id without regard to case, their annotations.

    Sub-folders are searched and links followed; names that begin with a full stop are passed over. A folder
    with .dcm files is one DICOM slide with the folder's name; the folder beside a .mrxs file is part of it.

    Left out, with a problem: slides that share an id or differ by case alone, a slide with two annotations
    (it cannot be known which is meant), an id that cannot be a partition key, several .dcm files directly in
    ``images_dir``, a link to nothing. An annotation without a slide is a problem too.

    Raises:
        SlideError: a folder is missing or does not list; that is never "no slides".
    """
    problems: list[str] = []
    found = _by_id(_slides_under(_folder(images_dir), problems))
    notes = _by_id(_annotations_under(_folder(annotations_dir))) if annotations_dir is not None else {}
    slides = []
    for key, paths in found.items():
        annotations = notes.pop(key, [])
        slide_id = slide_id_of(paths[0])
        if len(paths) > 1:
            problems.append(f"slides share the id {slide_id}: {_names(paths)}. Rename all but one")
        elif len(annotations) > 1:
            problems.append(f"slide {slide_id} has two annotations: {_names(annotations)}. Keep one")
        elif _is_no_key(slide_id):
            problems.append(
                f"slide id {slide_id!r} has three full stops or a control character: {paths[0]}. Rename it"
            )
        else:
            slides.append(SlideFile(slide_id, paths[0], annotations[0] if annotations else None))
    problems += [f"annotation without a slide: {path}" for paths in notes.values() for path in paths]
    return SlideListing(
        tuple(sorted(slides, key=lambda slide: slide.slide_id)), tuple(sorted(map(one_line, problems)))
    )


def _slides_under(folder: Path, problems: list[str]) -> Iterator[Path]:
    for place, folders, files in _walk(folder):
        suffixes = {name: Path(name).suffix.lower() for name in files}
        dicoms = sorted(name for name, suffix in suffixes.items() if suffix == ".dcm")
        if dicoms and place != folder:
            yield place
            folders.clear()
            continue
        if len(dicoms) > 1:
            problems.append(
                f"{len(dicoms)} .dcm files lie loose in {place}. Give each slide a folder of its own"
            )
        companions = {Path(name).stem for name, suffix in suffixes.items() if suffix == ".mrxs"}
        folders[:] = [name for name in folders if name not in companions]
        for name, suffix in sorted(suffixes.items()):
            if suffix not in SLIDE_SUFFIXES or (suffix == ".dcm" and len(dicoms) > 1):
                continue
            if (place / name).exists():
                yield place / name
            else:
                problems.append(f"link to nothing: {place / name}. Mend it or take it away")


def _annotations_under(folder: Path) -> Iterator[Path]:
    for place, _, files in _walk(folder):
        yield from (
            place / name for name in sorted(files) if Path(name).suffix.lower() in ANNOTATION_SUFFIXES
        )


def _walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Like os.walk without hidden names; a folder that does not list raises, and a loop of links ends."""
    seen: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(folder, followlinks=True, onerror=_fail):
        place = Path(name)
        stat = place.stat()
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(one for one in folders if not _is_hidden(one))
        yield place, folders, [one for one in files if not _is_hidden(one)]


def _is_hidden(name: str) -> bool:
    return name.startswith((".", ASIDE_PREFIX))


def _is_no_key(slide_id: str) -> bool:
    return "..." in slide_id or any(ord(letter) < 32 for letter in slide_id)


def _by_id(paths: Iterator[Path]) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for path in paths:
        found[slide_id_of(path).lower()].append(path)
    return dict(found)


def _names(paths: list[Path]) -> str:
    return ", ".join(sorted(map(str, paths)))


def _folder(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        fault = "is not a folder" if path.exists() else "does not exist"
        raise SlideError(fault, path=path, remedy="Check the path, or that its disk is mounted")
    return path


def _fail(error: OSError) -> None:
    raise SlideError(
        f"cannot be listed ({error.strerror})", path=error.filename, remedy="Check its permissions"
    ) from error
