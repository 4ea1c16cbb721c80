"""What assets need from outside: the slide folder, and processes for the work of slides."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dagster as dg
from pydantic import PrivateAttr

from wsi_assets.errors import SlideError
from wsi_assets.orchestration.settings import Settings
from wsi_assets.running import worker_pool
from wsi_assets.slides.naming import normalize_id

if TYPE_CHECKING:
    from wsi_assets.patches import DaskExecutor
    from wsi_assets.slides import Cohort, SlideFile, SlideListing


class SlideFolderResource(dg.ConfigurableResource):
    """Finds slides, the annotations that belong to them and what the cohort's table says; only ever reads."""

    images_dir: str
    annotations_dir: str | None = None
    cohort_path: str | None = None
    viewer_url: str | None = None

    _cohort: Any = PrivateAttr(default=None)
    _left_out: dict[str, str] = PrivateAttr(default_factory=dict)
    _slides: dict[str, SlideFile] | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, settings: Settings) -> SlideFolderResource:
        return cls(
            images_dir=str(settings.images_dir),
            annotations_dir=settings.annotations_dir and str(settings.annotations_dir),
            cohort_path=settings.cohort and str(settings.cohort),
            viewer_url=settings.viewer_url,
        )

    def list(self) -> SlideListing:
        """List the folders anew.

        Raises:
            SlideError: one is missing or unreadable; that is never "no slides".
            ConfigError: the cohort's table is damaged.
        """
        from wsi_assets.slides import find_slides, read_cohort

        annotations = None if self.annotations_dir is None else Path(self.annotations_dir)
        self._cohort = read_cohort(self.images_dir, self.cohort_path)
        listing = find_slides(Path(self.images_dir), annotations, self._cohort)
        self._slides = {slide.slide_id: slide for slide in listing.slides}
        # Of ids that differ only by case one stands for all.
        self._left_out = {normalize_id(name): reason for name, reason in listing.left_out.items()}
        return listing

    def slides(self) -> dict[str, SlideFile]:
        """Slide id -> its file; the folders are listed once a run."""
        if self._slides is None:
            self.list()
        return self._slides

    def cohort(self) -> Cohort:
        """What the cohort's table says."""
        self.slides()
        return self._cohort

    def viewer_page(self, slide_id: str) -> dg.MetadataValue:
        """Where the slide is shown while `wsi-assets ui` runs."""
        return dg.MetadataValue.url(f"{self.viewer_url}/slide/{quote(slide_id)}")

    def slide(self, slide_id: str) -> SlideFile:
        """The file of one slide; SlideError if there is none."""
        if slide_id in self.slides():
            return self._slides[slide_id]
        why = self._left_out.get(normalize_id(slide_id))
        raise SlideError(
            f"slide {slide_id} is left out: {why}" if why else f"holds no slide {slide_id!r}",
            path=self.images_dir,
            remedy="Put the file back, or retire the slide",
        )

    def with_present_paths(self, index: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """An index with its slides' present paths: they may have moved; one that is gone keeps its own."""
        with contextlib.suppress(SlideError):
            paths = {slide_id: str(slide.path) for slide_id, slide in self.slides().items()}
            return {
                slide_id: {**entry, "slide_path": paths.get(slide_id, entry["slide_path"])}
                for slide_id, entry in index.items()
            }
        return dict(index)


class WorkersResource(dg.ConfigurableResource):
    """Where the work of slides is done: processes of this machine, or a Dask cluster where one is named.

    ``scheduler`` is an address (``tcp://host:8786``) or the file that ``dask scheduler --scheduler-file``
    writes.
    """

    scheduler: str | None = None

    @contextlib.contextmanager
    def open(self, tasks: int) -> Iterator[Executor | None]:
        """An executor for so many tasks, ClusterError if the cluster cannot; None is this process."""
        if self.scheduler:
            with self.open_cluster() as executor:
                yield executor
            return
        processes = min(tasks, os.cpu_count() or 1)
        if processes < 2:
            yield None
            return
        with worker_pool(processes) as executor:
            yield executor

    def open_cluster(self) -> AbstractContextManager[DaskExecutor | None]:
        """The cluster's executor, or None where there is no cluster."""
        from wsi_assets.patches import open_executor

        return open_executor(self.scheduler)
