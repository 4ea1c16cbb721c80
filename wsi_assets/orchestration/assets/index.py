"""The index: every tissue patch of a level with its label, and the balanced choice that is learnt from."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.config import IndexConfig, SamplingConfig
from wsi_assets.orchestration.io_managers.plain_pickle import LazyPickles
from wsi_assets.orchestration.lineage import CODE_VERSIONS, made, recorded_version
from wsi_assets.orchestration.partitions import EVERY_PARTITION, LEVELS
from wsi_assets.orchestration.registry import slide_states
from wsi_assets.orchestration.reporting import clear_failures, picture, table
from wsi_assets.orchestration.resources.library import SlideLibrary

if TYPE_CHECKING:
    from wsi_assets.annotations import TumorRegions
    from wsi_assets.index import TissueRegions


@dg.asset(
    partitions_def=LEVELS,
    ins={
        "tissue_regions": dg.AssetIn(**EVERY_PARTITION),
        "annotation_regions": dg.AssetIn(**EVERY_PARTITION),
    },
    group_name=catalog.GROUP_INDEX,
    io_manager_key="pickle_io",
    kinds={"numpy", "shapely", "pickle"},
    owners=catalog.OWNERS,
    code_version=CODE_VERSIONS["slide_index"],
    description="Every patch of the level that lies on tissue, labelled by the tumour outlines: "
    "`index_level_N.pkl`. Slides that cannot take part are named with the reason.",
)
def slide_index(
    context: dg.AssetExecutionContext,
    config: IndexConfig,
    library: SlideLibrary,
    tissue_regions: LazyPickles,
    annotation_regions: LazyPickles,
) -> dg.MaterializeResult:
    from wsi_assets.index import counts, counts_png, index_level, slide_table

    level = int(context.partition_key)
    with clear_failures():
        listing = library.look()
        usable, left_out = slide_states(context.instance, listing)
        paths = {slide.slide_id: str(slide.path) for slide in listing.slides if slide.slide_id in usable}
        slides = _regions(paths, tissue_regions, annotation_regions)
        index = index_level(slides, level, config)
    left_out |= index.left_out | index.empty
    context.log.info(f"{len(index.index)} slides indexed, {len(left_out)} left out")
    return made(
        "slide_index",
        index.index,
        config=config,
        made_from=[level, usable],
        metadata={
            **counts(index.index),
            "left_out": left_out,
            "left_out_count": len(left_out),
            "counts_by_slide": table(slide_table(index.index)),
            "counts_picture": picture(counts_png(index.index), "patches by slide"),
        },
    )


@dg.asset(
    partitions_def=LEVELS,
    group_name=catalog.GROUP_INDEX,
    io_manager_key="pickle_io",
    kinds={"numpy", "pickle"},
    owners=catalog.OWNERS,
    code_version=CODE_VERSIONS["sampled_index"],
    description="All tumour patches and a seeded choice of normal ones; test slides keep every "
    "patch: `index_level_N_sampled.pkl`.",
)
def sampled_index(
    context: dg.AssetExecutionContext, config: SamplingConfig, slide_index: dict[str, Any]
) -> dg.MaterializeResult:
    from wsi_assets.index import counts, counts_png, sample_index, slide_table, unknown_incomplete

    upstream = recorded_version(context.instance, "slide_index", context.partition_key)
    with clear_failures():
        sampled = sample_index(slide_index, config)
    return made(
        "sampled_index",
        sampled,
        config=config,
        made_from=upstream,
        metadata={
            **counts(sampled),
            "incomplete_unknown": unknown_incomplete(slide_index, config),
            "counts_by_slide": table(slide_table(sampled)),
            "counts_picture": picture(counts_png(slide_index, sampled), "patches by slide"),
        },
    )


def _regions(
    paths: dict[str, str], tissue: LazyPickles, annotation: LazyPickles
) -> Iterator[tuple["TissueRegions", "TumorRegions | None", str | None]]:
    # One slide at a time: ten thousand masks do not fit in memory, nor do they need to.
    from wsi_assets.annotations import TumorRegions
    from wsi_assets.index import TissueRegions

    for slide_id, path in sorted(paths.items()):
        outline = annotation[slide_id]
        regions = None if outline["regions"] is None else TumorRegions.from_plain(outline["regions"])
        # The slide folder may have moved since: the contents are known to be the same.
        yield (
            replace(TissueRegions.from_plain(tissue[slide_id]), slide_path=path),
            regions,
            outline["annotation_path"],
        )
