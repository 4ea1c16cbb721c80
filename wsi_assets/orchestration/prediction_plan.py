"""Which model predicts slides at a level, by which rules, and which slides it has not predicted yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_assets.errors import ModelError
from wsi_assets.files import digest
from wsi_assets.orchestration.artefact import Artefact
from wsi_assets.orchestration.assets.evaluation import EVALUATION
from wsi_assets.orchestration.assets.index import SLIDE_INDEX
from wsi_assets.orchestration.assets.learning import TRAINED_MODEL
from wsi_assets.orchestration.assets.patches import PATCH_STORE
from wsi_assets.orchestration.assets.slides import TISSUE_REGIONS
from wsi_assets.orchestration.config import ParameterSet, options_of
from wsi_assets.orchestration.evaluation_metadata import model_card
from wsi_assets.orchestration.mlflow import MlflowResource, registered_name
from wsi_assets.orchestration.partitions import both
from wsi_assets.orchestration.slide_folder import SLIDE_IMAGE
from wsi_assets.orchestration.storage import StorageResource
from wsi_assets.slides.resolution import option_of, words_of

RULES = {
    SLIDE_INDEX: ("min_tissue", "level_tolerance"),
    PATCH_STORE: ("max_no_data",),
    EVALUATION: ("detection_threshold", "detection_smoothing_um", "detection_radius_um", "heatmap_side"),
}
"""Artefact of the level -> its parameters that also decide how a slide is predicted."""


@dataclass(frozen=True)
class Detector:
    """The model that predicts at a level, and how.

    Attributes:
        path: its ``best.pt``; card: the ``best.json`` beside it.
        said: what ``prediction.json`` tells of it: source, name, version, digest.
        options: artefact of the level -> its options; those in ``RULES`` count.
    """

    path: Path
    card: dict[str, Any]
    said: dict[str, Any]
    options: dict[Artefact, Any]

    def inputs(self, image: str, tissue: str | None) -> dict[str, Any]:
        """What a slide's prediction is made from, as its record keeps it.

        Args:
            image: version of the slide's file; tissue: of its ``tissue_regions``.
        """
        rules = {name: getattr(self.options[one], name) for one, names in RULES.items() for name in names}
        model = self.said["digest"]
        return {SLIDE_IMAGE: image, TISSUE_REGIONS.name: tissue, "model": model, "level_parameters": rules}


def find_detector(
    storage: StorageResource, mlflow: MlflowResource, level: str, model: str, *parameters: ParameterSet
) -> Detector:
    """The model that ``model`` means at a level: ``newest``, ``champion`` or a path.

    Args:
        parameters: what is said of the level's parameters.

    Raises:
        ModelError: there is none, or what is there is damaged.
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
    said = {"source": model if model in ("newest", "champion") else "file", "name": name, "version": version}
    said["digest"] = digest(fingerprint(path), json.dumps(card, sort_keys=True))
    return Detector(path, card, said, {one: options_of(one, level, *parameters) for one in RULES})


def unpredicted(
    storage: StorageResource,
    artefact: Artefact,
    level: str,
    detector: Detector,
    images: Mapping[str, str],
    *parameters: ParameterSet,
) -> dict[str, str]:
    """Slide id -> why its prediction is missing or out of date, of slides whose tissue is that of their file.

    Args:
        artefact: ``slide_prediction``; images: slide id -> version of its file.
    """
    used = options_of(artefact, level, *parameters).model_dump(mode="json")
    found = {}
    for slide_id, image in sorted(images.items()):
        tissue = storage.record(TISSUE_REGIONS, slide_id)
        if tissue is not None and tissue.inputs.get(SLIDE_IMAGE) == image:
            inputs = detector.inputs(image, tissue.version)
            found[slide_id] = storage.why_out_of_date(artefact, both(slide_id, level), used, inputs)
    return {slide_id: why for slide_id, why in found.items() if why}
