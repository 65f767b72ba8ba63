"""DiffusionNFT's loss against its formula, and its gradient against what it is for."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from tests.test_grpo import BATCH, GROUP, ONE, Redness, alone, rolled
from tests.test_train_stages import calm, stage
from unipic import BadInput
from unipic.train import nft as nft_module
from unipic.train.loop import advance
from unipic.train.nft import NftStage
from unipic.train.optim import Weights
from unipic.train.policy import negative_aware_losses
from unipic.train.randomness import Draws

LEVELS = 3
ADVANTAGE = torch.tensor([-9.0, -1, 0, 2, 9], dtype=torch.float64)


def numbers(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ("v", "v_then", "x", "x0")
    found = {name: torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64) for name in names}
    return found | {
        "t": torch.rand(5, generator=generator, dtype=torch.float64),
        "advantage": ADVANTAGE,
    }


@pytest.mark.parametrize("mixture", [0.3, 1.0])
def test_the_loss_is_the_formula(mixture: float) -> None:
    of = numbers()
    found = negative_aware_losses(**of, mixture=mixture, limit=5.0)
    for i in range(5):
        v, then, x, x0, t = (of[name][i] for name in ("v", "v_then", "x", "x0", "t"))
        r = min(1, max(0, 0.5 + float(of["advantage"][i]) / 10))
        terms = []
        for velocity in (mixture * v + (1 - mixture) * then, (1 + mixture) * then - mixture * v):
            off = x - t * velocity - x0
            terms.append(float((off**2).mean() / off.abs().mean()))
        assert float(found[i]) == pytest.approx(5 * (r * terms[0] + (1 - r) * terms[1]) / mixture, rel=1e-9)


def test_it_draws_towards_good_pictures_and_away_from_bad_ones() -> None:
    """At the rollout's own velocity a good and a bad picture pull in opposite ways, and one like its group in none."""
    of = numbers()
    v = of["v_then"].clone().requires_grad_()
    negative_aware_losses(**of | {"v": v}, mixture=1.0, limit=5.0).sum().backward()
    assert v.grad is not None
    towards = (of["x"] - of["x0"]) / of["t"].view(-1, 1, 1, 1) - of["v_then"]  # the velocity that leads to the picture
    along = [
        -float((g * d).sum() / g.norm() / d.norm()) if g.norm() else 0.0 for g, d in zip(v.grad, towards, strict=True)
    ]
    assert along == pytest.approx([-1, -1, 0, 1, 1], abs=1e-9)


def nft(**more: Any) -> NftStage:
    data = {"tasks": ["edit"], "phases": [{"resolution": 64}], "sources": [{"kind": "world", "texts": {"prompt": 1}}]}
    raw = {"stage": "nft", "model": "tiny-kontext", "batch": BATCH, "group": GROUP, "levels": LEVELS}
    raw |= {
        "rewards": {"world": {"kind": "world"}},
        "lora": {"rank": 4, "alpha": 8},
        "sampler": {"steps": 4, "trained": 3, "guidance_scale": 1.0},
    }
    raw |= {"optimizer": {"lr": 1e-3, "schedule": "constant"}}
    made: NftStage = calm(stage(raw, data=data, **more))
    made.rewards = alone(Redness())
    return made


def test_a_rollout_follows_the_flow_and_every_picture_is_learnt_from_at_several_levels() -> None:
    made = nft(micro_batch=4)
    _, updates = rolled(made)
    assert not made.rolled.trajectory.steps
    assert [update.terms for update in updates] == [BATCH // 2 * LEVELS] * 2
    seen = [(micro.step, at) for update in updates for micro in update.micros for at in micro.at]
    assert sorted(seen) == [(level, at) for level in range(LEVELS) for at in range(BATCH)]


def test_the_second_update_still_knows_the_rollout_s_velocity() -> None:
    """Where weights have moved since, mixtures are with the velocity of then, and the weights of now stay."""
    made = nft(micro_batch=4, beta=0.0)
    _, updates = rolled(made)
    late = updates[1].micros[0]
    still = made.losses(late, None).detach()  # type: ignore[arg-type]
    kept = {name: p.detach().clone() for name, p in made.transformer.named_parameters()}
    with torch.no_grad():
        for name, p in made.transformer.named_parameters():
            if ".lora_B." in name:
                p.add_(0.3 * torch.randn_like(p))
    moved = made.losses(late, None).detach()  # type: ignore[arg-type]
    assert not torch.allclose(still, moved)
    with torch.no_grad():
        for name, p in made.transformer.named_parameters():
            p.copy_(kept[name])
    torch.testing.assert_close(made.losses(late, None).detach(), still)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("beta", "fresh", "forwards"), [(0.0, True, 1), (0.1, True, 2), (0.0, False, 2), (0.1, False, 3)]
)
def test_nothing_is_computed_that_is_known_or_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch, beta: float, fresh: bool, forwards: int
) -> None:
    """A fresh update's own velocity is the rollout's; without beta nobody asks for the model without adapters."""
    made = nft(micro_batch=4, beta=beta)
    _, updates = rolled(made)
    counted = Mock(wraps=nft_module.forward)
    monkeypatch.setattr(nft_module, "forward", counted)
    made.losses(updates[0 if fresh else 1].micros[0], None)  # type: ignore[arg-type]
    assert counted.call_count == forwards
    assert ("kl" in made.notes.values) == (beta > 0)


def test_a_group_is_noised_alike_and_not_as_it_was_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its pictures' errors have in common cancels in a group, whose advantages sum to zero."""
    made = nft(micro_batch=BATCH, updates=1)
    groups, (update,) = rolled(made)
    seen: dict[int, list[tuple[Tensor, Tensor]]] = {level: [] for level in range(LEVELS)}
    interpolate = nft_module.flow.interpolate

    def watched(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        seen[level] += zip(noise, t, strict=True)
        return interpolate(x0, noise, t)

    monkeypatch.setattr(nft_module.flow, "interpolate", watched)
    for micro in update.micros:
        level = micro.step
        made.losses(micro, None)  # type: ignore[arg-type]
    streams = Draws(made.config.seed, groups.numbers, made.device)
    started = list(streams.normal(*made.rolled.trajectory.end.shape[1:]))
    firsts = []
    for drawn in seen.values():
        for start in range(0, BATCH, GROUP):
            (noise, t), *others = drawn[start : start + GROUP]
            assert all(torch.equal(noise, other) and t == u for other, u in others)
            firsts.append(noise)
    assert len(firsts) == LEVELS * BATCH // GROUP
    for i, noise in enumerate(firsts):
        assert not any(torch.equal(noise, other) for other in firsts[:i] + started)


def test_a_step_of_the_loop() -> None:
    made = nft()
    weights = Weights(made.trained, made.config.optimizer, None)
    record = advance(made, weights, made.batch(0, range(BATCH)), 0, ONE)
    assert math.isfinite(record["loss"])
    assert record["grad_norm"] > 0
    assert record["kl"] >= 0


@pytest.mark.parametrize("more", [{"guard": True}, {"sampler": {"window": 2}}, {"sampler": {"kind": "cps"}}])
def test_what_is_of_random_steps_is_refused(more: dict[str, Any]) -> None:
    """A group that shared its way to a window would be one picture, and teach nothing."""
    with pytest.raises(BadInput, match="random steps, which nft has none of"):
        nft(**more)
