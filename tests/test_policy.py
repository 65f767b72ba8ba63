"""Advantages and the clipped objective, against sums written out one by one."""

from __future__ import annotations

import math
import statistics
from itertools import combinations

import pytest
import torch
from torch import Tensor

from unipic.train.policy import advantages, clipped_losses, diversity

NAN = math.nan


def slow_advantages(rewards: list[list[float]], deviation: str, limit: float) -> list[list[float]]:
    everything = [r for row in rewards for r in row if not math.isnan(r)]
    found = []
    for row in rewards:
        known = [r for r in row if not math.isnan(r)]
        if len(known) < 4 or statistics.pstdev(known) <= 1e-6:
            found.append([NAN] * len(row))
            continue
        spread = statistics.pstdev(known) if deviation == "group" else statistics.pstdev(everything) + 1e-4
        mean = statistics.fmean(known)
        found.append([max(-limit, min(limit, (r - mean) / spread)) for r in row])
    return found


@pytest.mark.parametrize("deviation", ["group", "batch"])
@pytest.mark.parametrize("seed", range(5))
def test_advantages_are_those_of_the_valid_members(deviation: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(8, 16, generator=generator)
    rewards[torch.rand(8, 16, generator=generator) < 0.3] = NAN
    rewards[0] = 0.5  # all alike
    rewards[1, 3:] = NAN  # too few
    rewards[2, 0] = 40.0  # beyond the limit of a batch
    rewards[3] = NAN
    wanted = torch.tensor(slow_advantages(rewards.tolist(), deviation, 3.0))
    found = advantages(rewards, deviation, limit=3.0)  # type: ignore[arg-type]
    assert torch.equal(found.isnan(), wanted.isnan() | rewards.isnan())
    valid = ~found.isnan()
    torch.testing.assert_close(found[valid], wanted[valid], rtol=1e-5, atol=1e-5)
    assert valid[4:].any()
    assert not valid[[0, 1, 3]].any()


def test_a_missing_score_changes_nothing_for_the_others() -> None:
    row = [0.1, 0.9, 0.4, 0.6, 0.2]
    alone = advantages(torch.tensor([row]))
    beside = advantages(torch.tensor([[*row[:2], NAN, *row[2:], NAN]]))
    torch.testing.assert_close(beside[~beside.isnan()], alone[0])


def test_rounding_is_no_difference() -> None:
    """Equal rewards that were summed in another order."""
    assert advantages(torch.tensor([[0.1 + 0.2, 0.3, 0.3, 0.3]], dtype=torch.float64)).isnan().all()


@pytest.mark.parametrize("clip", [1e-4, 0.2])
def test_the_objective_is_clipped_on_the_side_that_would_gain(clip: float) -> None:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(200, generator=generator)
    log_prob = (old + 2 * clip * torch.randn(200, generator=generator)).requires_grad_()
    advantage = torch.randn(200, generator=generator)
    losses, ratio = clipped_losses(log_prob - old, advantage, clip)
    for i in range(200):
        r, a = math.exp(log_prob[i].item() - old[i].item()), advantage[i].item()
        assert losses[i].item() == pytest.approx(-min(r * a, min(max(r, 1 - clip), 1 + clip) * a), rel=1e-4, abs=1e-7)
        assert ratio[i].item() == pytest.approx(r, rel=1e-5)
    losses.sum().backward()
    assert log_prob.grad is not None
    gains = ((ratio > 1 + clip) & (advantage > 0)) | ((ratio < 1 - clip) & (advantage < 0))
    assert gains.any()
    assert torch.equal(log_prob.grad == 0, gains)
    torch.testing.assert_close(log_prob.grad[~gains], -(ratio * advantage).detach()[~gains])


def test_diversity_is_the_mean_over_pairs() -> None:
    latents = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))

    def apart(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().mean())

    wanted = math.sqrt(statistics.fmean(apart(a, b) for a, b in combinations(latents, 2)))
    assert float(diversity(latents)) == pytest.approx(wanted, rel=1e-5)
    assert float(diversity(latents[:1].expand(4, -1, -1, -1))) == 0
