"""One task of extraction: some patches of one slide, read and encoded, in whatever process it runs.

Everything sent and returned pickles, so any ``concurrent.futures`` executor can run it. Stores are not known
here; the process that hands out tasks writes.
"""

from __future__ import annotations

import os
import pickle
import platform
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi_assets.errors import SlideError
from wsi_assets.patches.codecs import encoder
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

    values: list[bytes | None]
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
    count = len(task.coords)
    seen = False
    try:
        now = signature(task.slide_path)
        seen = True
        reader = _reader(task.slide_path, task.fingerprint, now)
        patches = reader.read(task.level, task.coords, task.patch_size, jpeg=task.codec == "jpeg")
    except SlideError as error:
        close_reader()
        reasons = dict.fromkeys(range(count), error.fault)
        return Encoded([None] * count, reasons, None if seen else platform.node())
    encode = encoder(task.codec, task.quality)
    allowed = task.max_no_data * task.patch_size**2
    reasons = dict(patches.failed)
    values: list[bytes | None] = []
    for number in range(count):
        missing = int(patches.missing[number])
        if number not in reasons and (missing > allowed or missing == task.patch_size**2):
            share = missing / task.patch_size**2
            reasons[number] = f"the slide has no pixels for {share:.0%} of it"
        if number in reasons:
            values.append(None)
        else:
            values.append(patches.jpeg.get(number) or encode(patches.pixels[number]))
    return Encoded(values, reasons)


def extract_aside(task: Task, folder: str) -> str:
    """As :func:`extract`, but leave the result in a file of ``folder`` and return its name.

    A process pool hands results over through one pipe. A worker killed in the middle of a long one leaves the
    reader waiting for ever; a file's name goes through in one piece or not at all, and faster.
    """
    encoded = extract(task)
    handle, name = tempfile.mkstemp(dir=folder)
    with os.fdopen(handle, "wb") as stream:
        pickle.dump(encoded, stream, protocol=5)
    return name


def fetch(name: str) -> Encoded:
    """Take what :func:`extract_aside` left."""
    file = Path(name)
    with file.open("rb") as stream:
        encoded = pickle.load(stream)
    file.unlink()
    return encoded


def close_reader() -> None:
    """Let go of the slide this thread holds open between tasks."""
    held = getattr(_open, "held", None)
    _open.held = None
    if held is not None:
        held[1].close()


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
