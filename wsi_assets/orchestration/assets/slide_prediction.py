"""Prediction of any slide, annotated or not, with the model of a level; made only on request."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from wsi_assets.errors import ModelError, SlideError
from wsi_assets.files import digest
from wsi_assets.learning.options import SlidePredictionOptions
from wsi_assets.orchestration.artefact import Artefact
from wsi_assets.orchestration.assets.evaluation import EVALUATION
from wsi_assets.orchestration.assets.index import SLIDE_INDEX
from wsi_assets.orchestration.assets.learning import POOL, TRAINED_MODEL, trained_model
from wsi_assets.orchestration.assets.patches import PATCH_STORE
from wsi_assets.orchestration.assets.slides import TISSUE_REGIONS, slide_image, tissue_regions
from wsi_assets.orchestration.config import ParameterSet, launchpad_config, options_of
from wsi_assets.orchestration.evaluation_metadata import model_card
from wsi_assets.orchestration.io_managers import ReportIOManager
from wsi_assets.orchestration.making import Making
from wsi_assets.orchestration.metadata import picture, progress_to, rounded, user_errors_as_failures
from wsi_assets.orchestration.mlflow import MlflowResource, registered_name
from wsi_assets.orchestration.partition_batches import SLIDES_PER_RUN, Made, make_slides
from wsi_assets.orchestration.partitions import OF_ITS_LEVEL, OF_ITS_SLIDE, both, parts_of
from wsi_assets.orchestration.resources import SlideFolderResource
from wsi_assets.orchestration.slide_folder import SLIDE_IMAGE, image_version
from wsi_assets.orchestration.storage import StorageResource
from wsi_assets.slides.resolution import option_of, words_of

if TYPE_CHECKING:
    from wsi_assets.learning import LoadedModel

PREDICT_SLIDES = "predict_slides"
"""Name of the job that makes only this asset."""

SUMMARY = "prediction.json"
"""File with the results for a slide in numbers."""

SLIDE_PREDICTION = Artefact(
    name="slide_prediction",
    code_version="1",
    path="slides/{slide}/{level}",
    options=SlidePredictionOptions,
    inputs=(TISSUE_REGIONS, TRAINED_MODEL),
    sources=(SLIDE_IMAGE,),
    main_file=SUMMARY,
    # `model` has no effect by itself: the digest of the model is one of the inputs.
    without_effect=frozenset(
        {"model", "num_workers", "device", "prediction_batch_size", "predict_new_slides"}
    ),
    optional=True,
)

SlidePredictionConfig = launchpad_config(SLIDE_PREDICTION)

RULES = {
    SLIDE_INDEX: ("min_tissue", "level_tolerance"),
    PATCH_STORE: ("max_no_data",),
    EVALUATION: ("detection_threshold", "detection_smoothing_um", "detection_radius_um", "heatmap_side"),
}
"""Artefact of the level -> those of its parameters that also affect predictions of slides."""


@dataclass(frozen=True)
class Detector:
    """The model used at a level, and the options used with it.

    Attributes:
        path: path of its ``best.pt``.
        card: contents of ``best.json``.
        identity: source, name, version and digest of the model, as written to ``prediction.json``.
        options: artefact of the level -> its options; those in ``RULES`` affect the prediction.
    """

    path: Path
    card: dict[str, Any]
    identity: dict[str, Any]
    options: dict[Artefact, Any]

    def inputs(self, image: str, tissue: str | None) -> dict[str, Any]:
        """Inputs of the prediction of a slide and their versions, as written to its record.

        Args:
            image: version of the slide's file.
            tissue: version of its ``tissue_regions``.
        """
        rules = {name: getattr(self.options[one], name) for one, names in RULES.items() for name in names}
        model = self.identity["digest"]
        return {SLIDE_IMAGE: image, TISSUE_REGIONS.name: tissue, "model": model, "level_parameters": rules}


def find_detector(
    storage: StorageResource, mlflow: MlflowResource, level: str, model: str, *parameters: ParameterSet
) -> Detector:
    """Find the model that predicts at a level.

    Args:
        model: ``newest`` for the trained model of the level, ``champion`` for the registered model with this
            alias in MLflow, or the path of a ``best.pt`` or of its folder.
        parameters: parameter sets, the later over the earlier.

    Raises:
        ModelError: there is no such model, its card is damaged, or it was trained on another level.
    """
    from wsi_assets.slides import fingerprint

    version = None
    if model == "champion":
        folder, version = mlflow.champion(level)
        name, path = registered_name(level), folder / "best.pt"
    elif model == "newest":
        path = storage.artefact(TRAINED_MODEL, level) / "best.pt"
        name = str(path)
    else:
        path = Path(model) / "best.pt" if Path(model).is_dir() else Path(model)
        name = str(path)
    if not path.is_file():
        raise ModelError(
            "there is no such model",
            path=path,
            remedy=f"Train one (wsi-assets run {option_of(level)} --upto trained_model), or give the path of "
            "a best.pt (--model)",
        )
    card = model_card(path)
    if str(card.get("level", level)) != level:
        raise ModelError(
            f"was trained on {words_of(card['level'])}, not {words_of(level)}",
            path=path,
            remedy=f"Predict with {option_of(str(card['level']))}",
        )
    identity = {
        "source": model if model in ("newest", "champion") else "file",
        "name": name,
        "version": version,
        "digest": digest(fingerprint(path), json.dumps(card, sort_keys=True)),
    }
    return Detector(path, card, identity, {one: options_of(one, level, *parameters) for one in RULES})


def unpredicted(
    storage: StorageResource,
    level: str,
    detector: Detector,
    images: Mapping[str, str],
    *parameters: ParameterSet,
) -> dict[str, str]:
    """Slide id -> reason why its prediction is missing or out of date; others are not listed.

    Slides whose ``tissue_regions`` are missing or were made from another file are skipped.

    Args:
        images: slide id -> version of its file.
        parameters: parameter sets, the later over the earlier.
    """
    used = options_of(SLIDE_PREDICTION, level, *parameters).model_dump(mode="json")
    found = {}
    for slide_id, image in sorted(images.items()):
        tissue = storage.record(TISSUE_REGIONS, slide_id)
        if tissue is not None and tissue.inputs.get(SLIDE_IMAGE) == image:
            inputs = detector.inputs(image, tissue.version)
            found[slide_id] = storage.why_out_of_date(SLIDE_PREDICTION, both(slide_id, level), used, inputs)
    return {slide_id: why for slide_id, why in found.items() if why}


@dg.asset(
    **SLIDE_PREDICTION.asset_arguments(io_manager_key="report_io"),
    deps=[
        dg.AssetDep(slide_image, partition_mapping=OF_ITS_SLIDE),
        dg.AssetDep(tissue_regions, partition_mapping=OF_ITS_SLIDE),
        dg.AssetDep(trained_model, partition_mapping=OF_ITS_LEVEL),
    ],
    kinds={"pytorch", "tiff"},
    pool=POOL,
    backfill_policy=dg.BackfillPolicy.multi_run(SLIDES_PER_RUN),
    description="Prediction of a slide, annotated or not, with the model of a level: heatmap for ASAP, "
    "detections, regions for QuPath, a picture and a score, below `slides/<slide>/`. Predictions that are "
    "up to date are kept. Made only on request. After an interruption, finished slides are kept.",
)
def slide_prediction(
    context: dg.AssetExecutionContext,
    config: SlidePredictionConfig,
    folder: SlideFolderResource,
    storage: StorageResource,
    mlflow: MlflowResource,
    report_io: dg.ResourceParam[ReportIOManager],
) -> dg.MaterializeResult:
    levels = {level: None for _, level in map(parts_of, context.partition_keys)}
    with user_errors_as_failures(storage.root):
        at = {level: _AtLevel(context, config, storage, mlflow, level) for level in levels}
        makings = {key: at[parts_of(key)[1]].making for key in context.partition_keys}

        def prepare(key: str) -> partial:
            slide_id, level = parts_of(key)
            return partial(at[level].predict, key, folder, storage.stored(TISSUE_REGIONS, slide_id))

        return make_slides(makings, None, report_io, prepare, lambda key, made: made)


class _AtLevel:
    """Predicts slides at one level in one run; the model is loaded on first use."""

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        config: dg.Config,
        storage: StorageResource,
        mlflow: MlflowResource,
        level: str,
    ):
        self.making = Making(context, storage, SLIDE_PREDICTION, config, level=level)
        self.detector: Detector = find_detector(
            storage, mlflow, level, self.making.options.model, storage.parameters.read()
        )
        self._loaded: LoadedModel | None = None

    def predict(self, key: str, folder: SlideFolderResource, tissue: dict[str, Any] | None) -> Made:
        """Predict one slide, unless its prediction is up to date.

        Raises:
            SlideError: the slide is missing, unreadable or has no ``tissue_regions``.
        """
        making, (slide_id, _) = self.making, parts_of(key)
        slide = folder.slide(slide_id)
        if tissue is None:
            raise SlideError("has no tissue_regions", path=slide.path, remedy="Materialize them first")
        version = making.storage.version(TISSUE_REGIONS, slide_id)
        inputs = self.detector.inputs(image_version(tissue["fingerprint"], slide), version)
        files, made = making.storage.artefact(SLIDE_PREDICTION, key), None
        if making.storage.why_out_of_date(SLIDE_PREDICTION, key, making.parameters, inputs):
            files = made = self._write(slide_id, slide.path, tissue)
        summary = json.loads((files / SUMMARY).read_text(encoding="utf-8"))
        for notice in summary["notices"]:
            making.context.log.warning(f"{slide_id}: {notice}")
        known = {name: rounded(summary[name]) for name in ("score", "calibrated", "area_mm2")}
        return Made(
            made,
            inputs=inputs,
            facts={name: summary[name] for name in ("score", "detections", "patches", "unread", "notices")},
            metadata={
                "heatmap": picture((files / f"{slide_id}.png").read_bytes(), f"heatmap of {slide_id}"),
                "viewer": folder.viewer_page(slide_id),
                **known,
                **{name: summary[name] for name in ("detections", "patches", "unread", "notices")},
                "model": summary["model"],
            },
        )

    def _write(self, slide_id: str, path: Path, plain: dict[str, Any]) -> Path:
        """Predict a slide and write the files to a new folder."""
        import time
        from dataclasses import replace

        from wsi_assets.evaluation.slide_files import write_slide_prediction
        from wsi_assets.index import TissueRegions
        from wsi_assets.learning import load_model, slide_grid, slide_probabilities

        began, making, rules = time.monotonic(), self.making, self.detector.options
        self._loaded = self._loaded or load_model(self.detector.path)
        tissue = replace(TissueRegions.from_plain(plain), slide_path=str(path))
        stride, size = making.options.prediction_stride, self._loaded.patch_size
        entry = slide_grid(tissue, making.resolution.key, rules[SLIDE_INDEX], size, stride)
        entry["probs"] = slide_probabilities(
            entry,
            self._loaded,
            making.options,
            max_no_data=rules[PATCH_STORE].max_no_data,
            progress=progress_to(making.context.log),
        )
        folder = making.storage.slide_folder(slide_id) / f"{making.resolution.name}_in_progress"
        shutil.rmtree(folder, ignore_errors=True)
        about = {"model": self.detector.identity, "seconds": round(time.monotonic() - began, 2)}
        write_slide_prediction(folder, slide_id, entry, self.detector.card, rules[EVALUATION], about)
        return folder
