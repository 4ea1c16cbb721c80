"""Makes one slide asset for many slides in one run, so that ten thousand slides are not ten thousand runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import dagster as dg

from wsi_assets.errors import DiskError, WsiAssetsError, one_line
from wsi_assets.orchestration.io_managers import StorageIOManager
from wsi_assets.orchestration.making import Making
from wsi_assets.orchestration.metadata import progress_to
from wsi_assets.orchestration.resources import WorkersResource
from wsi_assets.patches.dask_executor import ClusterError

SLIDES_PER_RUN = 50
"""Slides whose regions one run of the daemon makes: a run costs seconds to start, and a long one hides a
fault."""


@dataclass(frozen=True)
class Made:
    """What was made of one slide: the value to store, versions of what it was made from, what to show.

    Without a value what is stored is up to date and stays.
    """

    value: Any
    inputs: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def make_slides(
    makings: Mapping[str, Making],
    workers: WorkersResource | None,
    io_manager: StorageIOManager,
    prepare: Callable[[str], Callable[[], Any]],
    finish: Callable[[str, Any], Made],
) -> dg.MaterializeResult:
    """Make every partition of this run, each stored as it is made; one that cannot be made costs only itself.

    Args:
        makings: partition -> its making; those of one level, or of all slides, share one.
        workers: where files are read; None is this process.
        prepare: partition -> the reading of files, to be called in any process; raises what a user can mend.
        finish: (partition, what was read) -> what is stored and shown.

    Raises:
        Failure: at the end, naming the slides that could not be made; the others are made and logged.
        WsiAssetsError: the disk or the workers fail, which no slide can help; those before it are made.
    """
    making = next(iter(makings.values()))
    progress, what = progress_to(making.context.log), f"slides: {making.artefact.name}"
    made: dict[str, dict[str, Any]] = {}
    faults: dict[str, str] = {}
    progress(0, len(makings), what)
    with workers.open(len(makings)) if workers else nullcontext() as executor:
        for done, (key, read) in enumerate(_read(list(makings), prepare, executor), start=1):
            try:
                made[key] = _store(makings[key], io_manager, key, finish(key, read()))
            except (ClusterError, DiskError):
                raise
            except WsiAssetsError as error:
                faults[key] = str(error)
            except BrokenExecutor as error:
                raise WsiAssetsError(
                    f"a worker process died ({one_line(error) or 'killed'}), the slides before it are made",
                    remedy="Give it more memory, then run again; it continues",
                ) from error
            progress(done, len(makings), what)
    result = _result(making.context, made, faults)
    for one in {id(one): one for one in makings.values()}.values():
        one.keep_parameters()
    return result


def _read(
    slide_ids: list[str], prepare: Callable[[str], Callable[[], Any]], executor: Executor | None
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each slide with what returns or raises its reading, in the order in which they finish."""
    if executor is None:
        yield from ((slide_id, lambda slide_id=slide_id: prepare(slide_id)()) for slide_id in slide_ids)
        return
    futures: dict[Future[Any], str] = {}
    for slide_id in slide_ids:
        try:
            futures[executor.submit(prepare(slide_id))] = slide_id
        except WsiAssetsError as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            yield slide_id, failed.result
    try:
        for future in as_completed(futures):
            yield futures[future], future.result
    finally:
        for future in futures:
            future.cancel()


def _store(making: Making, io_manager: StorageIOManager, key: str, made: Made) -> dict[str, Any]:
    record = making.record(key, made.inputs, made.facts)
    path = making.storage.artefact(making.artefact, key)
    stored = {"path": dg.MetadataValue.path(str(path))}
    if made.value is not None:
        stored = io_manager.publish(path, made.value, asdict(record))
    return {**made.metadata, **stored, "version": record.version}


def _result(
    context: dg.AssetExecutionContext, made: Mapping[str, Mapping[str, Any]], faults: Mapping[str, str]
) -> dg.MaterializeResult:
    if not faults:
        # Dagster then records code version and input versions of each slide.
        for slide_id, metadata in made.items():
            context.add_asset_metadata(metadata, partition_key=slide_id)
        return dg.MaterializeResult()
    for slide_id, fault in faults.items():
        context.log.error(f"{slide_id}: {fault}")
    for slide_id, metadata in made.items():
        context.log_event(dg.AssetMaterialization(context.asset_key, partition=slide_id, metadata=metadata))
    named = "; ".join(f"{slide_id}: {fault}" for slide_id, fault in faults.items())[:5000]
    raise dg.Failure(
        f"{len(faults)} of {len(made) + len(faults)} slides failed, the others are made. {named}"
        if made
        else named,
        metadata={"failed": dict(faults)},
        allow_retries=False,
    )
