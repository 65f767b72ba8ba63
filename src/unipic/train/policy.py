"""The maths of Flow-GRPO: rewards → advantages, log-probabilities → objective. Pure functions of tensors.

Paper, eq. (1) and (2). A score that could not be had is NaN here; it counts as nothing, never as 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

LEAST_VALID = 4  # scores of a group, below which its mean says too little
SAME = 1e-6  # deviation of rewards below which a group has nothing to tell
BATCH_EPSILON = 1e-4  # the reference implementation's, beside the batch's deviation

Deviation = Literal["group", "batch"]


def advantages(rewards: Tensor, deviation: Deviation = "group", limit: float = 5.0) -> Tensor:
    """How much better than its group a sample is, in deviations, within ±limit; NaN for what is not to be trained on.

    rewards: P×G, one row a prompt; NaN for a missing score. Dropped whole: rows with fewer than four valid scores, and
    rows whose valid scores are all alike. deviation: of the group (the paper's eq. 1), or of all valid scores of the
    batch (the reference implementation). Deviations are those of a population. Returns P×G, float32.
    """
    rewards = rewards.double()
    valid = ~rewards.isnan()
    count = valid.sum(1, keepdim=True)
    known = rewards.nan_to_num()
    mean = known.sum(1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(valid, known - mean, 0.0)
    own = (centred.square().sum(1, keepdim=True) / count.clamp(min=1)).sqrt()
    spread = own if deviation == "group" else rewards[valid].std(correction=0) + BATCH_EPSILON
    kept = valid & (count >= LEAST_VALID) & (own > SAME)
    scaled = (centred / torch.where(kept, spread, 1.0)).clamp(-limit, limit)
    return torch.where(kept, scaled, torch.nan).float()


def normalised(log_ratio: Tensor, mean: Tensor, old_mean: Tensor, std: Tensor, sharpness: Tensor) -> Tensor:
    """GRPO-Guard's ratio (Wang et al. 2025, eq. 8): std · (log r + (mean − old mean)² / 2·std²).

    The log-ratio of Gaussians is below 0 on average, the more so the smaller their deviation, so that plain clipping
    lets the late steps go too far. This one is 0 on average and as wide at every level. B, averaged over dimensions.
    sharpness: k, where log-probabilities are −k·distance² and a constant: 1 / 2·std² of Gaussians (see
    `Sampler.sharpness`). It cancels: what is left is z·(mean − old mean) for noise z.
    """
    bias = (sharpness * (mean - old_mean) ** 2).flatten(1).mean(1)
    return (log_ratio + bias) / (2 * sharpness * std).flatten()


def clipped_losses(log_ratio: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """The negated clipped objective of each sample, −min(r·A, clip(r, 1 ± clip)·A), and the ratios r = p / p_old; B."""
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantage, bounded * advantage), ratio


def negative_aware_losses(
    v: Tensor, v_then: Tensor, x: Tensor, x0: Tensor, t: Tensor, advantage: Tensor, *, mixture: float, limit: float
) -> Tensor:
    """DiffusionNFT's loss of each sample: limit · (r·L⁺ + (1 − r)·L⁻) / mixture, where r = ½ + A / 2·limit; B.

    L± are squared errors of the pictures x − t·v± against x0, each over its own mean absolute error, of the mixtures
    v⁺ = m·v + (1 − m)·v_then and v⁻ = (1 + m)·v_then − m·v. v, v_then: present velocity and the rollout's, x: the
    noised picture x0; B×…. t, advantage: B.
    """
    t = t.view(-1, *(1,) * (x.ndim - 1))

    def error(velocity: Tensor) -> Tensor:
        off = x - t * velocity - x0
        size = off.detach().abs().flatten(1).mean(1).clamp(min=1e-5)
        return off.square().flatten(1).mean(1) / size

    optimal = (0.5 + advantage / (2 * limit)).clamp(0, 1)
    good = error(mixture * v + (1 - mixture) * v_then)
    bad = error((1 + mixture) * v_then - mixture * v)
    return limit * (optimal * good + (1 - optimal) * bad) / mixture


def diversity(latents: Tensor) -> Tensor:
    """How far a group's latents are from each other: root mean square over pairs and dimensions. G×… → a scalar."""
    flat = latents.flatten(1).double()
    # the mean square over ordered pairs of different samples is twice the unbiased variance
    return (2 * flat.var(dim=0, correction=1)).mean().sqrt().float()
