"""Makes one slide asset for many slides in one run, so that ten thousand slides are not ten thousand runs.

What is made of a slide is in the assets; this knows only how a run of several partitions is recorded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import dagster as dg

from wsi_assets.errors import WsiAssetsError
from wsi_assets.orchestration.io_managers.plain_pickle import write_artefact
from wsi_assets.orchestration.layout import StorageLayout
from wsi_assets.orchestration.lineage import DATA_VERSION_TAG
from wsi_assets.orchestration.reporting import progress_to
from wsi_assets.patches.dask_executor import DaskExecutor

Item = TypeVar("Item")
Result = TypeVar("Result")


def for_each_slide(
    context: dg.AssetExecutionContext,
    layout: StorageLayout,
    make: Callable[..., dg.MaterializeResult],
    *,
    read: Callable[[str], Callable[[], Any]] | None = None,
    executor: DaskExecutor | None = None,
) -> Iterator[dg.MaterializeResult]:
    """Make every partition of this run; a slide that cannot be made costs only itself.

    A run of several slides writes and records each as it is made, so a kill loses one slide. Dagster then
    records all partitions of a finished run with the one version its output has; each slide's own record
    follows that one.

    Args:
        make: what is recorded of a slide, from its id and, if there is a ``read``, from what that gave.
        read: slide id -> the part of the work that only reads files, to be called in any process.
        executor: runs what ``read`` gives, by default this process.

    Raises:
        Failure: at the end, naming the slides that could not be made; the others are made and recorded.
    """
    slide_ids = list(context.partition_keys)
    finished = in_order(executor, ((slide_id, _work(slide_id, make, read)) for slide_id in slide_ids))
    if len(slide_ids) == 1:
        yield _result(*next(finished), None if read is None else make, executor)
        return
    asset = context.asset_key.to_user_string()
    progress = progress_to(context.log)
    made: dict[str, dg.AssetMaterialization] = {}
    faults: dict[str, str] = {}
    for done, (slide_id, future) in enumerate(finished):
        progress(done, len(slide_ids), asset)
        try:
            result = _result(slide_id, future, None if read is None else make, executor)
        except dg.Failure as failure:
            faults[slide_id] = failure.description or "failed"
            context.log.error(f"{slide_id}: {faults[slide_id]}")
            continue
        stored = write_artefact(layout.slide_artefact(asset, slide_id), result.value)
        made[slide_id] = _record(context, slide_id, result, stored)
        context.log_event(_without_pictures(made[slide_id]))
    progress(len(slide_ids), len(slide_ids), asset)
    if not faults:
        yield dg.MaterializeResult(value=None)
    for event in made.values():
        context.log_event(event)
    if faults:
        raise dg.Failure(
            f"{len(faults)} of {len(slide_ids)} slides failed, the others are made. "
            + "; ".join(f"{slide_id}: {fault}" for slide_id, fault in faults.items())[:5000],
            metadata={"failed": dict(faults)},
            allow_retries=False,
        )


def in_order(
    executor: DaskExecutor | None, works: Iterable[tuple[Item, Callable[[], Result] | Exception]]
) -> Iterator[tuple[Item, Future[Result]]]:
    """Each item with its finished future, in the items' order, few of them under way at a time.

    Args:
        executor: runs the works; None runs each here when its turn comes.
        works: (item, what to call for it, or why there is nothing to call); consumed as work gets done.

    Yields:
        The item and a future that does not wait; its ``result()`` raises what befell this item's work.
    """
    window: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item, work in works:
            window.append((item, _begun(executor, work)))
            limit = 0 if executor is None else 2 * executor.workers()
            while window and (window[0][1].done() or len(window) > limit):
                yield _finished(*window.popleft())
        while window:
            yield _finished(*window.popleft())
    finally:
        for _, future in window:
            future.cancel()


def _begun(executor: DaskExecutor | None, work: Callable[[], Result] | Exception) -> Future[Result]:
    future: Future[Result] = Future()
    try:
        if isinstance(work, Exception):
            raise work
        if executor is not None:
            return executor.submit(work)
        future.set_result(work())
    except Exception as error:
        future.set_exception(error)
    return future


def _finished(item: Item, future: Future[Result]) -> tuple[Item, Future[Result]]:
    future.exception()
    return item, future


def _work(
    slide_id: str, make: Callable[..., Any], read: Callable[[str], Callable[[], Any]] | None
) -> Callable[[], Any] | Exception:
    try:
        return partial(make, slide_id) if read is None else read(slide_id)
    except (WsiAssetsError, dg.Failure) as fault:
        return fault


def _result(
    slide_id: str,
    future: Future[Any],
    make: Callable[..., dg.MaterializeResult] | None,
    executor: DaskExecutor | None,
) -> dg.MaterializeResult:
    try:
        value = future.result()
    except WsiAssetsError as error:
        # A file may be missing there and not here.
        seen = "" if executor is None else ". That is how a worker of the cluster saw it"
        raise dg.Failure(f"{error}{seen}", allow_retries=False) from None
    return value if make is None else make(slide_id, value)


def _record(
    context: dg.AssetExecutionContext,
    slide_id: str,
    result: dg.MaterializeResult,
    stored: Mapping[str, Any],
) -> dg.AssetMaterialization:
    tags = {**(result.tags or {}), DATA_VERSION_TAG: result.data_version.value}
    return dg.AssetMaterialization(
        context.asset_key, partition=slide_id, metadata={**(result.metadata or {}), **stored}, tags=tags
    )


def _without_pictures(event: dg.AssetMaterialization) -> dg.AssetMaterialization:
    # Inline pictures weigh more than all else in the event database: one copy is enough.
    light = {
        name: value
        for name, value in event.metadata.items()
        if not isinstance(value, dg.MarkdownMetadataValue)
    }
    return event.with_metadata(light)
