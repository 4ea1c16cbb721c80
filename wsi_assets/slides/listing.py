"""Find a cohort's slides and the annotation of each, by their names alone."""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wsi_assets.errors import SlideError, one_line
from wsi_assets.slides.naming import ANNOTATION_SUFFIXES, SLIDE_SUFFIXES, normalize_id, slide_id_of

WITHOUT_SLIDE = "annotation without a slide: "
"""How the notice of such an annotation begins; its path follows."""

LONGEST_ID = 240
"""Bytes of a slide's id, so that a patch's file, named by id and number, has a name file systems take."""


_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


@dataclass(frozen=True)
class SlideFile:
    """A slide on disk: its id, its file (or DICOM folder) and its annotation, if it has one."""

    slide_id: str
    path: Path
    annotation_path: Path | None


@dataclass(frozen=True)
class SlideListing:
    """What a cohort's folders hold.

    Attributes:
        slides: sorted by id.
        left_out: slide id (``*.dcm`` for loose DICOM files) -> why it is no slide here, in one line.
        notices: one line each on what costs no slide.
    """

    slides: tuple[SlideFile, ...]
    left_out: dict[str, str]
    notices: tuple[str, ...]


def find_slides(images_dir: str | Path, annotations_dir: str | Path | None = None) -> SlideListing:
    """List slides under ``images_dir`` and, by equal id without regard to case or to how accents
    are coded, their annotations.

    Sub-folders are searched and links followed; names that begin with a full stop are passed over. A folder
    with .dcm files is one DICOM slide with the folder's name; the folder beside a .mrxs file is part of it.

    Left out: slides that share an id or are compared as one, a slide with two annotations (it cannot be known
    which is meant), an id that cannot be a partition key, several .dcm files directly in ``images_dir``, a
    link to nothing or to where nothing can be reached. An annotation without a slide is a notice, and so are
    annotations beside their slides where ``annotations_dir`` is another folder, and slide files of another
    format in the folder of a DICOM slide.

    Raises:
        SlideError: a folder is missing, cannot be reached or does not list; that is never "no slides".
    """
    left_out: dict[str, str] = {}
    beside: list[Path] = []
    strays: list[Path] = []
    found = _by_id(_slides_under(_folder(images_dir), left_out, beside, strays))
    notes = _by_id(_annotations_under(_folder(annotations_dir))) if annotations_dir is not None else {}
    slides = []
    for key, paths in found.items():
        annotations = notes.pop(key, [])
        slide_id = slide_id_of(paths[0])
        why = _why_left_out(slide_id, paths, annotations)
        if why:
            left_out[_printable(slide_id)] = _printable(why)
        else:
            slides.append(SlideFile(slide_id, paths[0], annotations[0] if annotations else None))
    notices = [f"{WITHOUT_SLIDE}{path}" for paths in notes.values() for path in paths]
    notices += [
        f"slide file in the folder of a DICOM slide is not used: {path}. Move it if it is one"
        for path in strays
    ]
    notices += _unused(
        beside, {normalize_id(slide.slide_id) for slide in slides if slide.annotation_path is None}
    )
    return SlideListing(
        slides=tuple(sorted(slides, key=lambda slide: slide.slide_id)),
        left_out=dict(sorted(left_out.items())),
        notices=tuple(sorted(map(_printable, notices))),
    )


def stat_or_none(path: Path) -> os.stat_result | None:
    """``path.stat()``, links followed; None if nothing is there.

    Raises:
        SlideError: it cannot be reached, e.g. lies in a folder that may not be entered.
    """
    try:
        return path.stat()
    except ValueError:  # a name with a null byte, which no file has
        return None
    except OSError as error:
        if error.errno in _MISSING:
            return None
        raise SlideError(
            f"cannot be reached ({error.strerror or error})",
            path=path,
            remedy="Check its permissions and those of the folders it lies in",
        ) from error


def _unused(beside: list[Path], without: set[str]) -> list[str]:
    """A line on annotations in the slide folder that belong to slides without any, if there are such."""
    unused = sorted(path for path in beside if normalize_id(slide_id_of(path)) in without)
    if not unused:
        return []
    what = "annotation lies beside its slide and is not used:"
    if len(unused) > 1:
        what = "annotations lie beside their slides and are not used, e.g."
    return [f"{len(unused)} {what} {unused[0]}. To use such files, name the slide folder for annotations too"]


