"""What all pictures share: colors, matplotlib figures, image encoding, contours, legend and scale bar.

The colors are those of Okabe and Ito (jfly.uni-koeln.de/color), which color-blind readers can distinguish.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from shapely import Geometry

BLUE, ORANGE, GREEN, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#CC79A7"
GREY, INK = "#767676", "#222222"
TUMOR, NORMAL, TISSUE, EXCLUDED, IGNORED = ORANGE, BLUE, GREEN, SKY, PURPLE
"""The color of each class in every picture."""


def new_canvas(width: float, height: float, layout: str = "constrained") -> Figure:
    """A matplotlib figure of ``width`` x ``height`` inches.

    Made without pyplot, which would keep every figure in memory.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(canvas)
    return canvas


def canvas_png(canvas: Figure, dpi: int = 160) -> bytes:
    """A matplotlib figure as PNG; equal drawings give equal bytes."""
    stream = io.BytesIO()
    canvas.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def canvas_svg(canvas: Figure) -> bytes:
    """A matplotlib figure as SVG with selectable text; equal drawings give equal bytes."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    fonts = ["Liberation Sans", "Arial", "Helvetica", "DejaVu Sans"]
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "wsi_assets", "font.sans-serif": fonts}):
        canvas.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def plain_axes(axes: Axes) -> None:
    """Style axes: a light grid, and no frame at the top and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def png_of(pixels: np.ndarray) -> bytes:
    """Encode uint8 (h, w, 3) RGB or (h, w, 4) RGBA as PNG."""
    import cv2

    code = cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    return cv2.imencode(".png", cv2.cvtColor(pixels, code))[1].tobytes()


def jpeg_of(pixels: np.ndarray, quality: int = 85) -> bytes:
    """Encode uint8 (h, w, 3) RGB as JPEG."""
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    return cv2.imencode(".jpg", pixels[..., ::-1], options)[1].tobytes()


def data_uri(data: bytes, kind: str) -> str:
    """A data URI of an image, for pages without image files; ``kind`` is "png", "jpeg" or "svg+xml"."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def rgb(color: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a color like #D55E00."""
    return tuple(bytes.fromhex(color[1:]))


def rings_of(geometry: Geometry, origin: tuple[float, float], downsample: float) -> list[np.ndarray]:
    """Rings of a geometry as OpenCV contours, int32 (n, 1, 2) of (x, y) in pixels of a picture.

    Args:
        geometry: (x, y) in level-0 pixels.
        origin: level-0 (x, y) of the picture's top-left corner.
        downsample: level-0 pixels per pixel of the picture.
    """
    import shapely

    rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(shapely.get_parts(geometry))]
    return [np.round((ring - origin) / downsample - 0.5).astype(np.int32)[:, None] for ring in rings]


def stroke(picture: np.ndarray, contours: Sequence[np.ndarray], color: str, line: int, casing: bool) -> None:
    """Draw contours ``line`` pixels wide onto uint8 (h, w, 3) RGB, in place.

    Args:
        casing: draw a dark border around each line, so that it shows on pale and on dark tissue.
    """
    import cv2

    if casing:
        cv2.drawContours(picture, contours, -1, rgb(INK), line + 2, cv2.LINE_AA)
    # Not antialiased: a line of one pixel keeps its color.
    cv2.drawContours(picture, contours, -1, rgb(color), line, cv2.LINE_8)


def legend(width: int, title: str, colors: Mapping[str, str], bar: tuple[float, str]) -> np.ndarray:
    """A strip to put under a picture, uint8 (h, width, 3) RGB: title, a swatch for each color, scale bar.

    Args:
        colors: name -> color.
        bar: length of the scale bar in pixels of the picture, and its label.
    """
    import cv2

    size = min(max(width / 1000, 0.36), 1.0)
    high, gap, ink = round(44 * size), round(14 * size), rgb(INK)
    items = [(0, title, None), *((round(40 * size), name, rgb(color)) for name, color in colors.items())]
    # OpenCV's fonts have ASCII letters only.
    items.append((max(round(bar[0]), 1), bar[1].replace("µ", "u"), ink))
    placed, x, row = [], gap, 0
    for swatch, text, color in items:
        wide = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)[0][0] + swatch + 2 * gap
        if x > gap and x + wide > width:
            x, row = gap, row + 1
        placed.append((x, row, swatch, text, color))
        x += wide + gap
    strip = np.full(((row + 1) * high + gap, width, 3), 255, np.uint8)
    for x, row, swatch, text, color in placed:
        base = row * high + round(high * 0.7)
        if color is not None:
            middle = base - round(9 * size)
            if color != ink:
                cv2.line(strip, (x, middle), (x + swatch, middle), ink, round(8 * size) + 2)
            cv2.line(strip, (x, middle), (x + swatch, middle), color, max(round(8 * size) - 1, 2))
        at = (x + swatch + (gap if swatch else 0), base)
        cv2.putText(strip, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, ink, 1, cv2.LINE_AA)
    return strip


def shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    """A picture (h, w, c), reduced if its longer side has more than ``side`` pixels."""
    import cv2

    scale = side / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels


def scale_bar(width: float, mpp: float | None, share: float) -> tuple[float, str]:
    """Length in level-0 pixels, and label, of a scale bar of a round length.

    Args:
        width: width of the picture in level-0 pixels.
        mpp: level-0 pixel size in um; None if unknown: the label is then in pixels.
        share: longest bar, as a share of ``width``.
    """
    unit = mpp or 1.0
    most = share * width * unit
    power = 10.0 ** math.floor(math.log10(most))
    value = max(step * power for step in (1, 2, 5) if step * power <= most)
    if not mpp:
        return value, f"{value:,.0f} px of level 0"
    return value / unit, f"{value / 1000:g} mm" if value >= 1000 else f"{value:g} µm"
