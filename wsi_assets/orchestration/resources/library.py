"""The user's folders of slides and outlines, read only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import PrivateAttr

from wsi_assets.errors import SlideError
from wsi_assets.orchestration.settings import Settings
from wsi_assets.slides.naming import normalize_id

if TYPE_CHECKING:
    from wsi_assets.slides import SlideFile, SlideListing


class SlideLibrary(dg.ConfigurableResource):
    """Finds slides and the outlines that belong to them."""

    images_dir: str
    annotations_dir: str | None = None

    _listing: SlideListing | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, settings: Settings) -> SlideLibrary:
        """The library of these folders."""
        annotations = None if settings.annotations_dir is None else str(settings.annotations_dir)
        return cls(images_dir=str(settings.images_dir), annotations_dir=annotations)

    def look(self) -> SlideListing:
        """List the folders anew.

        Raises:
            SlideError: a folder is missing or unreadable; that is never "no slides".
        """
        from wsi_assets.slides import find_slides

        annotations = None if self.annotations_dir is None else Path(self.annotations_dir)
        self._listing = find_slides(Path(self.images_dir), annotations)
        return self._listing

    def at_home(self, index: dict[str, Any]) -> dict[str, Any]:
        """An index with its slides' present paths: the folder may have moved since they were made.

        A slide that is not found keeps the path it had, so that whoever reads it says what is missing; a
        damaged entry stays as it is, for whoever checks it.
        """
        from wsi_assets.index import check_index

        try:
            listing = self._listing or self.look()
        except SlideError:
            return index
        paths = {slide.slide_id: str(slide.path) for slide in listing.slides}

        return {
            slide_id: {**entry, "slide_path": paths[slide_id]} if slide_id in paths else entry
            for slide_id, entry in check_index(index).items()
        }

    def slide(self, slide_id: str) -> SlideFile:
        """The file of one slide; the folders are listed once a run.

        Raises:
            SlideError: no file of the folder has this id.
        """
        listing = self._listing or self.look()
        for slide in listing.slides:
            if slide.slide_id == slide_id:
                return slide
        # Of ids that differ only by case one stands for all.
        why = {normalize_id(name): reason for name, reason in listing.left_out.items()}.get(
            normalize_id(slide_id)
        )
        raise SlideError(
            f"slide {slide_id} is left out: {why}" if why else f"holds no slide {slide_id!r}",
            path=self.images_dir,
            remedy="Put the file back, or retire the slide",
        )
