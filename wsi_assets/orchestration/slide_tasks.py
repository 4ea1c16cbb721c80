"""What worker processes of slide batches load before their first task, so that none of them waits for it."""

from wsi_assets.index import tissue

__all__ = [
    *(
        "annotations",
        "cv2",
        "imagecodecs",
        "index",
        "numpy",
        "shapely",
        "slide_regions",
        "slides",
        "tifffile",
    ),
    "tissue",
]
