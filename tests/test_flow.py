"""The schedule and the steps, against diffusers' scheduler and the closed forms."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from unipic import flow
from unipic.sampling import sample


@pytest.mark.parametrize("shift", [1.0, 3.0, 2.5])
@pytest.mark.parametrize("steps", [1, 2, 8, 10, 50, 333])
def test_schedule_equals_diffusers_to_the_bit(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    sigmas = flow.sigmas(steps, shift)
    assert torch.equal(sigmas, scheduler.sigmas)
    assert torch.equal(sigmas[:-1] * flow.TRAIN_TIMESTEPS, scheduler.timesteps)


def test_euler_equals_diffusers_to_the_bit() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(8)
    torch.manual_seed(0)
    x = ours = torch.randn(2, 4, 6, 6)
    sigmas = flow.sigmas(8, 3.0)
    for i, timestep in enumerate(scheduler.timesteps):
        velocity = torch.randn_like(x)
        x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
        ours = flow.euler(ours, velocity, sigmas[i], sigmas[i + 1])
    assert torch.equal(ours, x)


def test_a_straight_flow_is_followed_exactly() -> None:
    """Towards one point the velocity (x − x0)/σ is that of straight lines: any number of steps arrives."""
    torch.manual_seed(0)
    x0, noise = torch.randn(1, 4, 3, 5), torch.randn(1, 4, 3, 5)
    seen = []
    result = sample(lambda x, sigma: (x - x0) / sigma, noise, flow.sigmas(7), seen.append)
    torch.testing.assert_close(result, x0)
    for step in seen:
        torch.testing.assert_close(step.x0, x0)
        torch.testing.assert_close(step.x, (1 - step.sigma) * x0 + step.sigma * noise)
    assert [step.number for step in seen] == list(range(1, 8))
