"""A slide's annotation as GeoJSON for QuPath, where it is edited and comes back as a correction."""

from __future__ import annotations

import json

import shapely

from wsi_assets.annotations.geojson import COPY
from wsi_assets.annotations.regions import TumorRegions

_COLORS = {"Tumor": (200, 0, 0), "Ignore*": (180, 180, 180), "Region*": (0, 0, 180)}
"""QuPath's classes, and the colors it gives them."""


def annotation_geojson(
    regions: TumorRegions | None, slide_id: str, size: tuple[int, int], corner: tuple[int, int] = (0, 0)
) -> str:
    """One annotation for each area of tumor and each that is ignored, to the last digit.

    A locked annotation around the slide says that the file is a whole annotation: read as a correction, with
    what was edited in it, it replaces the one it was made from.

    Args:
        size: (width, height) of level 0.
        corner: (x, y) at level 0 of what the coordinates count from; QuPath counts from the scanned area.
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
