"""Pictures of a slide's tissue and annotations, and a chart of the patches of each slide."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.drawing import (
    EXCLUDED,
    GREY,
    IGNORED,
    INK,
    NORMAL,
    TISSUE,
    TUMOR,
    jpeg_of,
    legend,
    rings_of,
    scale_bar,
    shrunk,
    stroke,
)
from wsi_assets.index.sampling import slide_table
from wsi_assets.index.slide_index import resolution_of
from wsi_assets.slides.resolution import words_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import ImageDraw

    from wsi_assets.annotations import TumorRegions
    from wsi_assets.index.slide_index import Index
    from wsi_assets.index.tissue import TissueRegions

MOST_NAMED, WIDE, TOP = 60, 330, 48
"""Of the picture of counts: bars with names, width of a panel and space above its bars in pixels."""

COLORS = {"tissue": TISSUE, "tumor": TUMOR, "excluded": EXCLUDED, "ignored": IGNORED}


def overlay_jpeg(
    tissue: TissueRegions,
    tumor: TumorRegions | None = None,
    *,
    max_side: int = 720,
    max_bytes: int | None = 60_000,
) -> bytes:
    """:func:`overlay` as a JPEG, made smaller until it has at most ``max_bytes``, for an event log."""
    import cv2

    picture = overlay(tissue, tumor, max_side=max_side)
    data = jpeg_of(picture)
    while max_bytes and len(data) > max_bytes and max(picture.shape) > 120:
        scale = min(0.95, 1.1 * math.sqrt(max_bytes / len(data)))
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        data = jpeg_of(picture, 70)
    return data


def overlay(
    tissue: TissueRegions, tumor: TumorRegions | None = None, *, max_side: int = 720
) -> NDArray[np.uint8]:
    """Draw the borders of tissue, tumor, excluded and ignored areas on the slide's picture.

    Args:
        max_side: longer side of the slide's picture, in pixels; it is not enlarged.

    Returns:
        uint8 (h, w, 3) RGB, with a legend and a scale bar below the picture.
    """
    import cv2

    base = tissue.levels[0]
    whole = cv2.imdecode(np.frombuffer(tissue.picture, np.uint8), cv2.IMREAD_COLOR_RGB)
    picture = np.ascontiguousarray(shrunk(whole, max_side))
    height, width = picture.shape[:2]
    downsample = max(base.height / height, base.width / width)
    line = max(1, round(max(height, width) / 600))
    # The mask has whole pixels, so it may reach over the slide's edge.
    zoom = tissue.work_downsample / downsample
    warp = np.array([[zoom, 0, (zoom - 1) / 2], [0, zoom, (zoom - 1) / 2]])
    mask = cv2.warpAffine(tissue.mask.astype(np.uint8) * 255, warp, (width, height), flags=cv2.INTER_LINEAR)
    contours, _ = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    stroke(picture, contours, COLORS["tissue"], line, casing=False)
    drawn = ["tissue"]
    if tumor is not None:
        areas = {"excluded": tumor.excluded, "tumor": tumor.geometry, "ignored": tumor.ignored}
        for name, geometry in areas.items():
            stroke(picture, rings_of(geometry, (0, 0), downsample), COLORS[name], line + 1, casing=True)
            drawn += [] if geometry.is_empty else [name]
    share = f"{tissue.slide_id}   tissue {tissue.tissue_share:.1%}"
    length, text = scale_bar(base.width, tissue.scale.mpp, 0.2)
    colors = {name: COLORS[name] for name in drawn}
    return np.vstack([picture, legend(width, share, colors, (length / downsample, text))])


def counts_png(index: Index, sampled: Index | None = None) -> bytes:
    """A bar chart (PNG) of tumor and normal patches per slide, in the index and in the sampled index.

    Slides with most patches come first; with more than 60 slides their names are left out.
    """
    # Not matplotlib: loading it takes a quarter of a second, as long as a small level takes in all.
    from PIL import Image, ImageDraw, ImageFont

    rows = sorted(slide_table(index), key=lambda row: (-row["patches"], row["slide"]))
    order = [row["slide"] for row in rows]
    panels = [("indexed", rows)] + ([("sampled", slide_table(sampled))] if sampled is not None else [])
    font, named = ImageFont.load_default(12), len(order) <= MOST_NAMED
    texts = order if named else [f"{len(order):,} slides,", "most patches", "first"]
    left = 10 + round(max(map(font.getlength, texts), default=0))
    edges = TOP + np.linspace(0, 20 * max(len(order), 3) if named else 540, len(order) + 1).round()
    picture = Image.new("RGB", (left + WIDE * len(panels), int(edges[-1]) + 40), "white")
    draw = ImageDraw.Draw(picture)
    draw.font = font
    for line, text in enumerate(texts):
        middle = edges[line : line + 2].mean() if named else TOP + 20 * line + 10
        draw.text((left - 5, middle), text, INK, anchor="rm")
    level = next((f"{words_of(resolution_of(entry))}, " for entry in index.values()), "")
    for place, (title, table) in enumerate(panels):
        start = left + WIDE * place
        draw.text((start + WIDE / 2 - 10, 12), level + title, INK, anchor="mm")
        _bars(draw, start, edges, order, {row["slide"]: row for row in table})
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _bars(
    draw: ImageDraw.ImageDraw,
    start: int,
    edges: NDArray[np.float64],
    order: Sequence[str],
    table: Mapping[str, Mapping[str, Any]],
) -> None:
    """One panel of bars from ``start`` to the right, between ``edges``: legend, bars and axis."""
    gap = 3 if len(order) <= MOST_NAMED else 0
    most = max((row["patches"] for row in table.values()), default=0) or 1
    zoom = (WIDE - 30) / most
    at, legend_at = dict.fromkeys(order, 0), start
    for kind, color in (("tumor", TUMOR), ("normal", NORMAL), ("partial", GREY)):
        total = sum(row[kind] for row in table.values())
        if kind == "partial" and not total:
            continue
        draw.rectangle((legend_at, 28, legend_at + 14, 36), color)
        draw.text((legend_at + 19, 32), f"{kind} ({total:,})", INK, anchor="lm")
        legend_at += 30 + round(draw.textlength(f"{kind} ({total:,})"))
        for slide_id, top, bottom in zip(order, edges, edges[1:], strict=False):
            begin = at[slide_id]
            at[slide_id] = end = begin + (table[slide_id][kind] if slide_id in table else 0)
            sides = (round(start + begin * zoom), top + gap, round(start + end * zoom) - 1, bottom - 1)
            if sides[2] >= sides[0] and sides[3] >= sides[1]:
                draw.rectangle(sides, color)
    bottom = edges[-1] + 4
    draw.line((start, TOP - 4, start, bottom, start + WIDE - 30, bottom), INK)
    step = 10 ** math.floor(math.log10(most))
    step = next((step * part for part in (1, 2, 5) if most / (step * part) <= 5), step * 10)
    for value in range(0, most + 1, step):
        x = start + value * zoom
        draw.line((x, bottom, x, bottom + 4), INK)
        draw.text((x, bottom + 6), f"{value:,}", INK, anchor="ma")
    draw.text((start + WIDE / 2 - 15, bottom + 22), "patches", INK, anchor="ma")