def _why_left_out(slide_id: str, paths: list[Path], annotations: list[Path]) -> str | None:
    if len(paths) > 1:
        return f"{len(paths)} slides share this id: {_names(paths)}. Rename all but one"
    if len(annotations) > 1:
        return f"it has {len(annotations)} annotations: {_names(annotations)}. Keep one"
    try:
        found = stat_or_none(paths[0])
    except SlideError as error:
        return f"it {error.fault}: {paths[0]}. {error.remedy}"
    if found is None:
        return f"it is a link to nothing: {paths[0]}. Mend the link or take it away"
    if not all(map(_is_text, (paths[0], *annotations))):
        return f"the name of its file or folder is no text in UTF-8: {paths[0]}. Rename it"
    if "..." in slide_id or any(ord(letter) < 32 for letter in slide_id):
        return f"its id has three full stops or a control character: {paths[0]}. Rename it"
    if slide_id.startswith("__"):
        return f"its id begins with two underscores, as patch stores' own names do: {paths[0]}. Rename it"
    if len(slide_id.encode()) > LONGEST_ID:
        return f"its id has more than {LONGEST_ID} bytes: {paths[0]}. Rename it"
    return None


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(text: str) -> str:
    """One line that any terminal and database takes, also of a name that is no text."""
    return one_line(text.encode(errors="backslashreplace").decode())


def _slides_under(
    folder: Path, left_out: dict[str, str], beside: list[Path], strays: list[Path]
) -> Iterator[Path]:
    """Slides below a folder.

    Annotations that lie among them are added to ``beside``, slides of another format in a DICOM slide's
    folder to ``strays``.
    """
    within: set[Path] = set()
    for place, folders, files in _walk(folder):
        suffixes = {name: Path(name).suffix.lower() for name in files}
        dicoms = sorted(name for name, suffix in suffixes.items() if suffix == ".dcm")
        if place.parent in within or (dicoms and place != folder):
            if place.parent not in within:
                yield place
            within.add(place)
            other = SLIDE_SUFFIXES - {".dcm"}
            strays += (place / name for name, suffix in sorted(suffixes.items()) if suffix in other)
            continue
        if len(dicoms) > 1:
            left_out["*.dcm"] = (
                f"{len(dicoms)} files lie loose in {place}. Give each slide a folder of its own"
            )
        companions = {Path(name).stem for name, suffix in suffixes.items() if suffix == ".mrxs"}
        folders[:] = [name for name in folders if name not in companions]
        for name, suffix in sorted(suffixes.items()):
            if suffix in SLIDE_SUFFIXES and not (suffix == ".dcm" and len(dicoms) > 1):
                yield place / name
            elif suffix in ANNOTATION_SUFFIXES:
                beside.append(place / name)


def _annotations_under(folder: Path) -> Iterator[Path]:
    for place, _, files in _walk(folder):
        yield from (
            place / name for name in sorted(files) if Path(name).suffix.lower() in ANNOTATION_SUFFIXES
        )


def _walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Like os.walk without hidden names; a folder that does not list raises, and a loop of links ends.

    Raises:
        SlideError: a folder does not list, or a link that may lead to one leads where nothing can be reached.
    """
    seen: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(folder, followlinks=True, onerror=_fail):
        place = Path(name)
        itself = place.stat()
        if (itself.st_dev, itself.st_ino) in seen:
            folders.clear()
            continue
        seen.add((itself.st_dev, itself.st_ino))
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        files = [one for one in files if not one.startswith(".")]
        for one in files:
            # os.walk takes a link to a folder that cannot be reached for a file; by its name it may be one.
            if not Path(one).suffix and _is_link(place / one):
                stat_or_none(place / one)
        yield place, folders, files


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError:  # its folder may be listed, and not entered
        return False


def _by_id(paths: Iterator[Path]) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for path in paths:
        found[normalize_id(slide_id_of(path))].append(path)
    return dict(found)


def _names(paths: list[Path]) -> str:
    return ", ".join(sorted(map(str, paths)))


def _folder(path: str | Path) -> Path:
    path = Path(path)
    found = stat_or_none(path)
    if found is None or not stat.S_ISDIR(found.st_mode):
        fault = "does not exist" if found is None else "is not a folder"
        raise SlideError(fault, path=path, remedy="Check the path, or that its disk is mounted")
    return path


def _fail(error: OSError) -> None:
    raise SlideError(
        f"cannot be listed ({error.strerror})", path=error.filename, remedy="Check its permissions"
    ) from error
