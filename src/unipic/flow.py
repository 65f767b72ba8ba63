"""Mathematics of rectified flow: pure functions of tensors, in float32.

A point on the path is x_t = (1 − t)·x0 + t·ε, its velocity ε − x0 (paper §3.1); t = σ is the noise level.
Sampling walks σ from 1 to 0.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000  # the transformer's timestep is σ times this


def sigmas(steps: int, shift: float = 3.0) -> Tensor:
    """The T + 1 noise levels of a schedule, from 1 (pure noise) down to 0; float32.

    Shifting maps σ to s·σ / (1 + (s − 1)·σ) (SD3, eq. 23). Like diffusers' scheduler, to the bit, which shifts twice:
    the smallest trained level 1/1000 is shifted first, the levels are spread evenly down to it, and shifted again.
    """

    def shifted(sigma: np.ndarray) -> np.ndarray:
        return np.asarray(shift * sigma / (1 + (shift - 1) * sigma))

    lowest = float(shifted(np.array([1], np.float32) / np.float32(TRAIN_TIMESTEPS))[0])
    spread = np.linspace(TRAIN_TIMESTEPS, lowest * TRAIN_TIMESTEPS, steps) / TRAIN_TIMESTEPS
    return torch.cat([torch.from_numpy(shifted(spread)).float(), torch.zeros(1)])


def euler(x: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One Euler step of dx/dσ = v, from sigma to sigma_next, in float32."""
    return x.float() + (sigma_next - sigma) * velocity.float()


def predicted_x0(x: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """Where the straight path through x ends: the present estimate of the clean latent."""
    return x.float() - sigma * velocity.float()


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The point x_t = (1 − t)·x0 + t·ε of each sample's path. x0, noise: B×…; t: B."""
    t = t.view(-1, *(1,) * (x0.ndim - 1))
    return (1 - t) * x0 + t * noise


def shifted(t: Tensor, shift: float) -> Tensor:
    """Noise levels moved towards 1 for larger pictures: s·t / (1 + (s − 1)·t) (SD3, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def logit_normal(normal: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Noise levels whose logit is normal (SD3, eq. 19), from standard normal numbers."""
    return torch.sigmoid(mean + std * normal)
