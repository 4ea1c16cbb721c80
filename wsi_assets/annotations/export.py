"""Write a slide's annotation as GeoJSON for QuPath, where a user edits it into a correction."""

from __future__ import annotations

import json

import shapely

from wsi_assets.annotations.geojson import COPY
from wsi_assets.annotations.regions import TumorRegions

_COLORS = {"Tumor": (200, 0, 0), "Ignore*": (180, 180, 180), "Region*": (0, 0, 180)}
"""QuPath's classes and their colors in QuPath."""


def annotation_geojson(
    regions: TumorRegions | None, slide_id: str, size: tuple[int, int], corner: tuple[int, int] = (0, 0)
) -> str:
    """GeoJSON with one annotation for each tumor area and each ignored area, at full precision.

    A locked annotation around the whole slide marks the file as a complete annotation: edited and saved as a
    correction, it replaces the slide's annotation instead of adding to it.

    Args:
        regions: the slide's annotation; None writes only the mark.
        size: (width, height) of level 0.
        corner: origin of the coordinates, (x, y) in level-0 pixels: QuPath counts from the corner of the
            scanned area.
    """
    areas = [("Tumor", part) for part in (regions.geometry.geoms if regions else ())]
    areas += [("Ignore*", part) for part in (regions.ignored.geoms if regions else ())]
    features = []
    for group, area in [("Region*", shapely.box(0, 0, *size)), *areas]:
        geometry = json.loads(shapely.to_geojson(shapely.transform(area, lambda xy: xy - corner)))
        classified = {"name": group, "color": _COLORS[group]}
        properties = {"objectType": "annotation", "classification": classified}
        if group == "Region*":
            properties |= {"name": f"{COPY} {slide_id}", "isLocked": True}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")) + "\n"
