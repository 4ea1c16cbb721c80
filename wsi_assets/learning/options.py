"""What a user can set about training and prediction. Only names, defaults and bounds; no torch, no numpy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingOptions(BaseModel):
    """How a model is trained. The same options, store and machine give the same model on the CPU."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    model_name: str = Field(
        "resnet50",
        min_length=1,
        description="Classification network of torchvision by its name, e.g. resnet18.",
    )
    weights: str = Field(
        "none",
        min_length=1,
        description="Where training starts: none (random), imagenet (downloads once, usually the better "
        "model), or the path of a state dict.",
    )
    batch_size: int = Field(64, ge=2, description="Patches in one training step.")
    num_workers: int = Field(
        4, ge=0, description="Threads that read and decode patches ahead; 0 reads between the steps."
    )
    max_epochs: int = Field(50, ge=1, description="Epochs at most.")
    patience: int = Field(
        2, ge=1, description="Epochs in a row without a lower validation loss before stopping."
    )
    lr: float = Field(1e-3, gt=0, description="Highest learning rate of AdamW.")
    lr_schedule: Literal["cosine", "constant"] = Field(
        "cosine",
        description="Learning rate after a short warm-up: falls along a cosine over max_epochs, or stays.",
    )
    weight_decay: float = Field(
        0.01, ge=0, description="Decoupled weight decay of AdamW; biases and normalisation layers have none."
    )
    use_augmentation: bool = Field(
        True,
        description="Repeat tumour patches aug_factor times and transform every training patch at random.",
    )
    aug_factor: int = Field(5, ge=1, description="How often each tumour patch is seen in an epoch.")
    use_class_weights: bool = Field(
        True,
        description="Weigh classes inversely to their frequency in the training part after augmentation.",
    )
    use_focal_loss: bool = Field(True, description="Focal loss instead of cross-entropy.")
    focal_gamma: float = Field(
        2.0, ge=0, description="Focusing parameter of the focal loss; 0 is cross-entropy."
    )
    use_ohem: bool = Field(
        True,
        description="Online hard example mining: learn from all tumour and the hardest normal patches. "
        "It has something to leave out where normal_per_tumor is above aug_factor x ohem_ratio.",
    )
    ohem_ratio: float = Field(
        3.0, gt=0, description="Hard normal patches kept for each tumour patch of a batch."
    )
    val_size: float = Field(0.1, gt=0, le=0.5, description="Share of the patients that validates.")
    save_interval: int = Field(
        5, ge=1, description="Epochs between two checkpoints that a run can resume from."
    )
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of every random choice.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Arithmetic of the network; auto is bfloat16 where the processor computes it natively.",
    )
    device: str = Field(
        "auto", min_length=1, description="auto (a GPU if there is one), cpu, cuda or cuda:1."
    )
    compile_model: bool = Field(
        False, description="Compile the network with torch.compile; pays on a GPU and in long trainings."
    )


class PredictionOptions(BaseModel):
    """How test slides are predicted."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    prediction_batch_size: int = Field(64, ge=1, description="Patches in one prediction step.")
    prediction_threshold: float = Field(
        0.5, ge=0, le=1, description="A patch with at least this tumour probability is called tumour."
    )
    prediction_precision: Literal["auto", "float32", "bfloat16"] = Field(
        "float32",
        description="Arithmetic of prediction; with float32 the batch size changes no more than the last "
        "digits of a probability.",
    )
    tta: bool = Field(
        False, description="Average each probability over the eight flips and quarter turns of the patch."
    )
    num_workers: int = Field(
        4, ge=0, description="Threads that read and decode patches ahead; 0 reads between the steps."
    )
    device: str = Field(
        "auto", min_length=1, description="auto (a GPU if there is one), cpu, cuda or cuda:1."
    )
