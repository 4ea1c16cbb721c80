"""Assets with one partition per slide: the user's files, tissue regions and annotated tumor regions."""

from dataclasses import asdict
from functools import partial
from typing import Any

import dagster as dg
import pydantic

from wsi_assets.annotations.options import AnnotationOptions
from wsi_assets.errors import SlideError
from wsi_assets.index.slide_regions import SlideOptions
from wsi_assets.orchestration.artefact import GROUP, Artefact
from wsi_assets.orchestration.automation import follow_slides
from wsi_assets.orchestration.config import launchpad_config
from wsi_assets.orchestration.io_managers import PickleIOManager
from wsi_assets.orchestration.making import Making
from wsi_assets.orchestration.metadata import picture, rounded, table, user_errors_as_failures
from wsi_assets.orchestration.partition_batches import SLIDES_PER_RUN, Made, make_slides
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.resources import SlideFolderResource, WorkersResource
from wsi_assets.orchestration.slide_folder import (
    SLIDE_ANNOTATION,
    SLIDE_IMAGE,
    doubt,
    image_version,
    observe_all,
)
from wsi_assets.orchestration.storage import StorageResource
from wsi_assets.slides.fingerprints import NO_ANNOTATION

TISSUE_REGIONS = Artefact(
    name="tissue_regions",
    code_version="4",
    path="slides/{slide}/tissue_regions.pkl",
    options=SlideOptions,
    sources=(SLIDE_IMAGE,),
    automation=follow_slides,
)

ANNOTATION_REGIONS = Artefact(
    name="annotation_regions",
    code_version="5",
    path="slides/{slide}/annotation_regions.pkl",
    options=AnnotationOptions,
    inputs=(TISSUE_REGIONS,),
    sources=(SLIDE_ANNOTATION,),
    automation=follow_slides,
)

TissueConfig = launchpad_config(TISSUE_REGIONS)


class AnnotationConfig(launchpad_config(ANNOTATION_REGIONS)):
    """Parameters of ``annotation_regions``."""

    annotations_gone: bool | None = pydantic.Field(
        default=None,
        description="Accept that most annotations, or corrections, were removed for good. A slide without "
        "its annotation is then normal; one without its correction is used as annotated.",
    )


def _source(name: str, description: str) -> dg.SourceAsset:
    """An observable source asset of the user's files; its data version is a fingerprint of the contents."""

    @dg.observable_source_asset(name=name, partitions_def=SLIDES, group_name=GROUP, description=description)
    def observe_files(folder: SlideFolderResource) -> dg.DataVersionsByPartition:
        with user_errors_as_failures():
            seen, _ = observe_all(folder.list().slides, {})
            return dg.DataVersionsByPartition({one: files[name].version for one, files in seen.items()})

    return observe_files


slide_image = _source(
    SLIDE_IMAGE,
    "A whole-slide image in the user's folder, which is observed and never written. Its data version is a "
    "fingerprint of its contents.",
)
slide_annotation = _source(
    SLIDE_ANNOTATION,
    "The annotation of a slide in the user's folder and its correction, which are observed and never "
    f"written. The data version is a fingerprint of the contents of both; {NO_ANNOTATION!r} stands for a "
    "missing annotation.",
)


@dg.asset(
    **TISSUE_REGIONS.asset_arguments(),
    deps=[slide_image],
    kinds={"openslide", "opencv", "pickle"},
    backfill_policy=dg.BackfillPolicy.multi_run(SLIDES_PER_RUN),
    description="Tissue of a slide: mask at a low-resolution level, Otsu threshold, pyramid geometry and "
    "true scale. Glass, pen marks, unscanned and padded areas are excluded.",
)
def tissue_regions(
    context: dg.AssetExecutionContext,
    config: TissueConfig,
    folder: SlideFolderResource,
    storage: StorageResource,
    workers: WorkersResource,
    pickle_io: dg.ResourceParam[PickleIOManager],
) -> dg.MaterializeResult:
    from wsi_assets.index.slide_regions import read_tissue

    with user_errors_as_failures():
        making = Making(context, storage, TISSUE_REGIONS, config)

        def prepare(slide_id: str) -> partial:
            slide = folder.slide(slide_id)
            return partial(read_tissue, slide_id, slide.path, making.options, slide.cohort_row)

        makings = dict.fromkeys(context.partition_keys, making)
        return make_slides(makings, workers, pickle_io, prepare, partial(_tissue, folder))


