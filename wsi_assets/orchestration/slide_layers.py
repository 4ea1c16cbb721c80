"""Serve the slide viewer with annotations, heatmaps and detections from the storage folder."""

from __future__ import annotations

import csv
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_assets.orchestration.assets.evaluation import EVALUATION
from wsi_assets.orchestration.assets.slide_prediction import SLIDE_PREDICTION
from wsi_assets.orchestration.assets.slides import ANNOTATION_REGIONS, TISSUE_REGIONS
from wsi_assets.orchestration.partitions import both
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets.orchestration.settings import Settings
from wsi_assets.orchestration.storage import StorageResource
from wsi_assets.slides.resolution import words_of

if TYPE_CHECKING:
    from wsi_assets.viewer import Heat, SlideLayers


LISTED_EVERY_SECONDS = 10


def serve_viewer(settings: Settings, host: str, port: int) -> None:
    """Serve the slide viewer in a thread of this process.

    Raises:
        OSError: the host or port cannot be served on.
    """
    from wsi_assets.viewer import viewer_server

    storage = StorageResource.of(settings)

    @lru_cache(1)
    def listed(_time: int) -> dict[str, Path]:
        return {one.slide_id: one.path for one in SlideFolderResource.of(settings).list().slides}

    def slides() -> dict[str, Path]:
        # Cached: showing a slide takes hundreds of requests, and listing a large folder takes seconds.
        return listed(int(time.monotonic() / LISTED_EVERY_SECONDS))

    server = viewer_server(slides, lambda slide_id: layers_of(storage, slide_id), host, port)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def layers_of(storage: StorageResource, slide_id: str) -> SlideLayers:
    """The layers of a slide that exist in the storage folder."""
    from wsi_assets.annotations import TumorRegions
    from wsi_assets.index import TissueRegions
    from wsi_assets.viewer import SlideLayers

    tissue = storage.stored(TISSUE_REGIONS, slide_id)
    stored = (storage.stored(ANNOTATION_REGIONS, slide_id) or {}).get("regions")
    regions = stored and TumorRegions.from_plain(stored)
    return SlideLayers(
        tumor=_rings(regions.geometry) if regions else (),
        excluded=_rings(regions.excluded) if regions else (),
        ignored=_rings(regions.ignored) if regions else (),
        mpp=TissueRegions.from_plain(tissue).scale.mpp if tissue else None,
        heat=tuple(filter(None, _heats(storage, slide_id))),
    )


def _heats(storage: StorageResource, slide_id: str) -> Iterator[Heat | None]:
    """Heatmaps of ``slide_prediction`` at all levels, then those of evaluations of the slide."""
    for level in storage.predicted_levels(slide_id):
        folder = storage.artefact(SLIDE_PREDICTION, both(slide_id, level))
        yield _heat(f"{words_of(level)}, predicted", folder, folder, slide_id)
    for level in storage.levels():
        report = storage.artefact(EVALUATION, level)
        yield _heat(words_of(level), report / "heatmaps", report / "detections", slide_id)


def _heat(name: str, maps: Path, tables: Path, slide_id: str) -> Heat | None:
    from wsi_assets.viewer import Heat

    probability_map = maps / f"{slide_id}_likelihood_map.tif"
    if not probability_map.is_file():
        return None
    with (tables / f"{slide_id}.csv").open(encoding="utf-8") as lines:
        detections = tuple(tuple(map(float, line)) for line in csv.reader(lines))
    return Heat(name, probability_map, detections)


def _rings(geometry: Any) -> tuple[list[tuple[float, float]], ...]:
    return tuple(
        list(ring.coords) for polygon in geometry.geoms for ring in (polygon.exterior, *polygon.interiors)
    )
