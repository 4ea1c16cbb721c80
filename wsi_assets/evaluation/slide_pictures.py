"""Pictures of slides for people: the slide with its outline, the heatmap over it, and single patches.

Charts are in ``plots``; files for viewers in ``heatmap_files``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wsi_assets.errors import SlideError
from wsi_assets.evaluation.plots import BLACK, new_figure, pixels_of
from wsi_assets.index.pictures import scale_bar

if TYPE_CHECKING:
    from wsi_assets.evaluation.evaluation import SlideEvaluation
    from wsi_assets.slides.reader import SlideReader

MARGIN = 0.04
"""Share of the longer side shown around the predicted and outlined part of a slide."""

LARGEST_THUMBNAIL = 4000
DPI = 150
LONGER_SIDE = 5.2
"""Inches of the longer side of a slide's picture."""

BAR_STRIP = 0.6
"""Inches below the picture for the colour bar."""


@dataclass(frozen=True)
class View:
    """A part of a slide as pixels.

    Attributes:
        box: level-0 (x0, y0, x1, y1) of the part.
        pixels: uint8 (h, w, 3) RGB, None if the slide could not be read.
        mpp: level-0 pixel size in um, None if unknown.
        reason: why there are no pixels.
    """

    box: tuple[float, float, float, float]
    pixels: np.ndarray | None
    mpp: float | None
    reason: str | None = None


def view_of(slide: SlideEvaluation, reader: SlideReader | None, side: int, reason: str | None = None) -> View:
    """The part of a slide that holds its predictions and its outline, its longer side about ``side`` pixels.

    Args:
        reader: None where the slide does not open; ``reason`` then says why.
    """
    mpp = slide.predictions.mpp
    parts = [slide.heatmap.bounds] if slide.heatmap else []
    parts += [slide.geometry.bounds] if slide.geometry is not None else []
    if reader is None:
        box = _grown(parts) if parts else (0.0, 0.0, 1.0, 1.0)
        return View(box, None, mpp, reason)
    base = reader.levels[0]
    whole = (0.0, 0.0, float(base.width), float(base.height))
    box = _clipped(_grown(parts), whole) if parts else whole
    shown = max(box[2] - box[0], box[3] - box[1])
    try:
        pixels = reader.thumbnail(min(math.ceil(side * max(whole) / shown), LARGEST_THUMBNAIL))
    except SlideError as error:
        return View(box, None, mpp, str(error))
    scale_x, scale_y = pixels.shape[1] / base.width, pixels.shape[0] / base.height
    rows = slice(int(box[1] * scale_y), max(math.ceil(box[3] * scale_y), 1))
    cols = slice(int(box[0] * scale_x), max(math.ceil(box[2] * scale_x), 1))
    # The box follows the whole pixels that were cut, so that what is drawn over them does not shift.
    box = (
        cols.start / scale_x,
        rows.start / scale_y,
        min(cols.stop, pixels.shape[1]) / scale_x,
        min(rows.stop, pixels.shape[0]) / scale_y,
    )
    return View(box, pixels[rows, cols], mpp)


def outline_picture(slide: SlideEvaluation, view: View) -> np.ndarray:
    """The slide with the pathologist's outline and a scale bar, uint8 (h, w, 3) RGB."""
    figure, axes = _canvas(view, bar=False)
    if view.pixels is not None:
        _show(axes, view.pixels, view)
    _draw_outline(axes, slide.geometry)
    _draw_scale_bar(axes, view)
    return pixels_of(figure, DPI)


def overlay_picture(slide: SlideEvaluation, view: View, threshold: float) -> np.ndarray:
    """The heatmap over the slide in grey, with outline, colour bar, scale bar and the stronger detections.

    The grey keeps the stain from mixing with the colours; the more probable a cell, the less it lets through,
    but none so much that it looks like tissue that was not evaluated.
    """
    from matplotlib import colormaps

    figure, axes = _canvas(view, bar=True)
    colors = colormaps["viridis"]
    if view.pixels is not None:
        grey = view.pixels @ np.array([0.299, 0.587, 0.114])
        _show(axes, np.repeat(grey[..., None], 3, axis=2).astype(np.uint8), view)
    if slide.heatmap is not None:
        image, extent = _cells(slide.heatmap, colors)
        axes.imshow(image, extent=extent, interpolation="nearest", zorder=2)
    _frame(axes, view)
    _draw_outline(axes, slide.geometry)
    # Weaker peaks are in the detections file; drawn here they would hide what they point at.
    strong = [found for found in slide.detections if found.probability >= threshold]
    if strong:
        x, y = [found.x for found in strong], [found.y for found in strong]
        axes.scatter(x, y, s=11, marker="o", fc="white", ec=BLACK, lw=1.0, zorder=7)
    _draw_scale_bar(axes, view)
    _draw_color_bar(figure, colors)
    return pixels_of(figure, DPI)


