import colorsys
import itertools

import numpy as np
import pytest
import torch

from wsi_assets.learning.augmentation import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Transforms,
    _blur,
    _chroma,
    augment,
    dihedral,
    draw_transforms,
    normalize,
)


def patches(count, size=24, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def identity(count):
    eye = torch.eye(3).expand(count, 3, 3)
    zeros = torch.zeros(count)
    return Transforms(zeros.long(), eye, torch.zeros(count, 3), eye, torch.zeros(count, 3), zeros)


def test_the_eight_dihedral_views_are_the_symmetries_of_the_square():
    patch = patches(1)
    views = [dihedral(patch, torch.tensor([code]))[0].numpy() for code in range(8)]
    square = patch[0].numpy()
    symmetries = [np.rot90(s, k) for s in (square, square[:, ::-1]) for k in range(4)]
    for view, symmetry in itertools.product(views, symmetries):
        if (view == symmetry).all():
            symmetries = [s for s in symmetries if not (s == view).all()]
    assert not symmetries
    assert (views[0] == square).all()


def test_the_neutral_transform_gives_the_pixels_back():
    original = patches(3)
    np.testing.assert_allclose(augment(original, identity(3)), original.float(), atol=2e-3)


def test_a_patch_is_transformed_alike_alone_and_in_a_batch():
    original = patches(9)
    transforms = draw_transforms(9, seed=1, epoch=2, batch=3)
    together = augment(original, transforms)
    for i in range(9):
        alone = augment(original[i : i + 1], transforms[slice(i, i + 1)])
        torch.testing.assert_close(alone[0], together[i], atol=1e-3, rtol=1e-5)


def test_large_batches_in_pieces_are_transformed_alike(monkeypatch):
    original, transforms = patches(10), draw_transforms(10, seed=1, epoch=2, batch=3)
    whole = augment(original, transforms)
    monkeypatch.setattr("wsi_assets.learning.augmentation.CPU_PIECE", 3 * original[0].numel())
    torch.testing.assert_close(augment(original, transforms), whole, atol=1e-3, rtol=1e-5)


def test_copies_differ_by_epoch_batch_and_seed():
    repeated = patches(1).repeat(6, 1, 1, 1)
    first = augment(repeated, draw_transforms(6, seed=1, epoch=1, batch=0))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(first, 2))
    assert torch.equal(first, augment(repeated, draw_transforms(6, seed=1, epoch=1, batch=0)))
    for other in ({"epoch": 2}, {"batch": 1}, {"seed": 2}):
        changed = draw_transforms(6, **{"seed": 1, "epoch": 1, "batch": 0, **other})
        assert not torch.equal(first, augment(repeated, changed))


@pytest.mark.parametrize("degrees", [-10.0, 4.0, 10.0])
def test_hue_turns_colors_by_its_angle_and_leaves_gray(degrees):
    turn = _chroma(np.ones(1), np.deg2rad([degrees]))[0]
    pink, gray = np.array([[180.0, 120.0, 160.0], [200.0, 200.0, 200.0]])
    hue = [colorsys.rgb_to_hsv(*color.tolist())[0] * 360 for color in (pink, pink @ turn)]
    assert abs(hue[1] - hue[0]) == pytest.approx(abs(degrees), rel=0.2)
    np.testing.assert_allclose(gray @ turn, gray)


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draw_transforms(8, seed=1, epoch=1, batch=1)
    assert torch.equal(torch.rand(3), expected)


def test_glass_stays_nearly_white_and_tissue_stays_tissue():
    # Background must not get a color, which a network would take for a stain.
    glass = torch.full((200, 8, 8, 3), 243, dtype=torch.uint8)
    changed = augment(glass, draw_transforms(200, seed=0, epoch=1, batch=0))
    spread = changed.amax(dim=3) - changed.amin(dim=3)
    assert spread.max() < 25
    assert changed.min() > 170


def test_colors_change_but_keep_their_mean():
    tissue = torch.tensor([180, 110, 170], dtype=torch.uint8).expand(400, 8, 8, 3).contiguous()
    changed = augment(tissue, draw_transforms(400, seed=0, epoch=1, batch=0)).mean(dim=(1, 2))
    assert (changed.std(dim=0) > 5).all()
    np.testing.assert_allclose(changed.mean(dim=0), [180, 110, 170], atol=6)


def test_more_hematoxylin_makes_nuclei_darker_and_bluer():
    nucleus = torch.tensor([110, 80, 160], dtype=torch.uint8).expand(1, 4, 4, 3).contiguous()
    stronger = identity(1)
    from wsi_assets.learning.augmentation import _STAINS, _UNSTAIN

    stain = _UNSTAIN @ np.diag([1.3, 1.0, 1.0]) @ _STAINS
    shift = np.log(256) * (1 - stain.sum(axis=0))  # of densities, in logarithms of RGB
    changes = {"stain": torch.tensor(stain[None]).float(), "stain_shift": torch.tensor(shift[None]).float()}
    stronger = Transforms(**{**vars(stronger), **changes})
    changed = augment(nucleus, stronger)[0, 0, 0]
    red, green, blue = (changed - torch.tensor([110.0, 80, 160])).tolist()
    assert red < -10
    assert green < -10
    assert blue > min(red, green)


@pytest.mark.parametrize("sigma", [0.5, 1.5])
def test_blur_is_a_gaussian_that_keeps_brightness(sigma):
    from scipy.ndimage import gaussian_filter1d

    image = patches(1, size=20).float()
    blurred = _blur(image, torch.tensor([sigma]))
    expected = image[0].numpy()
    for axis in (0, 1):
        expected = gaussian_filter1d(expected, sigma, axis=axis, mode="mirror", radius=4)
    np.testing.assert_allclose(blurred[0], expected, atol=0.01)


def test_a_transform_of_the_smallest_patch_is_possible():
    transforms = draw_transforms(32, seed=0, epoch=1, batch=0)
    assert augment(patches(32, size=2), transforms).shape == (32, 2, 2, 3)


def test_normalization_is_torchvisions_and_needs_no_copy_to_channels_last():
    original = patches(2)
    from torchvision.transforms import functional

    expected = functional.normalize(original.permute(0, 3, 1, 2).float() / 255, IMAGENET_MEAN, IMAGENET_STD)
    result = normalize(original)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last)
