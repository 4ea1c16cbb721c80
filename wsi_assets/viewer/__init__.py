"""Show a slide in the browser, with its annotation, heatmaps and detections."""

from wsi_assets.viewer.server import Heat, SlideLayers, viewer_server

__all__ = ["Heat", "SlideLayers", "viewer_server"]
