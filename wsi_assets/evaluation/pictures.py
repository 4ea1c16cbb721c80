"""Pictures of slides and of parts of slides, with annotation, heatmap and detections.

The report draws a :class:`Scene` as SVG in level-0 pixels, so that annotation, heatmap and detections stay
sharp at any zoom and the heatmap can be faded; ``heatmap_picture`` draws the same as an array of pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wsi_assets.drawing import (
    INK,
    TUMOR,
    data_uri,
    jpeg_of,
    legend,
    png_of,
    rgb,
    rings_of,
    scale_bar,
    shrunk,
    stroke,
)

if TYPE_CHECKING:
    from wsi_assets.evaluation.evaluation import SlideEvaluation
    from wsi_assets.evaluation.heatmap import Detection, Heatmap
    from wsi_assets.evaluation.predictions import SlidePredictions
    from wsi_assets.slides.reader import SlideReader

Box = tuple[float, float, float, float]
"""Level-0 (x0, y0, x1, y1)."""

MARGIN = 0.04
"""Share of the longer side shown around the predicted and annotated part of a slide."""

LARGEST_THUMBNAIL = 4000
CROP_SIDE = 360
"""Pixels of the longer side of a crop."""

MOST_READ = 4096
"""Largest side, in pixels, that is read for a crop; a larger crop is cut from the picture of the slide."""

MOST_LESIONS, MOST_FALSE_POSITIVES = 12, 6
"""Largest numbers of crops of one slide."""

SMALLEST_RING = 0.009
"""Radius of the ring around a detection, as a share of the width: a smaller one would be hard to see."""


@dataclass(frozen=True)
class PredictedSlide:
    """A predicted slide to draw, without an evaluation; ``heatmap`` is None if it has no patches."""

    predictions: SlidePredictions
    heatmap: Heatmap | None
    detections: tuple[Detection, ...]
    geometry: None = None

    @property
    def slide_id(self) -> str:
        return self.predictions.slide_id


@dataclass(frozen=True)
class View:
    """A part of a slide: its box, and uint8 (h, w, 3) RGB pixels, None if they could not be read."""

    box: Box
    pixels: np.ndarray | None


@dataclass(frozen=True)
class Scene:
    """What a page draws of a part of a slide, everything in level-0 pixels.

    Attributes:
        image: the pixels as a data URI, None if they could not be read.
        bar: length and text of the scale bar.
        annotation: SVG path of the annotated tumor near the box.
        radius: of the rings around the detections.
        square: (x, y, side) of a patch to mark.
    """

    box: Box
    image: str | None
    bar: tuple[float, str]
    annotation: str
    detections: tuple[Detection, ...]
    radius: float
    square: tuple[float, float, float] | None = None


def view_of(slide: SlideEvaluation | PredictedSlide, reader: SlideReader | None, side: int) -> View:
    """The part of a slide that holds its predictions and annotation, its longer side about ``side`` pixels.

    Args:
        reader: None if the slide cannot be opened.

    Raises:
        SlideError: the pixels cannot be read.
    """
    parts = [slide.heatmap.bounds] if slide.heatmap else []
    parts += [slide.geometry.bounds] if slide.geometry is not None else []
    box = np.array([0.0, 0.0, 1.0, 1.0])
    if parts:
        box = np.concatenate([np.min(parts, 0)[:2], np.max(parts, 0)[2:]])
        box += np.array([-1, -1, 1, 1]) * MARGIN * max(box[2:] - box[:2])
    if reader is None:
        return View(tuple(box.tolist()), None)
    whole = np.array([reader.levels[0].width, reader.levels[0].height] * 2)
    box = np.clip(box, 0, whole)
    if not parts or (box[2:] <= box[:2]).any():  # nothing to show on the slide: show all of it
        box = whole * [0, 0, 1, 1]
    side = math.ceil(side * whole.max() / max(box[2:] - box[:2]))
    pixels = reader.thumbnail(min(side, LARGEST_THUMBNAIL))
    return cut(View(tuple((whole * [0, 0, 1, 1]).tolist()), pixels), tuple(box.tolist()))


def cut(view: View, box: Box) -> View:
    """The part of a view within ``box``, extended to whole pixels so that drawings over it do not shift."""
    if view.pixels is None:
        return View(box, None)
    height, width = view.pixels.shape[:2]
    origin = np.array(view.box[:2] * 2)
    scale = np.array([width, height] * 2) / np.tile(np.array(view.box[2:]) - origin[:2], 2)
    place = (np.array(box) - origin) * scale
    x0, y0 = np.clip(np.floor(place[:2]), 0, [width - 1, height - 1]).astype(int)
    x1, y1 = np.clip(np.ceil(place[2:]), [x0 + 1, y0 + 1], [width, height]).astype(int)
    return View(tuple((np.array([x0, y0, x1, y1]) / scale + origin).tolist()), view.pixels[y0:y1, x0:x1])


def crop(reader: SlideReader | None, whole: View, center: tuple[float, float], side: float) -> View:
    """Read a square of ``side`` level-0 pixels around ``center`` (x, y), in about ``CROP_SIDE`` pixels.

    Args:
        reader: None if the slide cannot be opened.
        whole: the view of the whole slide, from which a very large crop is cut.

    Raises:
        SlideError: the slide cannot be read there.
    """
    x0, y0 = center[0] - side / 2, center[1] - side / 2
    box = x0, y0, x0 + side, y0 + side
    if reader is None:
        return View(box, None)
    fitting = [one for one in reader.levels if one.downsample <= max(side / CROP_SIDE, 1)]
    level = max(fitting, key=lambda one: one.downsample)
    pixels = math.ceil(side / level.downsample)
    if pixels > MOST_READ:
        return cut(whole, box)
    left, top = round(x0 / level.downsample), round(y0 / level.downsample)
    region = reader.read_region(level.index, top, left, pixels, pixels)
    place = np.array([left, top, left + pixels, top + pixels]) * level.downsample
    return View(tuple(place.tolist()), shrunk(region.pixels, CROP_SIDE))


def scene(view: View, slide: SlideEvaluation, square: tuple[float, float, float] | None = None) -> Scene:
    """What to draw of a view of ``slide``: its pixels, annotation, detections and scale bar."""
    x0, y0, x1, y1 = view.box
    radius = max(0.75 * slide.heatmap.cell if slide.heatmap else 0, SMALLEST_RING * (x1 - x0))
    return Scene(
        box=view.box,
        image=None if view.pixels is None else data_uri(jpeg_of(view.pixels), "jpeg"),
        bar=scale_bar(x1 - x0, slide.predictions.mpp, 0.3),
        annotation=_path(slide.geometry, view.box),
        detections=tuple(
            one
            for one in slide.detections
            if x0 - radius < one.x < x1 + radius and y0 - radius < one.y < y1 + radius
        ),
        radius=radius,
        square=square,
    )


def _path(geometry: Any, box: Box) -> str:
    """SVG path of the rings of a geometry near ``box``, simplified to the resolution of a large picture."""
    import shapely

    if geometry is None:
        return ""
    side = max(box[2] - box[0], box[3] - box[1])
    around = shapely.box(*box).buffer(side / 10, join_style="mitre")
    shown = shapely.simplify(geometry, side / 3000).intersection(around)
    rings = (shapely.get_coordinates(ring) for ring in shapely.get_rings(shapely.get_parts(shown)))
    return "".join(f"M{' '.join(f'{x:.0f},{y:.0f}' for x, y in ring)}Z" for ring in rings)


def heat_png(heatmap: Heatmap) -> bytes:
    """The cells in viridis as PNG, transparent where nothing was predicted and where patches leave gaps."""
    image = _viridis(np.nan_to_num(heatmap.probability))
    image[..., 3] *= np.isfinite(heatmap.probability)
    if heatmap.cell < heatmap.step:
        fine = 8
        inside = (np.arange(fine) + 0.5) / fine < heatmap.cell / heatmap.step
        image = image.repeat(fine, axis=0).repeat(fine, axis=1)
        image[..., 3] *= np.tile(inside[:, None] & inside, heatmap.probability.shape)
    return png_of(image)


def heat_extent(heatmap: Heatmap) -> Box:
    """Level-0 x, y, width and height of the picture of ``heat_png``."""
    rows, cols = heatmap.probability.shape
    return heatmap.left, heatmap.top, cols * heatmap.step, rows * heatmap.step


def viridis_gradient() -> str:
    """Color stops of the heatmap for a CSS gradient."""
    return ",".join(_hex(p) for p in np.linspace(0, 1, 9))


def _viridis(probability: np.ndarray | float) -> np.ndarray:
    from matplotlib import colormaps

    return np.array(colormaps["viridis"](probability, bytes=True))


def _hex(probability: float) -> str:
    return "#" + _viridis(float(probability))[:3].tobytes().hex()


def heatmap_picture(
    slide: SlideEvaluation | PredictedSlide, view: View, side: int, threshold: float
) -> np.ndarray:
    """The heatmap over the slide in gray with annotation, detections, legend and scale bar, RGB (h, w, 3)."""
    import cv2

    x0, y0, x1, y1 = view.box
    downsample = max(x1 - x0, y1 - y0) / side
    size = max(1, round((x1 - x0) / downsample)), max(1, round((y1 - y0) / downsample))
    picture = np.full((size[1], size[0], 3), 242, np.uint8)
    if view.pixels is not None:
        gray = cv2.cvtColor(cv2.resize(view.pixels, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
        picture = np.repeat(gray[..., None], 3, axis=2)
    heatmap = slide.heatmap
    if heatmap is not None:
        row, on_row = heatmap.cells_at((np.arange(size[1]) + 0.5) * downsample + y0, axis=0)
        col, on_col = heatmap.cells_at((np.arange(size[0]) + 0.5) * downsample + x0, axis=1)
        shown = heatmap.probability[np.ix_(row, col)]
        opacity = 0.65 * (np.isfinite(shown) & on_row[:, None] & on_col)[..., None]
        colors = _viridis(np.nan_to_num(shown))[..., :3]
        picture = (picture * (1 - opacity) + colors * opacity).round().astype(np.uint8)
    line = max(2, side // 400)
    if slide.geometry is not None:
        stroke(picture, rings_of(slide.geometry, (x0, y0), downsample), TUMOR, line, casing=True)
    for found in slide.detections:
        if found.probability >= threshold:
            center = round((found.x - x0) / downsample), round((found.y - y0) / downsample)
            for color, width in ((INK, line + 2), ("#ffffff", line)):
                cv2.circle(picture, center, round(0.02 * side), rgb(color), width, cv2.LINE_AA)
    length, text = scale_bar(x1 - x0, slide.predictions.mpp, 0.3)
    colors = {} if slide.geometry is None else {"annotation": TUMOR}
    strip = legend(size[0], slide.slide_id, colors, (length / downsample, text))
    return np.vstack([picture, _color_bar(size[0]), strip])


def _color_bar(width: int) -> np.ndarray:
    """Probabilities 0 to 1 in viridis with numbers below, uint8 (h, width, 3)."""
    import cv2

    size = min(max(width / 1000, 0.36), 1.0)
    high = round(20 * size)
    colors = _viridis(np.linspace(0, 1, width))[None, :, :3].repeat(high, axis=0)
    numbers = np.full((round(34 * size), width, 3), 255, np.uint8)
    for share, text in ((0, "0"), (0.25, "tumor probability"), (0.5, "0.5"), (1, "1")):
        wide = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.8 * size, 1)[0][0]
        at = round(share * (width - 1) - share * wide), round(27 * size)
        cv2.putText(numbers, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.8 * size, rgb(INK), 1, cv2.LINE_AA)
    return np.vstack([colors, numbers])


def crops_of(slide: SlideEvaluation) -> list[tuple[str, tuple[float, float], float]]:
    """(caption, center (x, y), side) of a slide's largest lesions and most probable false positives."""
    hits, shown = slide.hits, []
    if hits is None:
        return shown
    lesions = hits.lesions.lesions if hits.lesions else ()
    for lesion in sorted(lesions, key=lambda one: -one.major_axis)[:MOST_LESIONS]:
        top, left, bottom, right = (edge * hits.lesions.downsample for edge in lesion.box)
        hit = hits.best.get(lesion.label)
        found = f"detected, p {hit.probability:.2f}" if hit else "missed"
        found = "isolated tumor cells" if lesion.itc else found
        text = f"Lesion {lesion.label}, {lesion.length_um:,.0f} µm: {found}"
        shown.append((text, ((left + right) / 2, (top + bottom) / 2), 1.2 * max(right - left, bottom - top)))
    for one in hits.false_positives[:MOST_FALSE_POSITIVES]:
        shown.append((f"False positive, p {one.probability:.2f}", (one.x, one.y), 5 * slide.heatmap.cell))
    return shown
