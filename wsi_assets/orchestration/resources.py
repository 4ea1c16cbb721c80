"""Dagster resources: the slide folder, and worker processes."""

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
    """Finds slides, their annotations and their rows in ``cohort.csv``; never writes.

    Attributes:
        images_dir: folder of slides.
        annotations_dir: folder of annotations; None if there is none.
        cohort_path: path of the cohort table; None for ``cohort.csv`` in the folder of slides.
        viewer_url: address of the slide viewer, for links.
    """

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
        """List the folders again.

        Raises:
            SlideError: a folder is missing or unreadable.
            ConfigError: the cohort table is damaged.
        """
        from wsi_assets.slides import find_slides, read_cohort

        annotations = None if self.annotations_dir is None else Path(self.annotations_dir)
        self._cohort = read_cohort(self.images_dir, self.cohort_path)
        listing = find_slides(Path(self.images_dir), annotations, self._cohort)
        self._slides = {slide.slide_id: slide for slide in listing.slides}
        # Ids that differ only by case are one slide.
        self._left_out = {normalize_id(name): reason for name, reason in listing.left_out.items()}
        return listing

    def slides(self) -> dict[str, SlideFile]:
        """Slide id -> its file; lists the folders on first use."""
        if self._slides is None:
            self.list()
        return self._slides

    def cohort(self) -> Cohort:
        """The cohort table; lists the folders on first use."""
        self.slides()
        return self._cohort

    def viewer_page(self, slide_id: str) -> dg.MetadataValue:
        """Link to the slide in the viewer, which `wsi-assets ui` serves."""
        return dg.MetadataValue.url(f"{self.viewer_url}/slide/{quote(slide_id)}")

    def slide(self, slide_id: str) -> SlideFile:
        """The file of one slide.

        Raises:
            SlideError: the folder has no such slide, or the slide is left out.
        """
        if slide_id in self.slides():
            return self._slides[slide_id]
        why = self._left_out.get(normalize_id(slide_id))
        raise SlideError(
            f"slide {slide_id} is left out: {why}" if why else f"holds no slide {slide_id!r}",
            path=self.images_dir,
            remedy=f"Put the file back, or take the slide out for good (wsi-assets retire {slide_id})",
        )

    def with_present_paths(self, index: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """A copy of an index with current slide paths, as files may have been moved; missing ones stay."""
        with contextlib.suppress(SlideError):
            paths = {slide_id: str(slide.path) for slide_id, slide in self.slides().items()}
            return {
                slide_id: {**entry, "slide_path": paths.get(slide_id, entry["slide_path"])}
                for slide_id, entry in index.items()
            }
        return dict(index)


class WorkersResource(dg.ConfigurableResource):
    """Worker processes that read slides: on this machine, or in a Dask cluster.

    Attributes:
        scheduler: address of the cluster (``tcp://host:8786``) or the file written by
            ``dask scheduler --scheduler-file``; None for this machine.
    """

    scheduler: str | None = None

    @contextlib.contextmanager
    def open(self, tasks: int) -> Iterator[Executor | None]:
        """An executor for ``tasks`` tasks; None means that this process should run them.

        Raises:
            ClusterError: the cluster cannot be reached.
        """
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
        """An executor of the cluster; None if there is no cluster."""
        from wsi_assets.patches import open_executor

        return open_executor(self.scheduler)
