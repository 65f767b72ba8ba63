"""Stochastic steps and their log-probabilities, against closed forms in float64 and against what they must preserve."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from unipic import flow

SIGMAS = flow.sigmas(10)
SHAPE = (3, 4, 6, 5)


def point(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def close_to(ours: Tensor, twin: Tensor) -> None:
    torch.testing.assert_close(ours.double(), twin, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("noise_level", [0.3, 0.7, 1.2])
@pytest.mark.parametrize("i", range(10))
def test_the_step_follows_the_stochastic_equation(i: int, noise_level: float) -> None:
    """dx = (v − s²/2·score) dσ + s dw backwards in σ, where the flow's score is −(x + (1 − σ)·v)/σ."""
    x, v = point(i)
    made = flow.sde_step(
        x,
        v,
        sigma=SIGMAS[i],
        sigma_next=SIGMAS[i + 1],
        sigma_max=SIGMAS[1],
        noise_level=noise_level,
        generator=torch.Generator().manual_seed(i),
    )
    a, b = float(SIGMAS[i]), float(SIGMAS[i + 1])
    s = noise_level * math.sqrt(a / (1 - (float(SIGMAS[1]) if a == 1 else a)))
    score = -(x.double() + (1 - a) * v.double()) / a
    mean = x.double() + (v.double() - s**2 / 2 * score) * (b - a)
    gaussian = Normal(mean, s * math.sqrt(a - b))
    close_to(made.mean, mean)
    assert float(made.std) == pytest.approx(s * math.sqrt(a - b), rel=1e-5)
    close_to(made.log_prob, gaussian.log_prob(made.next.double()).flatten(1).mean(1))
    z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(i))
    close_to(made.next, mean + s * math.sqrt(a - b) * z.double())


@pytest.mark.parametrize("step", ["sde", "cps"])
def test_a_point_that_was_drawn_is_judged_as_when_it_was(step: str) -> None:
    x, v = point()
    levels = {"sigma": SIGMAS[2], "sigma_next": SIGMAS[3], "noise_level": 0.7}
    more = {"sigma_max": SIGMAS[1]} if step == "sde" else {}
    take = flow.sde_step if step == "sde" else flow.cps_step
    first = take(x, v, **levels, **more)  # type: ignore[operator]
    again = take(x, v, **levels, **more, next_x=first.next)  # type: ignore[operator]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first.log_prob.shape == (SHAPE[0],)
    elsewhere = take(x, v + 0.1, **levels, **more, next_x=first.next)  # type: ignore[operator]
    assert not torch.equal(elsewhere.log_prob, first.log_prob)


@pytest.mark.parametrize("highest", [SIGMAS[1], SIGMAS[1].expand(3)])
def test_samples_may_stand_at_levels_of_their_own(highest: Tensor) -> None:
    x, v = point()
    steps = torch.tensor([0, 4, 8])
    more = {"noise_level": 0.7, "next_x": x * 0.9}
    together = flow.sde_step(x, v, sigma=SIGMAS[steps], sigma_next=SIGMAS[steps + 1], sigma_max=highest, **more)
    assert together.std.flatten().shape == (3,)
    for row, i in enumerate(steps.tolist()):
        part = {name: value[row : row + 1] for name, value in (("x", x), ("v", v), ("next_x", more["next_x"]))}
        alone = flow.sde_step(
            part["x"],
            part["v"],
            sigma=SIGMAS[i],
            sigma_next=SIGMAS[i + 1],
            sigma_max=SIGMAS[1],
            noise_level=0.7,
            next_x=part["next_x"],
        )
        torch.testing.assert_close(together.log_prob[row], alone.log_prob[0])
        torch.testing.assert_close(together.mean[row], alone.mean[0])
        torch.testing.assert_close(together.std[row].flatten()[0], alone.std)


def exact_velocity(x: Tensor, sigma: float, mean: float, deviation: float) -> Tensor:
    """Of a flow whose data are Gaussian: E[ε − x0 | x]."""
    variance = ((1 - sigma) * deviation) ** 2 + sigma**2
    offset = x - (1 - sigma) * mean
    return sigma / variance * offset - mean - (1 - sigma) * deviation**2 / variance * offset


def test_stochastic_sampling_ends_in_the_data_s_distribution() -> None:
    """Gaussian data with the exact velocity: 20,000 particles end with its mean and deviation."""
    generator = torch.Generator().manual_seed(0)
    sigmas, mean, deviation = flow.sigmas(400), 1.5, 0.6
    x = torch.randn(20_000, 1, generator=generator)
    for sigma, sigma_next in pairwise(sigmas):
        v = exact_velocity(x, float(sigma), mean, deviation)
        levels = {"sigma": sigma, "sigma_next": sigma_next, "sigma_max": sigmas[1]}
        x = flow.sde_step(x, v, **levels, noise_level=0.5, generator=generator).next
    assert float(x.mean()) == pytest.approx(mean, abs=0.02)
    assert float(x.std()) == pytest.approx(deviation, abs=0.02)


@pytest.mark.parametrize("noise_level", [0.0, 0.7, 1.0])
def test_cps_keeps_the_coefficients_of_picture_and_noise(noise_level: float) -> None:
    """One picture and one noise: at the next level (1 − σ')·x0, with noise of deviation σ' of which a part is new."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.full((1, 200_000), 0.8), torch.randn(1, 200_000, generator=generator)
    a, b = float(SIGMAS[4]), float(SIGMAS[5])
    made = flow.cps_step(
        (1 - a) * x0 + a * noise,
        noise - x0,
        sigma=SIGMAS[4],
        sigma_next=SIGMAS[5],
        noise_level=noise_level,
        generator=generator,
    )
    left = made.next - (1 - b) * x0
    new = math.sin(noise_level * math.pi / 2)
    assert float(left.std()) == pytest.approx(b, rel=0.01)
    assert float((left * noise).mean()) == pytest.approx(b * math.sqrt(1 - new**2), abs=0.01)
    assert float(made.std) == pytest.approx(b * new, rel=1e-5, abs=1e-7)
    close_to(made.log_prob, -((made.next.double() - made.mean.double()) ** 2).mean(1))


def test_without_noise_cps_is_euler() -> None:
    x, v = point()
    made = flow.cps_step(x, v, sigma=SIGMAS[3], sigma_next=SIGMAS[4], noise_level=0.0)
    torch.testing.assert_close(made.next, flow.euler(x, v, SIGMAS[3], SIGMAS[4]))


def test_kl_is_that_of_gaussians() -> None:
    mean, reference = point()
    std = torch.tensor([0.3, 0.7, 1.1]).view(3, 1, 1, 1)
    wanted = kl_divergence(Normal(mean.double(), std.double()), Normal(reference.double(), std.double()))
    close_to(flow.gaussian_kl(mean, reference, std), wanted.flatten(1).mean(1))
    assert not flow.gaussian_kl(mean, mean, std).any()
