import subprocess
import sys

import pytest
from pydantic import ValidationError

from wsi_assets.learning.options import PredictionOptions, TrainingOptions


def test_the_defaults_are_those_of_the_documentation():
    assert (
        TrainingOptions().model_dump()
        | {
            "model_name": "resnet50",
            "batch_size": 64,
            "num_workers": 4,
            "max_epochs": 50,
            "patience": 2,
            "lr": 1e-3,
            "aug_factor": 5,
            "ohem_ratio": 3.0,
            "val_size": 0.1,
            "save_interval": 5,
            "seed": 42,
            "focal_gamma": 2.0,
            "use_augmentation": True,
            "use_class_weights": True,
            "use_focal_loss": True,
            "use_ohem": True,
            "weights": "imagenet",
        }
        == TrainingOptions().model_dump()
    )
    assert PredictionOptions().prediction_threshold == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 1},
        {"seed": 2**63},
        {"lr": 0},
        {"val_size": 0.9},
        {"learning_rate": 1e-3},
        {"precision": "float16"},
    ],
)
def test_impossible_and_unknown_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        TrainingOptions(**wrong)


def test_every_option_is_described():
    for options in (TrainingOptions, PredictionOptions):
        assert all(field.description for field in options.model_fields.values())


def test_options_load_without_torch_or_numpy():
    code = (
        "import sys; import wsi_assets.learning; from wsi_assets.learning.options import TrainingOptions; "
        "print(sorted({'torch', 'numpy', 'cv2', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
