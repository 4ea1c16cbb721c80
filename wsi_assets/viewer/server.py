"""A small web server: a page for each slide, and the slide's tiles for OpenSeadragon.

A request gives a slide id, which is looked up; no part of a request is used as a path.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from wsi_assets.errors import WsiAssetsError

TILE = 254
"""With an overlap of one pixel on each side a tile is 256 pixels wide, like the tiles of most slides."""

JPEG_QUALITY = 85
MAX_OPEN_SLIDES = 8
HEAT_SIDE = 2048
"""Least side in pixels to which a heatmap is enlarged."""

PLAIN = "text/plain; charset=utf-8"
PAGES = {
    "viewer.html": "text/html; charset=utf-8",
    "viewer.js": "text/javascript; charset=utf-8",
    "openseadragon.min.js": "text/javascript; charset=utf-8",
}


@dataclass(frozen=True)
class Heat:
    """A heatmap and its detections.

    Attributes:
        name: its title, e.g. "level 4".
        probability_map: TIFF file of tumor probabilities, 0 to 1, over the whole slide.
        detections: (probability, x, y), in level-0 pixels.
    """

    name: str
    probability_map: Path
    detections: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class SlideLayers:
    """What is shown over a slide.

    Attributes:
        tumor, excluded, ignored: rings of (x, y) in level-0 pixels.
        mpp: level-0 pixel size in um, None if unknown.
        heat: heatmaps; the first one is shown first.
    """

    tumor: tuple[list[tuple[float, float]], ...] = ()
    excluded: tuple[list[tuple[float, float]], ...] = ()
    mpp: float | None = None
    heat: tuple[Heat, ...] = field(default=())
    ignored: tuple[list[tuple[float, float]], ...] = ()


def viewer_server(
    slides: Callable[[], dict[str, Path]], layers: Callable[[str], SlideLayers], host: str, port: int
) -> ThreadingHTTPServer:
    """The viewer's server; ``serve_forever`` runs it.

    Args:
        slides: returns slide id -> file, of the slides there are now.
        layers: slide id -> what is shown over the slide.

    Raises:
        OSError: the host or port cannot be used.
    """
    pages = _Pages(slides, layers)

    class Requests(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, kind = HTTPStatus.OK, PLAIN
            try:
                kind, body = pages.answer([unquote(part) for part in urlsplit(self.path).path.split("/")[1:]])
            except (KeyError, IndexError, ValueError):
                status, body = HTTPStatus.NOT_FOUND, b"There is no such page\n"
            except (WsiAssetsError, OSError) as error:
                status, body = HTTPStatus.UNPROCESSABLE_ENTITY, f"{error}\n".encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            if kind == "image/jpeg":
                self.send_header("Cache-Control", "max-age=3600")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: Any) -> None:
            """Requests are not logged: one slide makes hundreds."""

    return ThreadingHTTPServer((host, port), Requests)


class _Pages:
    def __init__(self, slides: Callable[[], dict[str, Path]], layers: Callable[[str], SlideLayers]):
        self.slides, self.layers, self.tiles = slides, layers, Tiles()

    def answer(self, words: list[str]) -> tuple[str, bytes]:
        """(media type, content) of the page at an address, given as the parts of its path.

        Raises:
            KeyError, IndexError, ValueError: there is no such page.
        """
        if words == [""]:
            return PAGES["viewer.html"], page("viewer.html")
        if len(words) == 1:
            return PAGES[words[0]], page(words[0])
        if words == ["api", "slides"]:
            return "application/json", json.dumps(sorted(self.slides())).encode()
        kind, slide_id, *rest = words
        path = self.slides()[slide_id]
        if kind == "slide" and not rest:
            return PAGES["viewer.html"], page("viewer.html")
        if kind == "api" and not rest:
            facts = described(self.tiles.size(path), self.layers(slide_id))
            return "application/json", json.dumps(facts).encode()
        if kind == "heat":
            return "image/png", heat_picture(self.layers(slide_id).heat[int(rest[0])].probability_map)
        if kind == "tiles":
            level, name = rest
            column, row = map(int, name.removesuffix(".jpeg").split("_"))
            return "image/jpeg", self.tiles.tile(path, int(level), column, row)
        raise KeyError(kind)


class Tiles:
    """Tiles of slides; the slides used last are kept open."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open = lru_cache(MAX_OPEN_SLIDES)(_opened)

    def size(self, path: Path) -> tuple[int, int]:
        """(width, height) of a slide."""
        return self._deep_zoom(path).level_dimensions[-1]

    def tile(self, path: Path, level: int, column: int, row: int) -> bytes:
        """A tile as JPEG. Levels are those of Deep Zoom: 0 is one pixel, the last is the full resolution.

        Raises:
            ValueError: there is no such tile.
            SlideError: the slide cannot be read.
        """
        from openslide import OpenSlideError

        from wsi_assets.errors import SlideError

        try:
            picture = self._deep_zoom(path).get_tile(level, (column, row))
        except OpenSlideError as error:
            raise SlideError(f"cannot be read ({error})", path=path) from error
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=JPEG_QUALITY)
        return stream.getvalue()

    def _deep_zoom(self, path: Path) -> Any:
        with self._lock:
            return self._open(path, path.stat().st_mtime_ns)


def _opened(path: Path, _changed: int) -> Any:
    from openslide import OpenSlideError, open_slide
    from openslide.deepzoom import DeepZoomGenerator

    from wsi_assets.errors import SlideError
    from wsi_assets.slides.openslide_file import entry_of

    try:
        return DeepZoomGenerator(open_slide(entry_of(path)), tile_size=TILE, overlap=1)
    except OpenSlideError as error:
        raise SlideError(f"does not open ({error})", path=path) from error


def described(size: tuple[int, int], layers: SlideLayers) -> dict[str, Any]:
    """What the page needs to know about a slide, as JSON values; ``size`` is (width, height) of level 0."""
    return {
        "width": size[0],
        "height": size[1],
        "tile": TILE,
        "mpp": layers.mpp,
        "tumor": [_rounded(ring) for ring in layers.tumor],
        "excluded": [_rounded(ring) for ring in layers.excluded],
        "ignored": [_rounded(ring) for ring in layers.ignored],
        "heat": [{"name": heat.name, "detections": heat.detections} for heat in layers.heat],
    }


def heat_picture(probability_map: Path) -> bytes:
    """A probability map as PNG in the viridis colors, transparent where nothing was predicted.

    Raises:
        WsiAssetsError: the map cannot be read.
    """
    import cv2
    import tifffile
    from matplotlib import colormaps

    try:
        probability = tifffile.imread(probability_map, series=0, level=0)
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise WsiAssetsError(f"cannot be read ({error})", path=probability_map) from error
    colors = (colormaps["viridis"](np.clip(probability, 0, 1)) * 255).astype(np.uint8)
    colors[..., 3] = np.where(probability > 0, 255, 0)
    # Browsers blur images that they enlarge; several pixels for each cell keep its edges sharp.
    times = max(1, HEAT_SIDE // max(probability.shape))
    colors = cv2.cvtColor(colors, cv2.COLOR_RGBA2BGRA).repeat(times, 0).repeat(times, 1)
    return cv2.imencode(".png", colors)[1].tobytes()


@lru_cache
def page(name: str) -> bytes:
    """The content of one of the viewer's files."""
    return (files("wsi_assets.viewer") / name).read_bytes()


def _rounded(ring: Iterable[tuple[float, float]]) -> list[list[float]]:
    return [[round(x, 1), round(y, 1)] for x, y in ring]