def _tissue(folder: SlideFolderResource, slide_id: str, plain: dict[str, Any]) -> Made:
    from wsi_assets.index import TissueRegions

    tissue, slide = TissueRegions.from_plain(plain), folder.slide(slide_id)
    return Made(
        plain,
        inputs={SLIDE_IMAGE: image_version(tissue.fingerprint, slide)},
        facts={"tissue_share": float(tissue.tissue_share), "notices": list(tissue.notices)},
        metadata={
            "notices": list(tissue.notices),
            "slide": dg.MetadataValue.path(str(slide.path)),
            "tissue_share": rounded(tissue.tissue_share),
            "otsu_threshold": rounded(tissue.threshold),
            "work_level": tissue.work_level,
            "base_magnification": tissue.scale.base_magnification,
            "magnification_source": tissue.scale.magnification_source,
            "mpp": rounded(tissue.scale.mpp),
            "levels": table([asdict(level) for level in tissue.levels]),
        },
    )


@dg.asset(
    **ANNOTATION_REGIONS.asset_arguments(),
    deps=[slide_annotation, tissue_regions],
    kinds={"shapely", "xml", "pickle"},
    backfill_policy=dg.BackfillPolicy.multi_run(SLIDES_PER_RUN),
    description="Tumor regions from the annotation of a slide: groups united, exclusions cut out, invalid "
    "polygons repaired, corrections applied. The audit table lists each step. A slide without an annotation "
    "is a normal slide.",
)
def annotation_regions(
    context: dg.AssetExecutionContext,
    config: AnnotationConfig,
    folder: SlideFolderResource,
    storage: StorageResource,
    workers: WorkersResource,
    pickle_io: dg.ResourceParam[PickleIOManager],
) -> dg.MaterializeResult:
    from wsi_assets.index.slide_regions import read_slide_annotation

    with user_errors_as_failures():
        making = Making(context, storage, ANNOTATION_REGIONS, config)
        registered = context.instance.get_dynamic_partitions(SLIDES.name)
        doubt(folder, registered, storage, annotations=not config.annotations_gone)

        def prepare(slide_id: str) -> partial:
            slide = folder.slide(slide_id)
            tissue = storage.stored(TISSUE_REGIONS, slide_id)
            if tissue is None:
                raise SlideError("has no tissue_regions", path=slide.path, remedy="Materialize them first")
            return partial(
                read_slide_annotation, slide, making.options, tissue, storage.slide_folder(slide_id)
            )

        makings = dict.fromkeys(context.partition_keys, making)
        return make_slides(makings, workers, pickle_io, prepare, partial(_annotation, folder, storage))


def _annotation(folder: SlideFolderResource, storage: StorageResource, slide_id: str, read: Any) -> Made:
    correction = folder.slide(slide_id).correction_path
    written = storage.slide_folder(slide_id)
    changes = [row for row in read.audit if row["action"] != "kept" or row["changed"]]
    path = read.annotated_by and str(read.annotated_by)
    annotations, corrections = (
        [row for row in read.audit if (row["changed"] is not None) == corrects] for corrects in (False, True)
    )
    corrected = {"correction": str(correction), "corrections": table(corrections[:300])} if correction else {}
    return Made(
        {"annotation_path": path, "regions": read.regions},
        inputs={
            SLIDE_ANNOTATION: read.contents,
            TISSUE_REGIONS.name: storage.version(TISSUE_REGIONS, slide_id),
        },
        facts={"audit": changes, "notices": read.notices},
        metadata={
            "overlay": picture(read.overlay, "tissue and annotation"),
            "viewer": folder.viewer_page(slide_id),
            "overlay_file": dg.MetadataValue.path(str(written / "overlay.jpg")),
            "for_qupath": dg.MetadataValue.path(str(written / "annotation.geojson")),
            "annotation": path or "none: a normal slide",
            **corrected,
            "tumor_area_px": round(read.area),
            "annotations": len(annotations),
            "notices": read.notices,
            "unknown_groups": read.unknown_groups,
            "audit": table(annotations[:300]),
        },
    )


REGIONS_OF_ALL_SLIDES = [
    dg.AssetDep(one, partition_mapping=dg.AllPartitionMapping())
    for one in (tissue_regions, annotation_regions)
]
"""Dependencies of assets that use the regions of all slides, which they read slide by slide from files."""
