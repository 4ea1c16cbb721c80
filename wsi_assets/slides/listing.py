"""Find a cohort's slides, and the annotation of each and what corrects it, by their names alone."""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from wsi_assets.errors import SlideError, one_line
from wsi_assets.slides.cohort import NOTHING_SAID, Cohort, SlideRow
from wsi_assets.slides.image_files import OTHER_NAMES, SUMS, ImageFiles, passed_over
from wsi_assets.slides.naming import UNREAD_ANNOTATION_SUFFIXES, annotation_ending, normalize_id, slide_id_of

LONGEST_ID = 240
"""Bytes of a slide's id, so that a patch's file, named by id and number, has a name file systems take."""

_NEARLY = re.compile(r"[ ._-]*(masks?|annotations?|annos?|labels?|rois?|gt|tumou?rs?|regions?|geojson)$")
"""What tools append to a slide's name when they name its annotation."""
_ALIKE = 0.7
"""Similarity from which two names of the same numbers are one with a slip of the pen."""

_Named = dict[str, list[tuple[str, Path]]]
"""Normalized name -> (name, file) of each file of that name."""

CORRECTIONS = "corrections"
"""The folder in that of the annotations whose files correct them."""

_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


@dataclass(frozen=True)
class SlideFile:
    """A slide on disk: its id, its file (or DICOM folder), its annotation and what corrects that, if there.

    ``said`` is what the cohort's table says of it.
    """

    slide_id: str
    path: Path
    annotation_path: Path | None
    said: SlideRow = NOTHING_SAID
    correction_path: Path | None = None


@dataclass(frozen=True)
class SlideListing:
    """What a cohort's folders hold.

    Attributes:
        slides: sorted by id.
        left_out: slide id (``*.dcm`` for loose DICOM files) -> why it is no slide here, in one line.
        notices: one line each on what costs no slide.
        strays: those of the notices that are of corrections without a slide, each a mistake.
    """

    slides: tuple[SlideFile, ...]
    left_out: dict[str, str]
    notices: tuple[str, ...]
    strays: tuple[str, ...] = ()


def find_slides(
    images_dir: str | Path, annotations_dir: str | Path | None = None, cohort: Cohort | None = None
) -> SlideListing:
    """List slides under ``images_dir`` and, by equal id without regard to case or to how accents
    are coded, their annotations.

    Sub-folders are searched and links followed; names that begin with a full stop are passed over. A slide
    is a file with an ending of a slide, or one that OpenSlide opens; a folder with DICOM files is one slide;
    the folder beside a .mrxs file is part of it. An annotation may also be named by the slide's whole file
    name (``a.svs.geojson``), or without its ``.ome``. A file that is named as an annotation and is of another
    format is one here, for whoever reads it to refuse: a slide whose annotation cannot be read or is not
    surely its own is no normal slide.

    Files in the folder ``corrections`` of ``annotations_dir`` are no annotations: each corrects that of the
    slide it is named by, in the same ways.

    A slide without annotation, beside an annotation without slide whose name is nearly its own, is left out
    too, unless ``cohort`` says that it is normal.

    What cannot be kept apart, kept under its id or read is left out. What costs no slide is a notice:
    annotations without a slide, or beside their slides where ``annotations_dir`` is another folder; files
    that are not used.

    Raises:
        SlideError: a folder is missing, cannot be reached or does not list; that is never "no slides".
    """
    images = ImageFiles(_folder(images_dir))
    for place, folders, files in _walk(images.root):
        images.add(place, folders, files)
    return _matched(images, *_annotations(annotations_dir, images), cohort or Cohort())


def _matched(
    images: ImageFiles, notes: _Named, others: _Named, fixes: _Named, other_fixes: _Named, cohort: Cohort
) -> SlideListing:
    """Give every slide its annotation and its correction: files of its name that are read, or else of another
    format."""
    left_out, notices, slides = dict(images.left_out), [], []
    found = _by_id(images.slides)
    for slide_id, path, reason in images.unread:
        for files in (notes, fixes):
            _pop(files, {normalize_id(slide_id)})
        if normalize_id(slide_id) in found:
            notices.append(f"not used, for a slide of this id is there: {path}")
        else:
            left_out[slide_id] = f"it {reason}: {path}"
    names = {}
    for key, ((_, path), *_) in found.items():
        # A slide's annotation may go by its whole file name, too, if that is no other slide's id.
        others_too = {normalize_id(path.name), normalize_id(path.name.split(".ome.")[0])}
        names[key] = {key} | (others_too - found.keys())
    used = {key: _pop(notes, names[key]) or _pop(others, names[key]) for key in found}
    corrected = {key: _pop(fixes, names[key]) or _pop(other_fixes, names[key]) for key in found}
    nearly = _by_near_name(notes, others)
    for key, named in found.items():
        slide_id, paths = named[0][0], [path for _, path in named]
        why = _why_left_out(slide_id, paths, used[key], corrected[key])
        if not why and not used[key] and cohort.row(slide_id).label != "normal":
            path = next(filter(None, (nearly(name) for name in names[key])), None)
            why = path and (
                f"it has no annotation of its own name, and this may be it: {path}. Name it {slide_id}"
                f"{annotation_ending(path.name) or '.geojson'}, or say in cohort.csv that the slide is normal"
            )
        if why:
            left_out[slide_id] = why
        else:
            annotation, fix = (next(iter(files[key]), None) for files in (used, corrected))
            slides.append(SlideFile(slide_id, paths[0], annotation, cohort.row(slide_id), fix))
    strays = [f"correction without a slide: {path}" for named in fixes.values() for _, path in named]
    notices += cohort.unknown([*left_out, *(slide.slide_id for slide in slides)])
    notices += [f"annotation without a slide: {path}" for named in notes.values() for _, path in named]
    notices += images.notices({normalize_id(slide.slide_id) for slide in slides if not slide.annotation_path})
    unread = [path for named in (*others.values(), *other_fixes.values()) for _, path in named]
    notices += [*strays, *passed_over(unread, "no annotations")]
    return SlideListing(
        slides=tuple(sorted(slides, key=lambda slide: slide.slide_id)),
        left_out={_printable(name): _printable(why) for name, why in sorted(left_out.items())},
        notices=tuple(sorted(map(_printable, notices))),
        strays=tuple(sorted(map(_printable, strays))),
    )


