"""Materialize many partitions of a slide asset in one run, because a run takes seconds to start."""

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
"""Slides in one run of the daemon: each run takes seconds to start, but a long run shows its faults late."""


@dataclass(frozen=True)
class Made:
    """The result for one slide.

    Attributes:
        value: value to store; None if the stored artefact is up to date and kept.
        inputs: name of an input -> its version.
        metadata: entries for the UI.
        facts: small plain values for the provenance record.
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
    """Make every partition of this run and store each one at once; a failed slide does not stop the others.

    Args:
        makings: partition -> its ``Making``; partitions may share one.
        workers: processes that read the files; None for this process.
        prepare: partition -> function without arguments that reads the files and can run in any process.
        finish: (partition, return value of that function) -> result to store.

    Raises:
        Failure: at the end, with the slides that failed; the others are made and logged.
        WsiAssetsError: the disk or the workers fail; the slides before are made.
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
    """Slide ids as they finish, each with a function that returns what was read or raises its error."""
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
        # With a result, Dagster records the code version and input versions of each slide by itself.
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
