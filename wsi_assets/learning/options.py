"""Options of training and prediction."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_PRECISION = Literal["auto", "float32", "bfloat16"]
_DEVICE = "auto (a GPU if there is one), cpu, cuda or cuda:1."
_WORKERS = "Threads that read and decode patches in advance; 0 reads them between the steps."


class TrainingOptions(BaseModel):
    """Options of training. On the CPU, the same options, patches and machine give the same model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model_name: str = Field(
        "resnet50", min_length=1, description="Name of the network in timm, e.g. resnet18 or convnext_tiny."
    )
    weights: str = Field(
        "imagenet",
        min_length=1,
        description="Initial weights: imagenet (downloaded once), none (random), or the path of a file of "
        "weights, of a timm model folder (config.json and weights) or of a best.pt with its best.json; the "
        "last two override model_name. Given weights keep their batch-norm statistics, and patches smaller "
        "than the images that they are made for (often 224 pixels) are enlarged to that size.",
    )
    freeze_backbone: bool = Field(
        False, description="Train only the linear classifier; the network's features stay unchanged."
    )
    batch_size: int = Field(64, ge=2, description="Patches in one training step.")
    num_workers: int = Field(4, ge=0, description=_WORKERS)
    max_epochs: int = Field(50, ge=1, description="Largest number of epochs.")
    patience: int = Field(
        2,
        ge=1,
        description="Epochs in a row without a lower validation loss before the learning rate is lowered; "
        "counted after the warm-up and at least 400 steps.",
    )
    lr: float = Field(
        1e-3, gt=0, description="Highest learning rate of AdamW; pretrained layers use a tenth of it."
    )
    weight_decay: float = Field(
        0.01, ge=0, description="Decoupled weight decay of AdamW; biases and normalization layers have none."
    )
    use_augmentation: bool = Field(
        True, description="Repeat tumor patches, and transform patches of both classes at random."
    )
    aug_factor: int = Field(
        5,
        ge=1,
        description="Augmented copies of each tumor patch in an epoch, in addition to the patch itself.",
    )
    use_class_weights: bool = Field(
        True, description="Weight the classes inversely to their numbers of back-propagated patches."
    )
    use_focal_loss: bool = Field(True, description="Focal loss instead of cross-entropy.")
    focal_gamma: float = Field(
        2.0, ge=0, description="Focusing parameter of the focal loss; 0 is cross-entropy."
    )
    use_ohem: bool = Field(
        True,
        description="Online hard example mining: learn from all tumor and only the hardest normal patches. "
        "It has an effect only if normal_per_tumor is above (aug_factor + 1) x ohem_ratio.",
    )
    ohem_ratio: float = Field(
        3.0, gt=0, description="Hard normal patches kept for each tumor patch of a batch."
    )
    val_size: float = Field(
        0.1,
        gt=0,
        le=0.5,
        description="Share of the patients used for validation, if the index does not define the split.",
    )
    val_specificity: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="Specificity on the validation patches at which the model's threshold is chosen.",
    )
    tta: bool = Field(
        True,
        description="Test-time augmentation: the finished model averages each probability over the eight "
        "flips and quarter turns of the patch. Slightly better, but eight times the computation.",
    )
    save_interval: int = Field(5, ge=1, description="Epochs between two checkpoints ckpt_epoch_N.pt.")
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of every random choice.")
    precision: _PRECISION = Field(
        "auto",
        description="Number format of the computation; auto is bfloat16 where the device supports it "
        "natively, else float32.",
    )
    device: str = Field("auto", min_length=1, description=_DEVICE)

    @model_validator(mode="after")
    def _frozen_network_is_pretrained(self) -> TrainingOptions:
        if self.freeze_backbone and self.weights == "none":
            raise ValueError("freeze_backbone needs weights: features of a random network stay random")
        return self


class CrossValidationOptions(BaseModel):
    """Options of cross-validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folds: int = Field(
        5,
        ge=2,
        description="Number of groups of patients, stratified by tumor; each group is predicted by a model "
        "that is trained on the others with the parameters of the level's model.",
    )


class ComputingOptions(BaseModel):
    """Options of computing probabilities."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    prediction_batch_size: int = Field(64, ge=1, description="Patches in one prediction step.")
    prediction_precision: _PRECISION = Field(
        "float32",
        description="Number format of prediction; with float32, the batch size changes only the last digits "
        "of a probability.",
    )
    num_workers: int = Field(4, ge=0, description=_WORKERS)
    device: str = Field("auto", min_length=1, description=_DEVICE)


class PredictionOptions(ComputingOptions):
    """Options of predicting the test slides."""

    prediction_threshold: float = Field(
        0.5, ge=0, le=1, description="A patch with at least this tumor probability is predicted tumor."
    )


class SlidePredictionOptions(ComputingOptions):
    """Options of predicting any slide directly from its file."""

    model: str = Field(
        "newest",
        min_length=1,
        description="Model that predicts: newest (the level's trained_model), champion (the version of the "
        "level's registered model in MLflow that has this alias), or the path of any best.pt with its "
        "best.json beside it.",
    )
    prediction_stride: int | None = Field(
        default=None,
        ge=1,
        le=65536,
        description="Distance between patches, in pixels of the level; half a patch if not given.",
    )
    predict_new_slides: bool = Field(
        False,
        description="Predict new and changed slides automatically while the sensor of this name is on; "
        "set it for each level.",
    )


class HardNegativeOptions(ComputingOptions):
    """Options of the search for hard negatives."""

    hard_negative_threshold: float = Field(
        0.5, ge=0, le=1, description="Lowest tumor probability at which a normal patch is a hard negative."
    )
    hard_negatives_per_slide: int = Field(
        200,
        ge=1,
        description="Largest number of hard negatives of one slide in a round; the most probable are kept.",
    )
    seed: int = Field(42, ge=0, description="Seed of every random choice.")
