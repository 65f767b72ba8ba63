"""Mathematics of rectified flow: pure functions of tensors, in float32.

A point on the path is x_t = (1 − t)·x0 + t·ε, its velocity ε − x0 (paper §3.1); t = σ is the noise level.
Sampling walks σ from 1 to 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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


class Drawn(NamedTuple):
    """One step of a stochastic sampler.

    next: the point at the next noise level, B×…. mean, std: of the Gaussian that it was drawn from; std is a scalar, or
    B×1×… like sigma. log_prob: B, averaged over a sample's dimensions, so that it does not grow with the picture.
    """

    next: Tensor
    mean: Tensor
    std: Tensor
    log_prob: Tensor


def sde_step(
    x: Tensor,
    v: Tensor,
    *,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    sigma_max: Tensor | float,
    noise_level: float,
    next_x: Tensor | None = None,
    z: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Drawn:
    """One step of the stochastic equation with the flow's own marginals (Flow-GRPO, eq. 9), in float32.

    x, v: B×…. sigma, sigma_next: noise levels, a scalar or B, falling. sigma_max, likewise: stands for sigma = 1 where
    the diffusion s = a·√(σ / (1 − σ)) would be infinite; the schedule's second level. noise_level: a, above 0.
    next_x: the point that was drawn before, to be judged anew; else one is drawn, by the standard normal numbers z if
    they are given.
    """
    x, v = x.float(), v.float()
    sigma, sigma_next, highest = (_beside(x, level) for level in (sigma, sigma_next, sigma_max))
    dt = sigma_next - sigma
    below_one = torch.where(sigma == 1, highest, sigma)
    s = noise_level * (sigma / (1 - below_one)).sqrt()
    mean = x * (1 + s**2 * dt / (2 * sigma)) + v * (1 + s**2 * (1 - sigma) / (2 * sigma)) * dt
    std = s * (-dt).sqrt()
    drawn = _drawn(mean, std, z, generator) if next_x is None else next_x.float()
    log_prob = -((drawn.detach() - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
    return Drawn(drawn, mean, std, log_prob.flatten(1).mean(1))


def cps_step(
    x: Tensor,
    v: Tensor,
    *,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    noise_level: float,
    next_x: Tensor | None = None,
    z: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Drawn:
    """One step that preserves the coefficients of picture and noise (Flow-CPS): the point holds as much noise as its
    level says, where `sde_step` leaves too much.

    As `sde_step`; noise_level: a from 0 to 1, of which the next point's noise is renewed by sin(aπ/2). log_prob is
    −(next − mean)², averaged: without the factor 1/2s², which would make the last steps' weights explode.
    """
    x, v = x.float(), v.float()
    sigma, sigma_next = (_beside(x, level) for level in (sigma, sigma_next))
    std = sigma_next * math.sin(noise_level * math.pi / 2)
    picture, noise = x - sigma * v, x + (1 - sigma) * v
    mean = (1 - sigma_next) * picture + (sigma_next**2 - std**2).clamp(min=0).sqrt() * noise
    drawn = _drawn(mean, std, z, generator) if next_x is None else next_x.float()
    return Drawn(drawn, mean, std, -((drawn.detach() - mean) ** 2).flatten(1).mean(1))


def gaussian_kl(mean: Tensor, reference: Tensor, std: Tensor) -> Tensor:
    """KL of two Gaussians of one deviation, averaged over a sample's dimensions: (mean − reference)² / 2·std²; B.

    mean, reference: B×…. std: a scalar, or B×1×….
    """
    return ((mean - reference) ** 2 / (2 * std**2)).flatten(1).mean(1)


def _beside(x: Tensor, level: Tensor | float) -> Tensor:
    """A noise level, a scalar or B, in float32, that multiplies x: B×…."""
    level = torch.as_tensor(level, dtype=torch.float32, device=x.device)
    return level.view(-1, *(1,) * (x.ndim - 1)) if level.ndim else level


def _drawn(mean: Tensor, std: Tensor, z: Tensor | None, generator: torch.Generator | None) -> Tensor:
    if z is None:
        device = mean.device if generator is None else generator.device
        z = torch.randn(mean.shape, generator=generator, device=device)
    return mean + std * z.to(mean)