def patch_jpeg(reader: SlideReader, level: int, y: int, x: int, size: int, side: int = 160) -> bytes:
    """A patch, corner ``y``, ``x`` and ``size`` in pixels of ``level``, at most ``side`` pixels wide.

    Raises:
        SlideError: the patch does not read.
    """
    return jpeg_of(reader.read_region(level, y, x, size, size).pixels, side)


def jpeg_of(pixels: np.ndarray, side: int | None = None) -> bytes:
    """JPEG of uint8 (h, w, 3) RGB, its longer side at most ``side`` pixels."""
    import cv2

    scale = side / max(pixels.shape[:2]) if side else 1
    if scale < 1:
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def png_of(pixels: np.ndarray) -> bytes:
    """PNG of uint8 (h, w, 3) RGB."""
    import cv2

    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def _cells(heatmap, colors) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """RGBA picture of the cells and its level-0 extent (left, right, bottom, top), as imshow has it."""
    probability = np.nan_to_num(heatmap.probability)
    image = colors(probability)
    image[..., 3] = np.where(np.isfinite(heatmap.probability), 0.35 + 0.45 * probability, 0)
    left, top, right, bottom = heatmap.bounds
    if heatmap.cell >= heatmap.step:
        return image, (left, right, bottom, top)
    # Patches leave gaps: paint on a finer grid so that the gaps stay visible.
    fine = 8
    image = np.repeat(np.repeat(image, fine, axis=0), fine, axis=1)
    inside = (np.arange(fine) + 0.5) / fine < heatmap.cell / heatmap.step
    rows, cols = heatmap.probability.shape
    image[..., 3] *= np.tile(inside, rows)[:, None] & np.tile(inside, cols)[None, :]
    return image, (left, left + cols * heatmap.step, top + rows * heatmap.step, top)


def _canvas(view: View, *, bar: bool):
    """Figure and axes; the slide has the same size in inches with and without the strip for a colour bar."""
    width, height = view.box[2] - view.box[0], view.box[3] - view.box[1]
    inches = LONGER_SIDE / max(width, height)
    width, height = max(width * inches, 1.8), max(height * inches, 1.2)
    strip = BAR_STRIP if bar else 0.0
    figure = new_figure(width, height + strip, layout="none")
    axes = figure.add_axes((0, strip / (height + strip), 1, height / (height + strip)))
    axes.set_facecolor("#f2f2f2")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#bbbbbb")
    _frame(axes, view)
    return figure, axes


def _draw_color_bar(figure, colors) -> None:
    from matplotlib.cm import ScalarMappable

    total = figure.get_figheight()
    place = figure.add_axes((0.06, (BAR_STRIP - 0.2) / total, 0.88, 0.12 / total))
    bar = figure.colorbar(ScalarMappable(cmap=colors), cax=place, orientation="horizontal")
    bar.set_label("Tumour probability", fontsize=9, labelpad=1)
    place.tick_params(labelsize=8, pad=1)


def _frame(axes, view: View) -> None:
    x0, y0, x1, y1 = view.box
    axes.set(xlim=(x0, x1), ylim=(y1, y0), aspect="equal")


def _show(axes, pixels: np.ndarray, view: View) -> None:
    x0, y0, x1, y1 = view.box
    axes.imshow(pixels, extent=(x0, x1, y1, y0), interpolation="antialiased", zorder=1)
    _frame(axes, view)


def _draw_outline(axes, geometry) -> None:
    import shapely

    if geometry is None:
        return
    for polygon in getattr(geometry, "geoms", [geometry]):
        for ring in (polygon.exterior, *polygon.interiors):
            points = shapely.get_coordinates(ring)
            # Black within white is seen on stain, on glass and on every colour of the map.
            axes.plot(points[:, 0], points[:, 1], color="white", lw=2.6, zorder=4, solid_joinstyle="round")
            axes.plot(points[:, 0], points[:, 1], color=BLACK, lw=1.2, zorder=5, solid_joinstyle="round")


def _draw_scale_bar(axes, view: View) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = view.box
    width, height = x1 - x0, y1 - y0
    length, text = scale_bar(width, view.mpp, 0.3)
    pad, thick = 0.03 * max(width, height), 0.012 * max(width, height)
    plate = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": "none", "alpha": 0.85}
    left, base = x0 + pad, y1 - pad
    axes.add_patch(Rectangle((left, base - thick), length, thick, fc=BLACK, ec="white", lw=1.2, zorder=9))
    axes.text(
        left, base - 1.8 * thick, text, ha="left", va="bottom", fontsize=10, color=BLACK, zorder=9, bbox=plate
    )


def _grown(parts: Sequence[tuple[float, float, float, float]]) -> tuple[float, float, float, float]:
    boxes = np.array(parts)
    x0, y0 = boxes[:, :2].min(0)
    x1, y1 = boxes[:, 2:].max(0)
    pad = MARGIN * max(x1 - x0, y1 - y0)
    return float(x0 - pad), float(y0 - pad), float(x1 + pad), float(y1 + pad)


def _clipped(box, whole) -> tuple[float, float, float, float]:
    return max(box[0], whole[0]), max(box[1], whole[1]), min(box[2], whole[2]), min(box[3], whole[3])