def _by_near_name(notes: _Named, others: _Named) -> Callable[[str], Path | None]:
    """A function: normalized name of a slide -> a file without slide that may be its annotation, or None.

    That has the name with what tools append to it, or is an annotation whose name has the same numbers and is
    alike: one of other numbers is another slide's.
    """
    stems = {_NEARLY.sub("", key): files[key][0][1] for files in (others, notes) for key in files}
    by_numbers = defaultdict(list)
    for key in notes:
        by_numbers[_numbers(key)].append(key)

    def nearly(name: str) -> Path | None:
        alike = by_numbers.get(_numbers(name), []) if _numbers(name) else []
        close = difflib.get_close_matches(name, alike, n=1, cutoff=_ALIKE)
        return notes[close[0]][0][1] if close else stems.get(name)

    return nearly


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"[0-9]+", name)))


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


def unreadable(path: Path, error: OSError) -> SlideError:
    """The error of a file that is gone or does not read."""
    if isinstance(error, FileNotFoundError):
        return SlideError("does not exist", path=path, remedy="Check the path, or that its disk is mounted")
    return SlideError(
        f"cannot be read ({error.strerror or error})", path=path, remedy="Check its permissions and its disk"
    )


def _why_left_out(
    slide_id: str, paths: list[Path], annotations: list[Path], corrections: list[Path]
) -> str | None:
    path = paths[0]
    if len(paths) > 1:
        return f"{len(paths)} slides share this id: {', '.join(sorted(map(str, paths)))}. Rename all but one"
    for what, files in (("annotations", annotations), ("corrections", corrections)):
        if len(files) > 1:
            return f"it has {len(files)} {what}: {', '.join(map(str, files))}. Keep one"
    try:
        found = stat_or_none(path)
    except SlideError as error:
        return f"it {error.fault}: {path}. {error.remedy}"
    if found is None:
        return f"it is a link to nothing: {path}. Mend the link or take it away"
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        return f"it is a pipe, socket or device, no file: {path}. Take it out of the folder"
    text = " ".join(map(str, (path, *annotations, *corrections)))
    if text.encode(errors="ignore").decode() != text:
        name = f"the name of its file or folder is no text in {sys.getfilesystemencoding().upper()}"
        return f"{name}: {path}. Rename it, or set PYTHONUTF8=1"
    reserved = "..." in slide_id or "|" in slide_id or slide_id.startswith("__")
    if reserved or any(ord(letter) < 32 for letter in slide_id):
        return (
            "its id has three full stops, an upright bar, a control character, or two underscores in front, "
            f"as patch stores' own names do: {path}. Rename it"
        )
    if len(slide_id.encode()) > LONGEST_ID:
        return f"its id has more than {LONGEST_ID} bytes: {path}. Rename it"
    return None


def _printable(text: str) -> str:
    """One line that any terminal and database takes, also of a name that is no text."""
    return one_line(text.encode(errors="backslashreplace").decode())


def _annotations(folder: str | Path | None, images: ImageFiles) -> list[_Named]:
    """Normalized id -> annotation files that are read, and -> files of other formats; both of corrections."""
    found: dict[tuple[bool, bool], list[tuple[str, Path]]]
    found = {(corrects, read): [] for corrects in (False, True) for read in (True, False)}
    if folder is not None:
        root = _folder(folder)
        shared = root.resolve() == images.root.resolve()
        slides = {path for _, path in images.slides}
        for place, folders, files in _walk(root):
            corrects = place != root and place.relative_to(root).parts[0].lower() == CORRECTIONS
            # A folder of that name is no annotation, and a slide that should have one no normal slide.
            for name in sorted([*files, *filter(annotation_ending, folders)]):
                ending, last = annotation_ending(name), Path(name).suffix.lower()
                known = last in UNREAD_ANNOTATION_SUFFIXES
                if ending:
                    found[corrects, True].append((name[: -len(ending)], place / name))
                elif known or not (shared or last in SUMS or name in OTHER_NAMES or place / name in slides):
                    found[corrects, False].append((slide_id_of(Path(name).stem), place / name))
    return [_by_id(files) for files in found.values()]


def _by_id(files: Iterable[tuple[str, Path]]) -> _Named:
    found = defaultdict(list)
    for name, path in files:
        found[normalize_id(name)].append((name, path))
    return dict(found)


def _pop(files: _Named, keys: set[str]) -> list[Path]:
    return sorted(path for key in keys for _, path in files.pop(key, []))


def _walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Like os.walk without hidden names; a loop of links ends.

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
            # (is_symlink raises in a folder that may be listed and not entered.)
            if not Path(one).suffix and os.path.islink(place / one):  # noqa: PTH114
                stat_or_none(place / one)
        yield place, folders, files


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
