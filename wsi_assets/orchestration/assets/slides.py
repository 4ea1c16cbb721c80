"""Slides: the user's files, where tissue is, where tumour was outlined. One partition a slide."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import dagster as dg

from wsi_assets.files import publish_file
from wsi_assets.orchestration import catalog
from wsi_assets.orchestration.automation import SLIDES_PER_RUN, follow_slide_files
from wsi_assets.orchestration.by_slide import for_each_slide
from wsi_assets.orchestration.config import AnnotationConfig, TissueConfig
from wsi_assets.orchestration.io_managers.plain_pickle import LazyPickles
from wsi_assets.orchestration.lineage import CODE_VERSIONS, made, recorded_version
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.registry import NO_ANNOTATION
from wsi_assets.orchestration.reporting import clear_failures, picture, rounded, table
from wsi_assets.orchestration.resources.cluster import Cluster
from wsi_assets.orchestration.resources.library import SlideLibrary
from wsi_assets.orchestration.resources.storage import Storage
from wsi_assets.orchestration.slide_reading import Outlines, read_outlines, read_tissue

slide_file = dg.AssetSpec(
    "slide_file",
    partitions_def=SLIDES,
    group_name=catalog.GROUP_SLIDES,
    kinds={"tiff", "xml"},
    owners=catalog.OWNERS,
    description="A whole-slide image and its outline in the user's own folders: watched, never written. "
    "Its data version is the fingerprint of both files.",
)


@dg.asset(
    partitions_def=SLIDES,
    deps=[slide_file],
    group_name=catalog.GROUP_SLIDES,
    io_manager_key="pickle_io",
    kinds={"openslide", "opencv", "pickle"},
    owners=catalog.OWNERS,
    code_version=CODE_VERSIONS["tissue_regions"],
    automation_condition=follow_slide_files("tissue_regions"),
    backfill_policy=dg.BackfillPolicy.multi_run(SLIDES_PER_RUN),
    description="Where the slide holds tissue: mask at the working level, Otsu threshold, pyramid geometry, "
    "true scale. Glass, pen, unscanned and padded areas are not tissue.",
)
def tissue_regions(
    context: dg.AssetExecutionContext,
    config: TissueConfig,
    library: SlideLibrary,
    storage: Storage,
    cluster: Cluster,
) -> Iterator[dg.MaterializeResult]:
    def read(slide_id: str) -> partial:
        return partial(read_tissue, library.slide(slide_id).path, config)

    make = partial(_tissue, config, library)
    with clear_failures(), cluster.open() as executor:
        yield from for_each_slide(context, storage.layout, make, read=read, executor=executor)


def _tissue(
    config: TissueConfig, library: SlideLibrary, slide_id: str, read: tuple[str, dict[str, Any]]
) -> dg.MaterializeResult:
    from wsi_assets.index import TissueRegions

    contents, plain = read
    tissue = TissueRegions.from_plain(plain)
    return made(
        "tissue_regions",
        plain,
        config=config,
        made_from=contents,
        file=contents,
        metadata={
            "slide": dg.MetadataValue.path(str(library.slide(slide_id).path)),
            "tissue_share": rounded(tissue.tissue_share),
            "otsu_threshold": _number(tissue.threshold),
            "work_level": tissue.work_level,
            "base_magnification": tissue.scale.base_magnification,
            "magnification_source": tissue.scale.magnification_source,
            "mpp": _number(tissue.scale.mpp),
            "levels": table([asdict(level) for level in tissue.levels]),
        },
    )


@dg.asset(
    partitions_def=SLIDES,
    deps=[slide_file],
    ins={"tissue_regions": dg.AssetIn(metadata={"load": "mapping"})},
    group_name=catalog.GROUP_SLIDES,
    io_manager_key="pickle_io",
    kinds={"shapely", "xml", "pickle"},
    owners=catalog.OWNERS,
    code_version=CODE_VERSIONS["annotation_regions"],
    automation_condition=follow_slide_files("annotation_regions"),
    backfill_policy=dg.BackfillPolicy.multi_run(SLIDES_PER_RUN),
    description="Tumour geometry from the slide's outline: groups united, exclusions cut out, broken rings "
    "repaired, each with its line in the audit. A slide without an outline is a normal slide.",
)
def annotation_regions(
    context: dg.AssetExecutionContext,
    config: AnnotationConfig,
    library: SlideLibrary,
    storage: Storage,
    tissue_regions: LazyPickles,
    cluster: Cluster,
) -> Iterator[dg.MaterializeResult]:
    def read(slide_id: str) -> partial:
        slide = library.slide(slide_id)
        return partial(read_outlines, slide.path, slide.annotation_path, config, tissue_regions[slide_id])

    def make(slide_id: str, outlines: Outlines) -> dg.MaterializeResult:
        version = recorded_version(context.instance, "tissue_regions", slide_id)
        return _outlines(config, library, storage, version, slide_id, outlines)

    with clear_failures(), cluster.open() as executor:
        yield from for_each_slide(context, storage.layout, make, read=read, executor=executor)


def _outlines(
    config: AnnotationConfig,
    library: SlideLibrary,
    storage: Storage,
    tissue_version: str | None,
    slide_id: str,
    outlines: Outlines,
) -> dg.MaterializeResult:
    path = library.slide(slide_id).annotation_path
    contents = outlines.contents or NO_ANNOTATION
    large_path = storage.layout.slide_folder(slide_id) / "overlay.jpg"
    with publish_file(large_path) as aside:
        aside.write_bytes(outlines.large)
    return made(
        "annotation_regions",
        {"annotation_path": None if path is None else str(path), "regions": outlines.regions},
        config=config,
        made_from=[contents, tissue_version],
        file=contents,
        metadata={
            "overlay": picture(outlines.overlay, "tissue and outline"),
            "overlay_file": dg.MetadataValue.path(str(large_path)),
            "annotation": "none: a normal slide" if path is None else str(path),
            "tumor_area_px": outlines.area,
            "outlines": len(outlines.audit),
            "unknown_groups": outlines.unknown_groups,
            "audit": table(outlines.audit[:300]),
        },
    )


def _number(value: float | None) -> float | str:
    return "unknown" if value is None else rounded(value)
