"""What assets need from outside: the slide folder, the storage folder, and processes for slides."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import PrivateAttr

from wsi_assets.errors import SlideError
from wsi_assets.orchestration.config import ParameterFile
from wsi_assets.orchestration.paths import StoragePaths
from wsi_assets.orchestration.provenance import Provenance
from wsi_assets.orchestration.settings import Settings
from wsi_assets.slides.naming import normalize_id

if TYPE_CHECKING:
    from wsi_assets.patches import DaskExecutor
    from wsi_assets.slides import SlideFile, SlideListing


class SlideFolderResource(dg.ConfigurableResource):
    """Finds slides and the annotations that belong to them, in the user's folders; only ever reads."""

    images_dir: str
    annotations_dir: str | None = None

    _listing: SlideListing | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, settings: Settings) -> SlideFolderResource:
        """The folders that the settings name."""
        annotations = None if settings.annotations_dir is None else str(settings.annotations_dir)
        return cls(images_dir=str(settings.images_dir), annotations_dir=annotations)

    def list(self) -> SlideListing:
        """List the folders anew.

        Raises:
            SlideError: a folder is missing or unreadable; that is never "no slides".
        """
        from wsi_assets.slides import find_slides

        annotations = None if self.annotations_dir is None else Path(self.annotations_dir)
        self._listing = find_slides(Path(self.images_dir), annotations)
        return self._listing

    def slide(self, slide_id: str) -> SlideFile:
        """The file of one slide; the folders are listed once a run.

        Raises:
            SlideError: no file of the folder has this id.
        """
        listing = self._listing or self.list()
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

    def with_present_paths(self, index: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """An index with its slides' present paths: the folder may have moved since it was made.

        A slide that is not found keeps the path it had, so that whoever reads it says what is missing.
        """
        try:
            listing = self._listing or self.list()
        except SlideError:
            return dict(index)
        paths = {slide.slide_id: str(slide.path) for slide in listing.slides}
        return {
            slide_id: {**entry, "slide_path": paths[slide_id]}
            if slide_id in paths and isinstance(entry, dict)
            else entry
            for slide_id, entry in index.items()
        }


class StorageResource(dg.ConfigurableResource):
    """Everything the platform writes lies below ``storage_dir``."""

    storage_dir: str

    @property
    def paths(self) -> StoragePaths:
        return StoragePaths(self.storage_dir)

    @property
    def parameters(self) -> ParameterFile:
        return ParameterFile(self.paths.parameters)

    @property
    def provenance(self) -> Provenance:
        return Provenance(self.paths)


class WorkersResource(dg.ConfigurableResource):
    """Where the work of slides is done: processes of this machine, or a Dask cluster where one is named.

    ``scheduler`` is an address (``tcp://host:8786``) or the file that ``dask scheduler --scheduler-file``
    writes.
    """

    scheduler: str | None = None

    @contextlib.contextmanager
    def open(self, tasks: int) -> Iterator[Executor | None]:
        """An executor for so many tasks; None is this process, enough for one.

        Raises:
            ClusterError: ``distributed`` is not installed, the scheduler does not answer within seconds, or
                a worker has other versions than this process.
        """
        if self.scheduler:
            with self.open_cluster() as executor:
                yield executor
            return
        processes = min(tasks, os.cpu_count() or 1)
        if processes < 2:
            yield None
            return
        # A server forked before threads start; what tasks import, it has.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["wsi_assets.orchestration.slide_tasks"])
        with ProcessPoolExecutor(processes, context, initializer=_one_thread) as executor:
            yield executor

    def open_cluster(self) -> AbstractContextManager[DaskExecutor | None]:
        """The cluster's executor, or None where there is no cluster.

        Raises:
            ClusterError: as for :meth:`open`.
        """
        from wsi_assets.patches import open_executor

        return open_executor(self.scheduler)


def _one_thread() -> None:
    # A process a core is enough; OpenCV would start a thread a core in each.
    import cv2

    cv2.setNumThreads(1)
