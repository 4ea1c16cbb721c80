import io

import numpy as np
import pytest
from matplotlib.image import imread

from wsi_assets.learning import EpochRecord, augmentation_mosaic_png, confusion_png, curves_png
from wsi_assets_tests.learning.made import cohort


def record(epoch, **changes):
    values = {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "train_acc": 0.5,
        "val_loss": 2 / epoch,
        "val_acc": 0.5,
        "val_auc": 0.5,
        "objective": 0.1,
        "lr": 1e-3,
        "images_per_second": 10.0,
        "waiting": 0.0,
        "seconds": 1.0,
        "is_best": True,
        "confusion": (1, 2, 3, 4),
    }
    return EpochRecord(**{**values, **changes})


@pytest.mark.parametrize("epochs", [[record(1)], [record(k) for k in range(1, 8)]])
def test_curves_are_drawn_for_one_epoch_and_for_many(epochs):
    assert imread(io.BytesIO(curves_png(epochs))).shape[1] == 900


def test_a_confusion_matrix_is_darkest_where_most_patches_of_a_row_are():
    picture = imread(io.BytesIO(confusion_png((99, 1, 1, 99))))[..., :3].mean(axis=2)
    dark = np.argwhere(picture < 0.35)  # on the main diagonal of a good model: further right is further down
    assert np.corrcoef(dark[:, 0], dark[:, 1])[0, 1] > 0.5


def test_the_mosaic_begins_each_row_with_the_patch_as_stored(tmp_path):
    patches = cohort(size=32)
    mosaic = augmentation_mosaic_png(patches.store(tmp_path), patches=4, copies=3, side=32)
    picture = imread(io.BytesIO(mosaic))
    stored = {patch.tobytes() for patch in patches.pixels}
    for row in range(4):
        tile = (picture[row * 36 : row * 36 + 32, :32] * 255).round().astype(np.uint8)
        assert tile[..., :3].tobytes() in stored
