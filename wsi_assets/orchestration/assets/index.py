"""The slide index, with all tissue patches of a level and their labels, and the sample used for training."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dagster as dg
import pydantic

from wsi_assets.errors import SlideIndexError
from wsi_assets.files import read_plain_pickle
from wsi_assets.index.options import IndexOptions, SamplingOptions
from wsi_assets.orchestration.artefact import Artefact, all_artefacts
from wsi_assets.orchestration.assets.slides import (
    ANNOTATION_REGIONS,
    REGIONS_OF_ALL_SLIDES,
    TISSUE_REGIONS,
)
from wsi_assets.orchestration.automation import follow_at_night, follow_index
from wsi_assets.orchestration.config import launchpad_config
from wsi_assets.orchestration.level_plan import inputs_of_level, usable_slides
from wsi_assets.orchestration.making import Making
from wsi_assets.orchestration.metadata import picture, table, user_errors_as_failures
from wsi_assets.orchestration.partitions import SLIDES
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets.orchestration.slide_folder import doubt
from wsi_assets.orchestration.storage import StorageResource

if TYPE_CHECKING:
    from wsi_assets.annotations import TumorRegions
    from wsi_assets.index import TissueRegions


SLIDE_INDEX = Artefact(
    name="slide_index",
    code_version="6",
    path="{level}/index_{level}.pkl",
    options=IndexOptions,
    inputs=(TISSUE_REGIONS, ANNOTATION_REGIONS),
    shown=("slides", "patches", "tumor", "normal"),
    automation=follow_at_night,
)

HARD_NEGATIVES_NAME = "hard_negatives"


class SampledIndexOptions(SamplingOptions):
    """Parameters of ``sampled_index``."""

    use_hard_negatives: bool = pydantic.Field(
        False,
        description="Include the patches of hard_negatives, which must be materialized before, in the sample "
        "of training slides.",
    )


SAMPLED_INDEX = Artefact(
    name="sampled_index",
    code_version="2",
    path="{level}/index_{level}_sampled.pkl",
    options=SampledIndexOptions,
    inputs=(SLIDE_INDEX,),
    feedback={"use_hard_negatives": HARD_NEGATIVES_NAME},
    may_name_a_file=frozenset({"incomplete_slides"}),
    must_pass=("sample_is_of_index",),
    shown=("slides", "patches", "tumor", "normal"),
    automation=follow_index,
)

SlideIndexConfig = launchpad_config(SLIDE_INDEX)
SampledIndexConfig = launchpad_config(SAMPLED_INDEX)


@dg.asset(
    **SLIDE_INDEX.asset_arguments(),
    deps=REGIONS_OF_ALL_SLIDES,
    kinds={"numpy", "shapely", "pickle"},
    description="All tissue patches of a level, labeled from the tumor annotations: `index_level_N.pkl`. "
    "Lists the slides that are left out, with the reason. A partition is a pyramid level (`4`), a "
    "magnification (`10x`) or a pixel size (`0.5um`).",
)
def slide_index(
    context: dg.AssetExecutionContext,
    config: SlideIndexConfig,
    folder: SlideFolderResource,
    storage: StorageResource,
) -> dg.MaterializeResult:
    from wsi_assets.index import counts, index_level, slide_table

    with user_errors_as_failures():
        registered = context.instance.get_dynamic_partitions(SLIDES.name)
        doubt(folder, registered, storage, annotations=False)
        usable, left_out = usable_slides(storage, folder, context.instance)
        making = Making(context, storage, SLIDE_INDEX, config, inputs_of_level(SLIDE_INDEX, usable, {}))
        paths = {slide_id: str(folder.slide(slide_id).path) for slide_id in usable}
        regions = _regions(paths, storage)
        made = index_level(regions, making.resolution, making.options, folder.cohort())
    left_out |= made.left_out | made.empty
    context.log.info(f"{len(made.index)} slides indexed, {len(left_out)} left out")
    return making.result(
        made.index,
        facts={**counts(made.index), "left_out": left_out, "left_out_count": len(left_out)},
        metadata={
            "counts_by_slide": table(slide_table(made.index)),
        },
    )


@dg.asset(
    **SAMPLED_INDEX.asset_arguments(),
    kinds={"numpy", "pickle"},
    description="All tumor patches and a random sample (with fixed seed) of normal patches; validation and "
    "test slides keep all patches: `index_level_N_sampled.pkl`.",
)
def sampled_index(
    context: dg.AssetExecutionContext,
    config: SampledIndexConfig,
    storage: StorageResource,
    slide_index: dict[str, Any],
) -> dg.MaterializeResult:
    from wsi_assets.index import counts, counts_png, sample_index, slide_table

    with user_errors_as_failures():
        making = Making(context, storage, SAMPLED_INDEX, config)
        hard = _hard_negatives(storage, context.partition_key, making)
        sampled = sample_index(slide_index, making.options, hard["patches"])
    return making.result(
        sampled,
        facts={**counts(sampled), **hard["facts"]},
        metadata={
            "counts_picture": picture(counts_png(slide_index, sampled), "patches by slide"),
            "counts_by_slide": table(slide_table(sampled)),
        },
    )


def _hard_negatives(storage: StorageResource, level: str, making: Making) -> dict[str, Any]:
    """``patches`` of the last round and ``facts`` about them; both empty without ``use_hard_negatives``."""
    if not making.options.use_hard_negatives:
        return {"patches": {}, "facts": {}}
    if not making.inputs[HARD_NEGATIVES_NAME]:
        raise SlideIndexError(
            "use_hard_negatives is on, but this level has no hard negatives",
            remedy="Train with use_hard_negatives=false first, then materialize hard_negatives",
        )
    (artefact,) = (one for one in all_artefacts() if one.name == HARD_NEGATIVES_NAME)
    last = read_plain_pickle(storage.artefact(artefact, level))
    facts = {"round": last["round"], "patches": sum(map(len, last["patches"].values()))}
    return {"patches": last["patches"], "facts": {"hard_negatives": {**facts, "before": last["before"]}}}


def _regions(
    paths: dict[str, str], storage: StorageResource
) -> Iterator[tuple["TissueRegions", "TumorRegions | None", str | None]]:
    # One slide at a time: the masks of thousands of slides would not fit into memory.
    from wsi_assets.annotations import TumorRegions
    from wsi_assets.index import TissueRegions

    for slide_id, path in sorted(paths.items()):
        stored = storage.stored(ANNOTATION_REGIONS, slide_id)
        regions = None if stored["regions"] is None else TumorRegions.from_plain(stored["regions"])
        # The file may have been moved since the regions were made; its contents are the same.
        yield (
            replace(TissueRegions.from_plain(storage.stored(TISSUE_REGIONS, slide_id)), slide_path=path),
            regions,
            stored["annotation_path"],
        )
