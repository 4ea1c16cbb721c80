"""What all pictures share: the palette, canvases apart from pyplot, PNG and JPEG bytes, the scale bar.

The colors are Okabe and Ito's (jfly.uni-koeln.de/color), which color-blind readers can distinguish.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
GREY, INK = "#767676", "#222222"


def new_canvas(width: float, height: float, layout: str = "constrained") -> Figure:
    """A matplotlib figure of ``width`` x ``height`` inches, unknown to pyplot."""
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


def canvas_pixels(canvas: Figure, dpi: int) -> np.ndarray:
    """A matplotlib figure as uint8 (h, w, 3) RGB."""
    canvas.set_dpi(dpi)
    canvas.canvas.draw()
    return np.array(canvas.canvas.buffer_rgba())[..., :3]


def plain_axes(axes: Axes) -> None:
    """A light grid and no frame at the top and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def png_of(pixels: np.ndarray) -> bytes:
    """PNG of uint8 (h, w, 3) RGB."""
    import cv2

    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def jpeg_of(pixels: np.ndarray, quality: int = 85) -> bytes:
    """JPEG of uint8 (h, w, 3) RGB."""
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    return cv2.imencode(".jpg", pixels[..., ::-1], options)[1].tobytes()


def shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    """The same picture with its longer side at most ``side`` pixels."""
    import cv2

    scale = side / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels


def scale_bar(width: float, mpp: float | None, share: float) -> tuple[float, str]:
    """Length in level-0 pixels, and label, of a round scale bar of at most ``share`` of ``width``.

    Args:
        width: of what is shown, level-0 pixels.
        mpp: level-0 pixel size in um; None if unknown, the bar is then in pixels.
    """
    unit = mpp or 1.0
    most = share * width * unit
    power = 10.0 ** math.floor(math.log10(most))
    value = max(step * power for step in (1, 2, 5) if step * power <= most)
    if not mpp:
        return value, f"{value:,.0f} px of level 0"
    return value / unit, f"{value / 1000:g} mm" if value >= 1000 else f"{value:g} µm"
