"""Pictures of a slide's tissue and annotations, and a chart of the patches of each slide."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from wsi_assets.drawing import (
    EXCLUDED,
    IGNORED,
    NORMAL,
    TISSUE,
    TUMOR,
    canvas_png,
    jpeg_of,
    legend,
    new_canvas,
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

    from wsi_assets.annotations import TumorRegions
    from wsi_assets.index.slide_index import Index
    from wsi_assets.index.tissue import TissueRegions

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
    rows = sorted(slide_table(index), key=lambda row: (-row["patches"], row["slide"]))
    kept = {row["slide"]: row for row in slide_table(sampled)} if sampled is not None else None
    named = len(rows) <= 60
    high = 1.2 + (0.2 * max(len(rows), 3) if named else 6.0)
    canvas = new_canvas(7, high)
    axes = canvas.subplots(1, 1 if kept is None else 2, sharey=True, squeeze=False)[0]
    panels = [("indexed", {row["slide"]: row for row in rows})] + (
        [("sampled", kept)] if kept is not None else []
    )
    places = np.arange(len(rows))
    edges = np.ravel([places - 0.5, places + 0.5], order="F")
    for ax, (title, table) in zip(axes, panels, strict=True):
        left = np.zeros(len(rows))
        for kind, color in (("tumor", TUMOR), ("normal", NORMAL), ("partial", "#999999")):
            values = np.array([table[row["slide"]][kind] if row["slide"] in table else 0 for row in rows])
            if kind == "partial" and not values.any():
                continue
            total = f"{kind} ({values.sum():,})"
            if named:
                ax.barh(places, values, left=left, color=color, height=0.8, label=total)
            else:
                # One polygon for all slides: 10,000 single bars took 25 s and 400 MB.
                sides = (np.repeat(at, 2) for at in (left, left + values))
                ax.fill_betweenx(edges, *sides, color=color, linewidth=0, label=total)
            left = left + values
        level = next((f"{words_of(resolution_of(entry))}, " for entry in index.values()), "")
        ax.set_title(f"{level}{title}", fontsize=9, pad=20)
        ax.set_xlim(left=0)
        ax.set_xlabel("patches", fontsize=8)
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
        # Above the axes, where it never covers bars.
        ax.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 0.99), ncols=2)
    axes[0].set_yticks(places if named else [], [row["slide"] for row in rows] if named else [])
    axes[0].set_ylim(max(len(rows), 1) - 0.5, -0.5)
    if not named:
        axes[0].set_ylabel(f"{len(rows):,} slides, most patches first", fontsize=8)
    return canvas_png(canvas, dpi=90)
