"""Find a cohort's slides and the annotation of each, by their names alone."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wsi_assets.errors import SlideError, one_line
from wsi_assets.slides.image_files import OTHER_NAMES, SUMS, ImageFiles, passed_over
from wsi_assets.slides.naming import UNREAD_ANNOTATION_SUFFIXES, annotation_ending, normalize_id

WITHOUT_SLIDE = "annotation without a slide: "
"""How the notice of such an annotation begins; its path follows."""

LONGEST_ID = 240
"""Bytes of a slide's id, so that a patch's file, named by id and number, has a name file systems take."""

_NEARLY = re.compile(r"[ ._-]*(masks?|annotations?|annos?|labels?|rois?|gt|tumou?rs?|regions?|geojson)$")
"""What tools append to a slide's name when they name its annotation."""

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

    Sub-folders are searched and links followed; names that begin with a full stop are passed over. A slide
    is a file with an ending of a slide, or one that OpenSlide opens; a folder with DICOM files is one slide;
    the folder beside a .mrxs file is part of it. An annotation may also be named by the slide's whole file
    name (``a.svs.geojson``), or without its ``.ome``.

    A slide whose annotation cannot be read or is not surely its own is no normal slide. A file that is named
    as its annotation and is of another format is its annotation here, for whoever reads it to refuse.

    Left out: slides that share an id or are compared as one, a slide with two annotations or with one of
    nearly its name, an id that cannot be a partition key, several .dcm files
    directly in ``images_dir``, a slide of a format that is not read, packed or half copied, a link to nothing
    or to where nothing can be reached, a pipe, socket or device (which may never answer).

    An annotation without a slide is a notice, and so are annotations beside their slides where
    ``annotations_dir`` is another folder, slide files of another format in the folder of a DICOM slide, and
    files that are passed over.

    Raises:
        SlideError: a folder is missing, cannot be reached or does not list; that is never "no slides".
    """
    images = ImageFiles(_folder(images_dir))
    for place, folders, files in _walk(images.root):
        images.add(place, folders, files)
    notes, others = _annotations(annotations_dir, images)
    left_out, notices = dict(images.left_out), []
    slides: list[SlideFile] = []
    found: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for slide_id, path in images.slides:
        found[normalize_id(slide_id)].append((slide_id, path))
    for slide_id, path, reason in images.unread:
        _pop(notes, normalize_id(slide_id))
        if normalize_id(slide_id) in found:
            notices.append(f"not used, for a slide of this id is there: {path}")
        else:
            left_out[_printable(slide_id)] = _printable(f"it {reason}: {path}")
    names = {key: {key} | _other_names(paths[0][1], found) for key, paths in found.items()}
    used: dict[str, list[Path]] = {key: _pop(notes, *names[key]) for key in found}
    nearly = _nearly_named(notes, others)
    for key, paths in found.items():
        slide_id, annotations = paths[0][0], used[key]
        foreign = [] if annotations else _pop(others, *names[key])
        why = _why_left_out(slide_id, [path for _, path in paths], annotations or foreign)
        if not why and not annotations and not foreign:
            why = _why_unsure(slide_id, names[key], nearly)
        if why:
            left_out[_printable(slide_id)] = _printable(why)
        else:
            slides.append(SlideFile(slide_id, paths[0][1], next(iter([*annotations, *foreign]), None)))
    notices += [f"{WITHOUT_SLIDE}{path}" for paths in notes.values() for path in paths]
    notices += images.notices({normalize_id(slide.slide_id) for slide in slides if not slide.annotation_path})
    notices += passed_over([path for paths in others.values() for path in paths], "no annotations")
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
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        return f"it is a pipe, socket or device, no file: {paths[0]}. Take it out of the folder"
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


def _nearly_named(*files: dict[str, list[Path]]) -> dict[str, list[tuple[dict[str, list[Path]], str]]]:
    """Normalized name of a slide -> where a file is kept whose name adds to it what tools add."""
    found = defaultdict(list)
    for one in files:
        for key in one:
            if (name := _NEARLY.sub("", key)) != key:
                found[name].append((one, key))
    return found


def _why_unsure(
    slide_id: str, names: set[str], nearly: dict[str, list[tuple[dict[str, list[Path]], str]]]
) -> str | None:
    """Why a slide without an annotation may have one: a file of nearly its name is among the annotations."""
    for files, key in (place for name in names for place in nearly.get(name, ())):
        path = files.pop(key)[0]
        return (
            f"it has no annotation of its own name, and this may be it: {path}. Name it {slide_id}"
            f"{annotation_ending(path.name) or '.geojson'}, or move it if the slide is normal"
        )
    return None


def _annotations(
    folder: str | Path | None, images: ImageFiles
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Normalized id -> annotation files that are read, and -> files of other formats."""
    notes: list[tuple[str, Path]] = []
    others: list[tuple[str, Path]] = []
    if folder is not None:
        root = _folder(folder)
        shared = root.resolve() == images.root.resolve()
        slides = {path for _, path in images.slides}
        for place, _, files in _walk(root):
            for name in sorted(files):
                ending, last = annotation_ending(name), Path(name).suffix.lower()
                known = last in UNREAD_ANNOTATION_SUFFIXES
                if ending:
                    notes.append((name[: -len(ending)], place / name))
                elif known or not (shared or last in SUMS or name in OTHER_NAMES or place / name in slides):
                    others.append((Path(name).stem, place / name))
    return _by_id(notes), _by_id(others)


def _other_names(path: Path, found: dict[str, list[tuple[str, Path]]]) -> set[str]:
    """Normalized names besides its id by which a slide's annotation may go, if no other slide's id."""
    names = {normalize_id(path.name), normalize_id(path.name.split(".ome.")[0])}
    return {name for name in names if name not in found}


def _pop(files: dict[str, list[Path]], *keys: str) -> list[Path]:
    return sorted(path for key in keys for path in files.pop(key, []))


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


def _by_id(files: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    """Normalized id -> paths."""
    found = defaultdict(list)
    for name, path in files:
        found[normalize_id(name)].append(path)
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
