"""Random augmentation of batches of patches, on the CPU or GPU that holds them, and normalization.

The input is uint8 (n, height, width, 3) RGB; after normalization it is float32 (n, 3, height, width) in
channels-last memory, ready for a network.

The transforms imitate variations of stained sections that do not change the diagnosis:

- **Dihedral** (four quarter turns, each mirrored or not): tissue on a slide has no preferred orientation.
- **Stain**: color deconvolution (Ruifrok and Johnston 2001) separates hematoxylin, eosin and a residual, and
  each amount a becomes a * alpha + beta, as in sections that are thicker or stained more strongly. Of the
  augmentations compared by Tellez et al. (2019) stain and color generalized best to other centers.
- **Color**: brightness, contrast, saturation and hue, which differ between scanners and laboratories.
- **Blur**: a Gaussian with a standard deviation of up to 1 pixel on a tenth of the patches, as in slides
  slightly out of focus. At 1 um per pixel, 1.5 pixels would erase the nuclei.

The color changes are as strong as the strong augmentation of Tellez et al., with hues turned by up to 40
degrees. Real differences are as large: in normal tissue of three CAMELYON16 patients, mean hematoxylin
differs by a factor of two and hue by 40 degrees. Weaker changes (10 degrees, half the range of stain) gave a
lower AUC on real patches of a patient not trained on in six of six pairs of trainings of resnet18, by 0.01 to
0.18. Where training had seen the stain of the test patients, one pair was level, and in the other the weaker
changes were better by 0.09.

Scaling, free rotation and elastic deformation are left out: size and shape of nuclei are diagnostic features.
All random numbers are drawn on the CPU from (seed, epoch, batch), so they depend neither on the number of
workers nor on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsi_assets.learning.devices import to_device

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

STAIN_ALPHA, STAIN_BETA = 0.3, 0.05
"""Amounts of stain are multiplied by 1 ± alpha and shifted by ± beta at most, in natural optical density."""
BRIGHTNESS, CONTRAST, SATURATION, HUE_DEGREES = 0.25, 0.25, 0.5, 40.0
COLOR_SHARE = 0.8
"""Share of patches whose stain and color change; the others stay unchanged, as all do in validation."""
BLUR_SHARE = 0.1
BLUR_SIGMA = (0.3, 1.0)
"""Smallest and largest standard deviation of the blur, in pixels of the patch."""
BLUR_RADIUS = 4
CPU_PIECE = 8 * 256 * 256 * 3
"""Values transformed at a time on a CPU, few enough for its cache."""

# Optical density of hematoxylin, eosin and DAB in R, G, B (Ruifrok and Johnston 2001), rows of length 1.
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)
_UNSTAIN = np.linalg.inv(_STAINS)
_GRAY = np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601


@dataclass(frozen=True)
class Transforms:
    """One random transform for each of n patches; colors are row vectors.

    Attributes:
        dihedral: (n,) int64, 0 to 7; see :func:`dihedral`.
        stain, stain_shift: (n, 3, 3) and (n, 3); log(RGB + 1) becomes log(RGB + 1) @ stain + stain_shift.
        color, gray: (n, 3, 3) and (n, 3); then RGB becomes RGB @ color + (mean RGB of the patch) · gray.
        sigma: (n,) standard deviation of the blur in pixels, 0 for none.
    """

    dihedral: Tensor
    stain: Tensor
    stain_shift: Tensor
    color: Tensor
    gray: Tensor
    sigma: Tensor

    def __getitem__(self, part: slice) -> Transforms:
        return Transforms(*(values[part] for values in vars(self).values()))

    def to(self, device: torch.device) -> Transforms:
        return Transforms(*(to_device(values, device) for values in vars(self).values()))


def draw_transforms(
    count: int, *, seed: int, epoch: int, batch: int, plain: np.ndarray | None = None
) -> Transforms:
    """Draw ``count`` random transforms; equal arguments give equal transforms.

    Args:
        plain: (count,) bool, which patches stay unchanged; None for none.
    """
    rng = np.random.default_rng([seed, epoch, batch])
    changed = np.ones(count, bool) if plain is None else ~plain
    colored = changed & (rng.random(count) < COLOR_SHARE)
    blurred = changed & (rng.random(count) < BLUR_SHARE)

    def jitter(width: float, *shape: int) -> np.ndarray:
        """Uniform within ± width for patches whose color changes, else 0."""
        return rng.uniform(-width, width, (count, *shape)) * colored.reshape(-1, *(1 for _ in shape))

    # Optical density is log(256) - log(RGB + 1), where the 1 keeps black finite. The affine map of densities
    # is rewritten as one of log(RGB + 1).
    stain = _UNSTAIN * (1 + jitter(STAIN_ALPHA, 3))[:, None] @ _STAINS
    stain_shift = np.log(256) * (1 - stain.sum(axis=1)) - jitter(STAIN_BETA, 3) @ _STAINS
    chroma = _chroma(1 + jitter(SATURATION), np.deg2rad(jitter(HUE_DEGREES)))
    dihedral = rng.integers(0, 8, count) * changed
    color = (1 + jitter(BRIGHTNESS))[:, None, None] * chroma
    contrast = 1 + jitter(CONTRAST)[:, None]  # scales the distance from the patch's mean gray
    gray = (1 - contrast) * (color @ _GRAY)
    sigma = rng.uniform(*BLUR_SIGMA, count) * blurred
    floats = (stain, stain_shift, color * contrast[:, None], gray, sigma)
    return Transforms(torch.from_numpy(dihedral), *(torch.from_numpy(x.astype(np.float32)) for x in floats))


def dihedral(patches: Tensor, codes: Tensor) -> Tensor:
    """Rotate and mirror square patches (n, size, size, channels) by their codes (n,) from 0 to 7.

    The bits of a code mean: 1 flips vertically, 2 flips horizontally, 4 then transposes.
    """
    codes = codes[:, None, None, None]
    patches = torch.where((codes & 1).bool(), patches.flip(1), patches)
    patches = torch.where((codes & 2).bool(), patches.flip(2), patches)
    return torch.where((codes & 4).bool(), patches.transpose(1, 2), patches)


def augment(patches: Tensor, transforms: Transforms) -> Tensor:
    """Apply one transform to each patch: uint8 (n, size, size, 3) RGB to float32 of that shape, 0 to 255.

    Patches may be on a GPU while the transforms are on the CPU; the call does not wait for the GPU.
    """
    if patches.device.type == "cpu" and patches.numel() > CPU_PIECE:
        # A dozen operations would read a whole batch from memory a dozen times; pieces stay in the cache.
        step = max(1, CPU_PIECE // patches[0].numel())
        pieces = range(0, len(patches), step)
        return torch.cat([augment(patches[i : i + step], transforms[i : i + step]) for i in pieces])
    blurred = torch.nonzero(transforms.sigma).squeeze(1)  # on the CPU: counting on a GPU would wait for it
    own = transforms.to(patches.device)
    n, height, width, _ = patches.shape
    logs = (dihedral(patches, own.dihedral).reshape(n, height * width, 3) + 1.0).log_()
    rgb = torch.baddbmm(own.stain_shift[:, None], logs, own.stain).exp_().sub_(1)
    shift = (rgb.mean(dim=1) * own.gray).sum(dim=1)
    rgb = torch.baddbmm(shift[:, None, None], rgb, own.color).view(n, height, width, 3)
    if len(blurred):
        blurred = to_device(blurred, patches.device)
        rgb[blurred] = _blur(rgb[blurred], own.sigma[blurred])
    return rgb.clamp_(0, 255)


def normalize(
    patches: Tensor, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> Tensor:
    """Normalize patches (n, height, width, 3), 0 to 255, to float32 (n, 3, height, width), channels-last.

    Args:
        mean, std: of each channel, for RGB between 0 and 1.
    """
    scale = to_device(1 / (255 * torch.tensor(std)), patches.device)
    shift = to_device(-torch.tensor(mean) / torch.tensor(std), patches.device)
    return torch.addcmul(shift, patches, scale).permute(0, 3, 1, 2)


def _chroma(saturation: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """Matrices (n, 3, 3) for RGB row vectors that leave gray, and thus the empty glass, unchanged.

    Saturation blends with the gray of equal luma; hue rotates about the gray axis (Rodrigues' formula).
    """
    saturation, hue = saturation[:, None, None], hue[:, None, None]
    saturate = saturation * np.eye(3) + (1 - saturation) * _GRAY[:, None]
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(hue) * np.eye(3) + np.sin(hue) * cross + (1 - np.cos(hue)) / 3
    return saturate @ turn.swapaxes(1, 2)


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of images (n, height, width, 3) with a sigma (n,) each; edges are mirrored."""
    n, height, width, _ = images.shape
    radius = min(BLUR_RADIUS, height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)[:, None]
    planes = images.permute(0, 3, 1, 2).reshape(1, 3 * n, height, width)
    planes = functional.pad(planes, (radius,) * 4, mode="reflect")
    planes = functional.conv2d(planes, kernel[:, :, None, :], groups=3 * n)
    planes = functional.conv2d(planes, kernel[:, :, :, None], groups=3 * n)
    return planes.reshape(n, 3, height, width).permute(0, 2, 3, 1)
