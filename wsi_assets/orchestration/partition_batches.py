"""Makes one slide asset for many slides in one run, so that ten thousand slides are not ten thousand runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from wsi_assets.errors import WsiAssetsError, one_line
from wsi_assets.orchestration.artefact import Artefact
from wsi_assets.orchestration.io_managers import StorageIOManager
from wsi_assets.orchestration.metadata import progress_to
from wsi_assets.orchestration.paths import StoragePaths
from wsi_assets.orchestration.provenance import Record, recipe_of
from wsi_assets.patches.dask_executor import ClusterError

SLIDES_PER_RUN = 50
"""Slides whose regions one run of the daemon makes: a run costs seconds to start, and a long one hides a
fault."""


@dataclass(frozen=True)
class Made:
    """What was made of one slide: the value to store, versions of what it was made from, what to show."""

    value: Any
    inputs: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SlideBatch:
    """One asset of several slides, made with one set of parameters.

    Attributes:
        prepare: slide id -> the reading of files, to be called in any process; raises what a user can mend.
        finish: (slide id, what was read) -> what is stored and shown.
        executor: runs the reading; None reads in this process.
    """

    context: dg.AssetExecutionContext
    artefact: Artefact
    paths: StoragePaths
    io_manager: StorageIOManager
    parameters: Mapping[str, Any]
    prepare: Callable[[str], Callable[[], Any]]
    finish: Callable[[str, Any], Made]
    executor: Executor | None = None

    def make(self) -> dg.MaterializeResult:
        """Make every partition of this run; a slide that cannot be made costs only itself.

        Each slide is stored as it is made, so a kill loses those in work.

        Raises:
            Failure: at the end, naming the slides that could not be made; the others are made and logged.
        """
        slide_ids = list(self.context.partition_keys)
        progress = progress_to(self.context.log)
        made: dict[str, dict[str, Any]] = {}
        faults: dict[str, str] = {}
        what = f"slides: {self.artefact.name}"
        progress(0, len(slide_ids), what)
        works = self._prepared(slide_ids, faults)
        for done, (slide_id, future) in enumerate(self._finished(works), start=len(faults) + 1):
            try:
                made[slide_id] = self._store(slide_id, self.finish(slide_id, future.result()))
            except ClusterError:
                raise
            except WsiAssetsError as error:
                faults[slide_id] = str(error)
            except BrokenExecutor as error:
                raise WsiAssetsError(
                    f"a worker process died ({one_line(error) or 'killed'}), the slides before it are made",
                    remedy="Give it more memory, then run again; it continues",
                ) from error
            progress(done, len(slide_ids), what)
        return self._result(made, faults, len(slide_ids))

    def _prepared(self, slide_ids: Sequence[str], faults: dict[str, str]) -> dict[str, Callable[[], Any]]:
        works: dict[str, Callable[[], Any]] = {}
        for slide_id in slide_ids:
            try:
                works[slide_id] = self.prepare(slide_id)
            except WsiAssetsError as error:
                faults[slide_id] = str(error)
        return works

    def _finished(self, works: Mapping[str, Callable[[], Any]]) -> Iterator[tuple[str, Future[Any]]]:
        """Each slide with its finished future, in the order in which they finish."""
        if self.executor is None:
            yield from ((slide_id, _done(work)) for slide_id, work in works.items())
            return
        futures = {self.executor.submit(work): slide_id for slide_id, work in works.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future
        finally:
            for future in futures:
                future.cancel()

    def _store(self, slide_id: str, made: Made) -> dict[str, Any]:
        recipe = recipe_of(self.artefact, self.parameters, dict(made.inputs))
        record = Record(
            asset=self.artefact.name,
            partition=slide_id,
            code_version=self.artefact.code_version,
            parameters=dict(self.parameters),
            inputs=dict(made.inputs),
            recipe=recipe,
            version=recipe,
            facts=dict(made.facts),
            run_id=self.context.run.run_id,
        )
        path = self.paths.artefact(self.artefact, slide_id)
        stored = self.io_manager.publish(path, made.value, record.to_plain())
        return {**made.metadata, **stored, "parameters": dict(self.parameters), "version": recipe}

    def _result(
        self, made: Mapping[str, Mapping[str, Any]], faults: Mapping[str, str], total: int
    ) -> dg.MaterializeResult:
        for slide_id, fault in faults.items():
            self.context.log.error(f"{slide_id}: {fault}")
        if not faults:
            # Dagster then records code version and input versions of each slide.
            for slide_id, metadata in made.items():
                self.context.add_asset_metadata(metadata, partition_key=slide_id)
            return dg.MaterializeResult()
        for slide_id, metadata in made.items():
            self.context.log_event(
                dg.AssetMaterialization(self.context.asset_key, partition=slide_id, metadata=metadata)
            )
        if total == 1:
            raise dg.Failure(next(iter(faults.values())), allow_retries=False)
        raise dg.Failure(
            f"{len(faults)} of {total} slides failed, the others are made. "
            + "; ".join(f"{slide_id}: {fault}" for slide_id, fault in faults.items())[:5000],
            metadata={"failed": dict(faults)},
            allow_retries=False,
        )


def _done(work: Callable[[], Any]) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)
    return future
