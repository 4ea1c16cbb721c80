"""Look at a slide in the browser, with its annotation, its heatmaps and what was detected on it."""

from wsi_assets.viewer.server import Heat, SlideLayers, viewer_server

__all__ = ["Heat", "SlideLayers", "viewer_server"]
