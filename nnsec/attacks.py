"""Projected gradient descent, to train against and to measure with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def pgd(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float | None = None,
    random_start: bool = True,
    seed: int = 0,
) -> Tensor:
    r"""Find inputs within ``epsilon`` of ``x`` that the module gets wrong.

    Parameters
    ----------
    x:
        (batch, \*shape) float32 in [0, 1].
    y:
        (batch,) int64, the true classes.
    epsilon:
        L∞ radius, in the same unit as ``x``.
    step_size:
        Default 2.5 · epsilon / steps.

    Returns
    -------
    Tensor
        (batch, \*shape) float32 in [0, 1], at most ``epsilon`` from ``x`` in each value.

    References
    ----------
    Madry and others, "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018.
    """
    step = 2.5 * epsilon / max(steps, 1) if step_size is None else step_size
    adversarial = x.clone()
    if random_start:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.rand(x.shape, generator=generator).to(x.device)
        adversarial = (x + (2 * noise - 1) * epsilon).clamp(0, 1)
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_()
        loss = functional.cross_entropy(module(adversarial), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        moved = adversarial.detach() + step * gradient.sign()
        adversarial = torch.minimum(torch.maximum(moved, x - epsilon), x + epsilon).clamp(0, 1)
    return adversarial.detach()
