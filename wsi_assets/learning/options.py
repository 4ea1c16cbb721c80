"""Options of training and prediction."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_PRECISION = Literal["auto", "float32", "bfloat16"]
_DEVICE = "auto (a GPU if there is one), cpu, cuda or cuda:1."
_WORKERS = "Threads that read and decode patches ahead; 0 reads between the steps."


class TrainingOptions(BaseModel):
    """How a model is trained. The same options, patches and machine give the same model on the CPU."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model_name: str = Field(
        "resnet50", min_length=1, description="Network of timm by its name, e.g. resnet18 or convnext_tiny."
    )
    weights: str = Field(
        "imagenet",
        min_length=1,
        description="Where training starts: imagenet (downloaded once), none (random), or the path of a file "
        "of weights or of a timm model folder (config.json and weights), which also names the network.",
    )
    freeze_backbone: bool = Field(
        False, description="Train only a linear classifier on the network's features, which stay as they are."
    )
    batch_size: int = Field(64, ge=2, description="Patches in one training step.")
    num_workers: int = Field(4, ge=0, description=_WORKERS)
    max_epochs: int = Field(50, ge=1, description="Epochs at most.")
    patience: int = Field(
        2,
        ge=1,
        description="Epochs in a row without a lower validation loss before the learning rate falls; counted "
        "once the warm-up and the first steps are over.",
    )
    lr: float = Field(
        1e-3, gt=0, description="Highest learning rate of AdamW; a pretrained body learns at a tenth of it."
    )
    weight_decay: float = Field(
        0.01, ge=0, description="Decoupled weight decay of AdamW; biases and normalization layers have none."
    )
    use_augmentation: bool = Field(
        True, description="Repeat tumor patches, and transform patches of both classes at random."
    )
    aug_factor: int = Field(
        5, ge=1, description="Augmented copies of each tumor patch in an epoch, beside the patch itself."
    )
    use_class_weights: bool = Field(
        True, description="Weigh classes inversely to how many patches of each are back-propagated."
    )
    use_focal_loss: bool = Field(True, description="Focal loss instead of cross-entropy.")
    focal_gamma: float = Field(
        2.0, ge=0, description="Focusing parameter of the focal loss; 0 is cross-entropy."
    )
    use_ohem: bool = Field(
        True,
        description="Online hard example mining: learn from all tumor and the hardest normal patches. It has "
        "something to leave out where normal_per_tumor is above (aug_factor + 1) x ohem_ratio.",
    )
    ohem_ratio: float = Field(
        3.0, gt=0, description="Hard normal patches kept for each tumor patch of a batch."
    )
    val_size: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="Share of the patients that validates, for an index whose entries have no split yet.",
    )
    val_specificity: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="Specificity on the validation patches at which the model's threshold is chosen.",
    )
    tta: bool = Field(
        True,
        description="The finished model averages each probability over the eight flips and quarter turns of "
        "the patch: a little better, and eight times the work in prediction.",
    )
    save_interval: int = Field(5, ge=1, description="Epochs between two checkpoints ckpt_epoch_N.pt.")
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of every random choice.")
    precision: _PRECISION = Field(
        "auto",
        description="Arithmetic of the network; auto is bfloat16 where the processor computes it natively.",
    )
    device: str = Field("auto", min_length=1, description=_DEVICE)

    @model_validator(mode="after")
    def _frozen_features_are_of_weights(self) -> TrainingOptions:
        if self.freeze_backbone and self.weights == "none":
            raise ValueError("freeze_backbone needs weights: features of a random network stay random")
        return self


class CrossValidationOptions(BaseModel):
    """How a training is cross-validated."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folds: int = Field(
        5,
        ge=2,
        description="Groups of patients, stratified by tumor; each is predicted by a model that is trained "
        "on the others with the parameters of the level's model.",
    )


class ComputingOptions(BaseModel):
    """How probabilities are computed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    prediction_batch_size: int = Field(64, ge=1, description="Patches in one prediction step.")
    prediction_precision: _PRECISION = Field(
        "float32",
        description="Arithmetic of prediction; with float32 the batch size changes no more than the last "
        "digits of a probability.",
    )
    num_workers: int = Field(4, ge=0, description=_WORKERS)
    device: str = Field("auto", min_length=1, description=_DEVICE)


class PredictionOptions(ComputingOptions):
    """How test slides are predicted."""

    prediction_threshold: float = Field(
        0.5, ge=0, le=1, description="A patch with at least this tumor probability is predicted tumor."
    )


class SlidePredictionOptions(ComputingOptions):
    """How any slide is predicted, from its own pixels."""

    model: str = Field(
        "newest",
        min_length=1,
        description="Who predicts: newest (the level's trained_model), champion (the version of the level's "
        "registered model in MLflow that has this alias), or the path of a best.pt with its best.json beside "
        "it, from anywhere.",
    )
    prediction_stride: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Distance of patch corners, pixels of the level; half a patch if not given.",
    )
    predict_new_slides: bool = Field(
        False,
        description="Slides that are new or changed are predicted by themselves while the sensor of this "
        "name is on; set it below the level.",
    )


class HardNegativeOptions(ComputingOptions):
    """Which normal patches of training slides are hard."""

    hard_negative_threshold: float = Field(
        0.5, ge=0, le=1, description="Least tumor probability of a normal patch that is a hard negative."
    )
    hard_negatives_per_slide: int = Field(
        200, ge=1, description="Most hard negatives of one slide in a round, the falsest."
    )
    seed: int = Field(42, ge=0, description="Seed of every random choice.")
