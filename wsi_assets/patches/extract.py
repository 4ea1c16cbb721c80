"""One task of extraction: some patches of one slide, read and encoded, in whatever process it runs.

Everything sent and returned pickles, so any ``concurrent.futures`` executor can run it. Stores are not known
here; the process that hands out tasks writes.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import MutableSequence
from dataclasses import dataclass

import numpy as np

from wsi_assets.errors import SlideError
from wsi_assets.patches.codecs import encoder
from wsi_assets.patches.handover import Filling, Place, Room
from wsi_assets.slides.fingerprints import signature


@dataclass(frozen=True)
class Task:
    """Read these patches: ``coords`` int32 (n, 2) of (y, x) in pixels of ``level``.

    ``fingerprint`` is what the slide must still be; None takes it as it is.
    """

    slide_path: str
    fingerprint: str | None
    level: int
    patch_size: int
    coords: np.ndarray
    codec: str
    quality: int | None
    max_no_data: float


@dataclass(frozen=True)
class Encoded:
    """``values``: encoded patches, None where unreadable; ``reasons``: number of such a patch -> why.

    ``unseen_by``: the machine that did not even find the slide's file, None if it did.
    """

    values: list[bytes | memoryview | None]
    reasons: dict[int, str]
    unseen_by: str | None = None


_open = threading.local()


def extract(task: Task) -> Encoded:
    """Read and encode; an unreadable slide or patch is a reason in the result, never an exception.

    A patch that is just one of the slide's JPEG tiles is not encoded again under the codec ``jpeg``: the tile
    is smaller, its pixels are exactly the slide's, and it costs no time. Parts of a tile are not cut out so:
    jpegtran's lossless crop, 1.5 to 3 times as fast as coding again, loses what colour at half resolution
    (4:2:0, as most scanners write) takes from beyond the cut, in one pixel of 300.
    """
    values: list[bytes | memoryview | None] = [None] * len(task.coords)
    return Encoded(values, *_extract(task, values))


def extract_into(room: str, task: Task) -> Place:
    """As :func:`extract`, for :func:`fetch` to take from the room at this path."""
    with Filling(room, len(task.coords)) as values:
        return values.finish(_extract(task, values))


def _extract(task: Task, values: MutableSequence | Filling) -> tuple[dict[int, str], str | None]:
    """Set each value that can be read; the rest of :class:`Encoded`."""
    reasons: dict[int, str] = {}
    waiting = set(range(len(task.coords)))
    encode = encoder(task.codec, task.quality)
    seen = False
    try:
        now = signature(task.slide_path)
        seen = True
        reader = _reader(task.slide_path, task.fingerprint, now)
        for number, patch in reader.read(task.level, task.coords, task.patch_size, jpeg=task.codec == "jpeg"):
            waiting.remove(number)
            reason = patch.fault or _too_little(patch.missing, task)
            if reason is None:
                values[number] = patch.jpeg or encode(patch.pixels)
            else:
                reasons[number] = reason
    except SlideError as error:
        close_reader()
        reasons.update(dict.fromkeys(waiting, error.fault))
    return reasons, None if seen else platform.node()


def fetch(room: Room, place: Place) -> Encoded:
    """Take what :func:`extract_into` left; it is good until the room is filled again."""
    values, (reasons, unseen_by) = room.read(place)
    return Encoded(values, reasons, unseen_by)


def close_reader() -> None:
    """Let go of the slide this thread holds open between tasks."""
    held = getattr(_open, "held", None)
    _open.held = None
    if held is not None:
        held[1].close()


def _too_little(missing: int, task: Task) -> str | None:
    """The reason to leave out a patch of which the slide lacks so many pixels; None to take it."""
    pixels = task.patch_size**2
    if missing > task.max_no_data * pixels or missing == pixels:
        return f"the slide has no pixels for {missing / pixels:.0%} of it"
    return None


def _reader(path: str, fingerprint: str | None, now: tuple[int, int]):
    """The slide, kept open from task to task: consecutive tasks are mostly of one slide."""
    from wsi_assets.patches.pixels import PatchReader
    from wsi_assets.slides.fingerprints import fingerprint as fingerprint_of

    wanted = (path, fingerprint, now)
    held = getattr(_open, "held", None)
    if held is not None and held[0] == wanted:
        return held[1]
    close_reader()
    if fingerprint is not None and fingerprint_of(path) != fingerprint:
        raise SlideError("changed since it was indexed", path=path, remedy="Index it again")
    reader = PatchReader(path)
    _open.held = (wanted, reader)
    return reader
