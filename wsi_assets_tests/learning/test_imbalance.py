import numpy as np
import pytest
import torch
from torch.nn import functional

from wsi_assets.learning.imbalance import class_weights, hard_example_mask, kept_normals, patch_losses


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(64, 2, generator=generator, dtype=torch.float32) * 3
    return logits, torch.randint(0, 2, (64,), generator=generator)


def test_focal_loss_is_the_formula_of_lin_et_al(batch):
    logits, labels = batch
    weights = torch.tensor([0.25, 0.75])
    p = 1 / (1 + np.exp(-(logits[:, 1] - logits[:, 0]).double().numpy()))
    p_t = np.where(labels == 1, p, 1 - p)
    alpha_t = np.where(labels == 1, 0.75, 0.25)
    for gamma in (0.5, 1.0, 2.0, 5.0):
        expected = -alpha_t * (1 - p_t) ** gamma * np.log(p_t)
        np.testing.assert_allclose(
            patch_losses(logits, labels, gamma=gamma, weights=weights), expected, rtol=2e-4, atol=1e-9
        )


def test_focal_loss_with_gamma_zero_is_cross_entropy(batch):
    logits, labels = batch
    torch.testing.assert_close(
        patch_losses(logits, labels, gamma=0), functional.cross_entropy(logits, labels, reduction="none")
    )


def test_a_well_classified_patch_has_a_hundredth_of_the_loss_at_gamma_two():
    # Lin et al. 2017: an example with p_t = 0.9 has 100 times lower loss than with cross-entropy
    logits = torch.tensor([[0.0, float(np.log(9))]])
    label = torch.tensor([1])
    ratio = patch_losses(logits, label, gamma=2.0) / patch_losses(logits, label)
    assert ratio.item() == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_loss_and_its_gradient_stay_finite_when_the_model_is_certain(gamma):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    for labels in (torch.tensor([0, 1]), torch.tensor([1, 0])):
        losses = patch_losses(logits, labels, gamma=gamma)
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        assert torch.isfinite(losses).all()
        assert torch.isfinite(gradient).all()


def test_class_weights_make_both_classes_weigh_the_same_and_a_patch_one_on_average():
    normal, tumor = class_weights(900, 100)
    assert 900 * normal == pytest.approx(100 * tumor)
    assert (900 * normal + 100 * tumor) / 1000 == pytest.approx(1)


def test_hard_examples_are_all_tumor_patches_and_the_hardest_normal_ones():
    labels = torch.tensor([0, 1, 0, 0, 1, 0, 0, 0, 0, 0])
    losses = torch.tensor([0.9, 0.0, 0.1, 0.8, 0.0, 0.2, 0.3, 0.7, 0.4, 0.5])
    mask = hard_example_mask(losses, labels, kept_normals(10, 2, ratio=2.0, tumor_share=0.2))
    assert mask.nonzero().squeeze(1).tolist() == [0, 1, 3, 4, 7, 9]


def test_a_batch_without_tumor_keeps_as_many_normal_patches_as_an_average_batch():
    assert kept_normals(20, 0, ratio=3.0, tumor_share=0.1) == 6
    assert kept_normals(20, 0, ratio=1.0, tumor_share=0.0001) == 1


def test_a_batch_with_few_normal_patches_is_kept_whole():
    assert kept_normals(5, 3, ratio=3.0, tumor_share=0.6) == 2
    assert kept_normals(3, 3, ratio=3.0, tumor_share=1.0) == 0


def test_equal_losses_keep_exactly_the_ratio():
    labels = torch.tensor([1] + [0] * 30)
    assert hard_example_mask(torch.ones(31), labels, 3).sum() == 4
