"""Muon: the momentum of each matrix, made orthogonal, is its update (Jordan 2024; scaled as in Liu et al. 2025, §2.2).

AdamW scales entries, Muon singular values: directions in which gradients are weak are learnt as fast as strong ones.
On small convolutional and transformer models it needs a fraction of AdamW's samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from unipic.train.sharding import put, whole

MOMENTUM = 0.95
# Newton–Schulz with Jordan's quintic: singular values from 0.01 to 1 land between 0.7 and 1.2 within five rounds.
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
# An update's root mean square, in learning rates, is about what AdamW's is: one rate and decay serve both.
RMS = 0.2


class Muon(torch.optim.Optimizer):
    """For weights of linear and convolutional layers, whose dimensions after the first count as one.

    weight_decay: decoupled, as AdamW's. torch's own takes matrices alone and computes in bf16, slow on CPUs.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.shape, []).append((p, p.grad))
            for pairs in alike.values():
                self._step(pairs, group["lr"], group["weight_decay"])

    def _step(self, pairs: list[tuple[Tensor, Tensor]], lr: float, decay: float) -> None:
        """Of parameters of one shape, with their gradients: their matrices are one batch."""
        updates = torch.stack([whole(self._ahead(p, gradient)).flatten(1) for p, gradient in pairs])
        rows, columns = updates.shape[1:]
        updates = orthogonal(updates) * (RMS * max(rows, columns) ** 0.5)
        for (p, _), update in zip(pairs, updates, strict=True):
            p.mul_(1 - lr * decay).sub_(put(update.view(p.shape), p), alpha=lr)

    def _ahead(self, p: Tensor, gradient: Tensor) -> Tensor:
        """The momentum as Nesterov looks at it: a step ahead."""
        if "momentum" not in self.state[p]:
            self.state[p]["momentum"] = torch.zeros_like(p)
        momentum = self.state[p]["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """B×rows×columns → U·Vᵀ of their singular value decompositions, singular values within 0.7 to 1.2 rather than 1.

    Values below a hundredth of the Frobenius norm come out smaller; a matrix of zeros stays.
    """
    a, b, c = QUINTIC
    tall: bool = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-20)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
