"""Loss terms of the variants: adversarial, what the readers see, and those of the autoencoder.

Pure functions of tensors; each is a scalar.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logistic loss of the logits [n, 1] of real and drawn pictures (Goodfellow et al. 2014)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating: high where the discriminator is not fooled."""
    return F.softplus(-fake).mean()


def r1_penalty(critic: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Squared gradient of the logits with respect to real pictures, mean over the batch.

    Mescheder et al. 2018, arXiv:1801.04406; the weight in the loss is half of gamma.
    """
    images = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def attribute_error(seen: Tensor, wanted: Tensor) -> Tensor:
    """Mean over the attributes of the mean squared error of z-scores [n, k]."""
    return (seen - wanted).square().mean()


def gender_error(probability: Tensor) -> Tensor:
    """Mean squared distance of the probabilities of a woman [n] from 1."""
    return (1 - probability).square().mean()


def mean_penalty(mean: Tensor) -> Tensor:
    """Mean of the squared means [n, z] of latents: keeps them around zero."""
    return mean.square().mean()


def variance_penalty(log_variance: Tensor) -> Tensor:
    """Mean of the squared log variances [n, z] of latents: keeps their variances around one."""
    return log_variance.square().mean()


def redrawing_error(drawn: Tensor, portraits: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of pictures [n, 3, r, r], averaged over halved resolutions."""
    total = drawn.new_zeros(())
    for scale in range(scales):
        if scale:
            drawn, portraits = F.avg_pool2d(drawn, 2), F.avg_pool2d(portraits, 2)
        total = total + (drawn - portraits).abs().mean() / scales
    return total
