"""Progress, errors and metadata of assets, for the Dagster log, the UI and the terminal."""

from __future__ import annotations

import base64
import contextlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import dagster as dg

from wsi_assets.errors import WsiAssetsError
from wsi_assets.files import disk_fault
from wsi_assets.progress import Progress

LOG_EVERY_SECONDS = 10.0

MAX_PICTURE_BYTES = 80_000
"""Largest inline picture: the event database stores it, and the UI loads it with every page that shows it."""

MAX_PICTURE_WIDTH = 1100
"""Largest width in pixels: the UI does not scale pictures and crops those that are wider than its dialog."""

_terminal: ContextVar[Progress | None] = ContextVar("terminal_progress", default=None)


@contextlib.contextmanager
def progress_on_terminal(listener: Progress) -> Iterator[None]:
    """Within this context, ``listener`` also gets the progress of assets that run in this process."""
    token = _terminal.set(listener)
    try:
        yield
    finally:
        _terminal.reset(token)


def progress_to(log: Any, clock: Callable[[], float] = time.monotonic) -> Progress:
    """A :class:`Progress` that writes rate and time left to a Dagster log, at most every ten seconds.

    Args:
        log: a Dagster log manager.
        clock: returns the time in seconds.
    """
    started: dict[str, tuple[float, int, int]] = {}
    last = clock()

    def report(done: int, total: int, what: str) -> None:
        nonlocal last
        now = clock()
        listener = _terminal.get()
        if listener is not None:
            listener(done, total, what)
        begin, begin_done, before = started.get(what, (now, done, done))
        if done < before:  # the count starts again with the next slide
            begin, begin_done = now, done
        started[what] = begin, begin_done, done
        if now - last < LOG_EVERY_SECONDS and done < total:
            return
        last = now
        rate = (done - begin_done) / (now - begin) if now > begin else 0.0
        left = f", {(total - done) / rate:,.0f} s left" if rate > 0 and done < total else ""
        log.info(f"{what}: {done:,} of {total:,} ({rate:,.1f}/s{left})")

    return report


@contextlib.contextmanager
def user_errors_as_failures(writes_to: Path | None = None) -> Iterator[None]:
    """Raise errors that a user can correct as ``dg.Failure``: one line in the UI, no traceback, no retry.

    This includes disk errors, such as a full disk.

    Args:
        writes_to: folder named in the message of a disk error that does not name a file itself.

    Raises:
        Failure: a ``WsiAssetsError`` or a disk error occurred; other errors are raised unchanged.
    """
    try:
        yield
    except WsiAssetsError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None
    except OSError as error:
        fault = disk_fault(error, writes_to)
        if fault is None:
            raise
        raise dg.Failure(description=str(fault), allow_retries=False) from error


def picture(image: bytes, alt: str) -> dg.MetadataValue:
    """An inline picture for the UI, scaled down to :data:`MAX_PICTURE_BYTES` and :data:`MAX_PICTURE_WIDTH`.

    Args:
        image: bytes of a PNG or JPEG file.
        alt: text shown in place of the picture.
    """
    image = _small_enough(image)
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return dg.MetadataValue.md(f"![{alt}](data:image/{kind};base64,{base64.b64encode(image).decode()})")


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> dg.MetadataValue:
    """A table for the UI from rows of plain values; by default the columns are those of the first row."""
    names = list(columns or (rows[0] if rows else ["nothing"]))
    records = [dg.TableRecord({name: _cell(row.get(name)) for name in names}) for row in rows]
    schema = None if records else dg.TableSchema([dg.TableColumn(name) for name in names])
    return dg.MetadataValue.table(records, schema)


def rounded(value: float | None) -> float | str:
    """A number with four significant digits; "unknown" for None."""
    return "unknown" if value is None else float(f"{value:.4g}")


def _small_enough(image: bytes) -> bytes:
    import cv2
    import numpy as np
    from PIL import Image

    if len(image) <= MAX_PICTURE_BYTES and Image.open(io.BytesIO(image)).width <= MAX_PICTURE_WIDTH:
        return image
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    scale = min(1.0, MAX_PICTURE_WIDTH / pixels.shape[1])
    while True:
        smaller = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        image = cv2.imencode(".jpg", smaller, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
        if len(image) <= MAX_PICTURE_BYTES:
            return image
        scale *= 0.8


def _cell(value: Any) -> str | int | float | bool | None:
    if isinstance(value, float):
        # Significant digits for small numbers: learning rates go below 0.0001.
        return round(value, 4) if abs(value) >= 0.1 else float(f"{value:.4g}")
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
